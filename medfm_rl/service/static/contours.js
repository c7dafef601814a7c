/** Outlines of a structure by marching squares (Lorensen and Cline 1987, in the plane) at half of a binary image. */

/**
 * Segments between the middles of neighbouring pixels, for each of the 16 cases of four pixels; 1 is top left, 2 top
 * right, 4 bottom right, 8 bottom left. Ends: 0 top, 1 right, 2 bottom, 3 left. Two pixels that touch at a corner stay apart.
 */
const SEGMENTS = [
  [], [3, 0], [0, 1], [3, 1], [1, 2], [3, 0, 1, 2], [0, 2], [3, 2],
  [2, 3], [2, 0], [0, 1, 2, 3], [2, 1], [1, 3], [1, 0], [0, 3], [],
];
const ENDS = [[0.5, 0], [1, 0.5], [0.5, 1], [0, 0.5]];

/**
 * @param {Uint8Array} labels of one slice, row by row
 * @param {number} width
 * @param {number} height
 * @param {number} structure
 * @returns {number[]} u1, v1, u2, v2 of each segment; the middle of the first pixel is (0.5, 0.5)
 */
export function segments(labels, width, height, structure) {
  /** @type {number[]} */
  const found = [];
  const at = (/** @type {number} */ u, /** @type {number} */ v) =>
    u >= 0 && v >= 0 && u < width && v < height && labels[v * width + u] === structure;
  for (let v = -1; v < height; v++) {
    for (let u = -1; u < width; u++) {
      const ends =
        SEGMENTS[Number(at(u, v)) + 2 * Number(at(u + 1, v)) + 4 * Number(at(u + 1, v + 1)) + 8 * Number(at(u, v + 1))];
      for (const end of ends) found.push(u + 0.5 + ENDS[end][0], v + 0.5 + ENDS[end][1]);
    }
  }
  return found;
}

/**
 * @param {Uint8Array} labels of one slice, row by row
 * @param {number} width
 * @param {number} structure
 * @returns {number[]} u, v and length of each run of the structure's pixels in a row
 */
export function runs(labels, width, structure) {
  /** @type {number[]} */
  const found = [];
  for (let place = 0; place < labels.length; place++) {
    if (labels[place] !== structure) continue;
    const start = place;
    const end = place - (place % width) + width;
    while (place + 1 < end && labels[place + 1] === structure) place++;
    found.push(start % width, Math.floor(start / width), place - start + 1);
  }
  return found;
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
 * @param {number[]} rows as `runs` gives them
 * @returns {Path2D} the structure's own pixels
 */
export function areaOf(rows) {
  const path = new Path2D();
  for (let place = 0; place < rows.length; place += 3) path.rect(rows[place], rows[place + 1], rows[place + 2], 1);
  return path;
}
