/** Outlines of a structure by marching squares (Lorensen and Cline 1987, in the plane) at half of a binary image. */

/**
 * Segments between the middles of neighbouring pixels, for each of the 16 cases of four pixels; 1 is top left, 2 top
 * right, 4 bottom right, 8 bottom left. Ends: 0 top, 1 right, 2 bottom, 3 left. Two pixels that touch at a corner stay apart.
 */
const SEGMENTS = [
  [], [3, 0], [0, 1], [3, 1], [1, 2], [3, 0, 1, 2], [0, 2], [3, 2],
  [2, 3], [2, 0], [0, 1, 2, 3], [2, 1], [1, 3], [1, 0], [0, 3], [],
];
/** Middles of the edges, then the corners: top left, top right, bottom right, bottom left. */
const CORNERS = [[0.5, 0], [1, 0.5], [0.5, 1], [0, 0.5], [0, 0], [1, 0], [1, 1], [0, 1]];
/** What lies inside, for the same cases, clockwise. */
const INSIDE = [
  [], [[4, 0, 3]], [[0, 5, 1]], [[4, 5, 1, 3]], [[1, 6, 2]], [[4, 0, 3], [1, 6, 2]], [[0, 5, 6, 2]], [[4, 5, 6, 2, 3]],
  [[3, 2, 7]], [[4, 0, 2, 7]], [[0, 5, 1], [3, 2, 7]], [[4, 5, 1, 2, 7]], [[3, 1, 6, 7]], [[4, 0, 1, 6, 7]], [[0, 5, 6, 7, 3]], [[4, 5, 6, 7]],
];

/** @typedef {{left: number, top: number, right: number, bottom: number}} Box pixels, both ends belong to it */

/**
 * @param {Uint8Array} labels of one slice, row by row
 * @param {number} width
 * @returns {Map<number, Box>} where each label lies; outlines need not look anywhere else
 */
export function boxes(labels, width) {
  /** @type {Map<number, Box>} */
  const found = new Map();
  for (let place = 0, u = 0, v = 0; place < labels.length; place++, u++) {
    if (u === width) [u, v] = [0, v + 1];
    const label = labels[place];
    if (label === 0) continue;
    const box = found.get(label);
    if (!box) found.set(label, { left: u, top: v, right: u, bottom: v });
    else {
      if (u < box.left) box.left = u;
      if (u > box.right) box.right = u;
      box.bottom = v;
    }
  }
  return found;
}

/**
 * @param {Uint8Array} labels of one slice, row by row
 * @param {number} width
 * @param {number} structure
 * @param {Box} box of the structure
 * @returns {number[]} u1, v1, u2, v2 of each segment; the middle of the first pixel is (0.5, 0.5)
 */
export function segments(labels, width, structure, box) {
  /** @type {number[]} */
  const found = [];
  for (let v = box.top - 1; v <= box.bottom; v++) {
    for (let u = box.left - 1; u <= box.right; u++) {
      for (const end of SEGMENTS[cellAt(labels, width, structure, u, v)]) found.push(u + 0.5 + CORNERS[end][0], v + 0.5 + CORNERS[end][1]);
    }
  }
  return found;
}

/**
 * What lies inside of the outline, cell by cell: neighbours share their edges, and together they are the structure.
 *
 * @param {Uint8Array} labels of one slice, row by row
 * @param {number} width
 * @param {number} structure
 * @param {Box} box of the structure
 * @returns {number[][]} polygons, u and v of each corner; the middle of the first pixel is (0.5, 0.5)
 */
export function polygons(labels, width, structure, box) {
  /** @type {number[][]} */
  const found = [];
  for (let v = box.top - 1; v <= box.bottom; v++) {
    for (let u = box.left - 1; u <= box.right; u++) {
      const kind = cellAt(labels, width, structure, u, v);
      if (kind === 0) continue;
      let end = u;
      if (kind === 15) while (cellAt(labels, width, structure, end + 1, v) === 15) end++;
      for (const corners of INSIDE[kind]) {
        found.push(corners.flatMap((corner) => [u + 0.5 + CORNERS[corner][0] * (end - u + 1), v + 0.5 + CORNERS[corner][1]]));
      }
      u = end;
    }
  }
  return found;
}

/**
 * @param {Uint8Array} labels
 * @param {number} width
 * @param {number} structure
 * @param {number} u column of the pixel at the top left
 * @param {number} v its row
 * @returns {number} which of the four pixels belong to the structure
 */
function cellAt(labels, width, structure, u, v) {
  const place = v * width + u;
  const [left, right] = [u >= 0, u + 1 < width];
  // Rows above and below hold undefined, which is no label.
  let kind = 0;
  if (left && labels[place] === structure) kind += 1;
  if (right && labels[place + 1] === structure) kind += 2;
  if (right && labels[place + width + 1] === structure) kind += 4;
  if (left && labels[place + width] === structure) kind += 8;
  return kind;
}

/**
 * @param {number[]} lines as `segments` gives them
 * @returns {Path2D}
 */
export function pathOf(lines) {
  const path = new Path2D();
  for (let place = 0; place < lines.length; place += 4) {
    path.moveTo(lines[place], lines[place + 1]);
    path.lineTo(lines[place + 2], lines[place + 3]);
  }
  return path;
}

/**
 * @param {number[][]} cells as `polygons` gives them
 * @returns {Path2D}
 */
export function areaOf(cells) {
  const path = new Path2D();
  for (const corners of cells) {
    path.moveTo(corners[0], corners[1]);
    for (let place = 2; place < corners.length; place += 2) path.lineTo(corners[place], corners[place + 1]);
    path.closePath();
  }
  return path;
}
