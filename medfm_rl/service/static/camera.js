/** Where one looks in a plane: how far it is enlarged, and which part is in the middle. Views of the same plane share one. */

const CLOSEST = 40;

export class Camera {
  constructor() {
    /** 1 shows the whole plane. */
    this.zoom = 1;
    /** What is in the middle, as a share of the plane's width and height. */
    this.middle = { u: 0.5, v: 0.5 };
  }

  reset() {
    Object.assign(this, new Camera());
  }
}

/**
 * @typedef {{a: number, d: number, e: number, f: number}} Placing screen = (a u + e, d v + f)
 *
 * @param {Camera} camera
 * @param {import("./strokes.js").Sheet} sheet
 * @param {number} width of the canvas
 * @param {number} height
 * @returns {Placing}
 */
export function placing(camera, sheet, width, height) {
  const [su, sv] = sheet.spacing;
  const fit = Math.min(width / (sheet.width * su), height / (sheet.height * sv));
  const [a, d] = [fit * camera.zoom * su, fit * camera.zoom * sv];
  return {
    a,
    d,
    e: width / 2 - camera.middle.u * sheet.width * a,
    f: height / 2 - camera.middle.v * sheet.height * d,
  };
}

/**
 * @param {Placing} place
 * @param {number} x on the canvas
 * @param {number} y
 * @returns {import("./strokes.js").Spot}
 */
export function spotAt(place, x, y) {
  return { u: (x - place.e) / place.a, v: (y - place.f) / place.d };
}

/**
 * Enlarges by a factor; what is under (x, y) stays there.
 *
 * @param {Camera} camera
 * @param {import("./strokes.js").Sheet} sheet
 * @param {{width: number, height: number}} canvas
 * @param {number} factor
 * @param {number} x
 * @param {number} y
 */
export function zoomAt(camera, sheet, canvas, factor, x, y) {
  const spot = spotAt(placing(camera, sheet, canvas.width, canvas.height), x, y);
  camera.zoom = Math.min(CLOSEST, Math.max(1, camera.zoom * factor));
  const after = placing(camera, sheet, canvas.width, canvas.height);
  pan(camera, sheet, canvas, x - (after.a * spot.u + after.e), y - (after.d * spot.v + after.f));
}

/**
 * @param {Camera} camera
 * @param {import("./strokes.js").Sheet} sheet
 * @param {{width: number, height: number}} canvas
 * @param {number} dx pixels of the canvas
 * @param {number} dy
 */
export function pan(camera, sheet, canvas, dx, dy) {
  const place = placing(camera, sheet, canvas.width, canvas.height);
  const held = (/** @type {number} */ value) => Math.min(1, Math.max(0, value));
  camera.middle = {
    u: held(camera.middle.u - dx / (place.a * sheet.width)),
    v: held(camera.middle.v - dy / (place.d * sheet.height)),
  };
}
