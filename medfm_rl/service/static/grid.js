/**
 * The grid of a case, and the planes that it is looked at in. One affine map from (column, row, slice) to an index serves
 * drawing, pointing and editing alike, so that what is seen is what is changed.
 *
 * @typedef {object} Grid
 * @property {"image"|"volume"|"clip"} form
 * @property {[number, number, number]} size x, y, and z or frame (1 for an image)
 * @property {[number, number, number]} spacing
 * @property {string} unit
 *
 * @typedef {"xy"|"xz"|"yz"} PlaneName
 *
 * @typedef {object} Plane
 * @property {PlaneName} name
 * @property {string} title
 * @property {[number, number, number]} axes axis of columns, of rows, and across the slices
 * @property {[boolean, boolean]} flip whether columns and rows run against their axis
 * @property {number} width
 * @property {number} height
 * @property {number} depth number of slices
 * @property {[number, number]} spacing of columns and rows
 * @property {string[]|null} letters left, right, top and bottom, in the body
 */

/** @type {Record<PlaneName, [number, number, number]>} */
const AXES = { xy: [0, 1, 2], xz: [0, 2, 1], yz: [1, 2, 0] };
/** Directions that a picture's columns and rows grow in, by the convention of radiology. */
const GROWS = { columns: ["L", "P"], rows: ["P", "I", "L"] };
/** @type {Record<string, string>} */
const OPPOSITE = { L: "R", R: "L", A: "P", P: "A", S: "I", I: "S" };
/** @type {Record<string, string>} */
const TITLE = { "L-P": "Axial", "P-L": "Axial", "L-I": "Coronal", "I-L": "Coronal", "P-I": "Sagittal", "I-P": "Sagittal" };

/**
 * @param {import("./types.js").CaseAnswer} answer
 * @returns {Grid}
 */
export function gridOf(answer) {
  const [x, y, z = 1] = answer.shape;
  const [sx, sy, sz = 1] = answer.spacing ?? [1, 1, 1];
  return { form: answer.form, size: [x, y, z], spacing: [sx, sy, sz], unit: answer.unit };
}

/**
 * @param {string} letter where an axis points
 * @param {string[]} growing
 * @returns {boolean} whether the picture runs against it
 */
function runsAgainst(letter, growing) {
  return !growing.includes(letter) && growing.includes(OPPOSITE[letter]);
}

/**
 * @param {Grid} grid
 * @param {PlaneName} name
 * @param {string[]|null} [letters] where each index axis points; as LPS where not known
 * @returns {Plane}
 */
export function planeOf(grid, name, letters = null) {
  const axes = AXES[name];
  const known = letters ?? ["L", "P", "S"];
  const [across, down] = [known[axes[0]], known[axes[1]]];
  const inBody = grid.form === "volume";
  /** @type {[boolean, boolean]} */
  const flip = inBody ? [runsAgainst(across, GROWS.columns), runsAgainst(down, GROWS.rows)] : [false, false];
  const right = flip[0] ? OPPOSITE[across] : across;
  const bottom = flip[1] ? OPPOSITE[down] : down;
  const ways = [right, bottom].map((letter) => ("LR".includes(letter) ? "L" : "AP".includes(letter) ? "P" : "I"));
  const plain = { xy: "Slices", xz: "Along x and z", yz: "Along y and z" }[name];
  return {
    name,
    title: letters && inBody ? (TITLE[ways.join("-")] ?? plain) : plain,
    axes,
    flip,
    width: grid.size[axes[0]],
    height: grid.size[axes[1]],
    depth: grid.size[axes[2]],
    spacing: [grid.spacing[axes[0]], grid.spacing[axes[1]]],
    letters: letters && inBody ? [OPPOSITE[right], right, OPPOSITE[bottom], bottom] : null,
  };
}

/**
 * @param {Grid} grid
 * @param {Plane} plane
 * @param {number} slice
 * @returns {{base: number, column: number, row: number}} index = base + column * u + row * v
 */
export function addressing(grid, plane, slice) {
  const step = [1, grid.size[0], grid.size[0] * grid.size[1]];
  let [column, row] = [step[plane.axes[0]], step[plane.axes[1]]];
  let base = slice * step[plane.axes[2]];
  if (plane.flip[0]) {
    base += (plane.width - 1) * column;
    column = -column;
  }
  if (plane.flip[1]) {
    base += (plane.height - 1) * row;
    row = -row;
  }
  return { base, column, row };
}

/**
 * @param {Uint8Array} labels
 * @param {Grid} grid
 * @param {Plane} plane
 * @param {number} slice
 * @returns {Uint8Array} labels of one slice as it is seen, row by row
 */
export function sliceOf(labels, grid, plane, slice) {
  const { base, column, row } = addressing(grid, plane, slice);
  const seen = new Uint8Array(plane.width * plane.height);
  for (let v = 0, at = 0; v < plane.height; v++) {
    for (let u = 0, from = base + v * row; u < plane.width; u++, at++, from += column) seen[at] = labels[from];
  }
  return seen;
}

/**
 * @param {Plane} plane
 * @param {number[]} point index coordinates x, y and z or frame
 * @returns {{u: number, v: number, slice: number}} where it is seen; the middle of the first pixel is (0.5, 0.5)
 */
export function seenAt(plane, point) {
  const [u, v] = [point[plane.axes[0]] ?? 0, point[plane.axes[1]] ?? 0];
  return {
    u: (plane.flip[0] ? plane.width - 1 - u : u) + 0.5,
    v: (plane.flip[1] ? plane.height - 1 - v : v) + 0.5,
    slice: Math.round(point[plane.axes[2]] ?? 0),
  };
}

/**
 * @param {Plane} plane
 * @param {number} u
 * @param {number} v
 * @param {number} slice
 * @returns {[number, number, number]} index of the pixel that is seen there
 */
export function pixelAt(plane, u, v, slice) {
  const column = Math.floor(u);
  const row = Math.floor(v);
  /** @type {[number, number, number]} */
  const pixel = [0, 0, 0];
  pixel[plane.axes[0]] = plane.flip[0] ? plane.width - 1 - column : column;
  pixel[plane.axes[1]] = plane.flip[1] ? plane.height - 1 - row : row;
  pixel[plane.axes[2]] = slice;
  return pixel;
}
