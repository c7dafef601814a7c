/** Window and level: which values of an image become black and white. */

/**
 * @typedef {{centre: number, width: number}} Window
 * @typedef {Uint8Array|Int16Array|Float32Array} Values
 */

/**
 * @param {Values} values of the whole image; channels lie together
 * @param {number} channels 1, or 3 for colour
 * @param {{width: number, height: number}} plane
 * @param {{base: number, column: number, row: number}} address
 * @param {Window} window
 * @param {Uint8ClampedArray} rgba written: what the slice looks like
 */
export function develop(values, channels, plane, address, window, rgba) {
  const scale = 255 / window.width;
  const low = window.centre - window.width / 2;
  const green = channels >= 3 ? 1 : 0;
  const blue = channels >= 3 ? 2 : 0;
  let to = 0;
  for (let v = 0; v < plane.height; v++) {
    let from = (address.base + v * address.row) * channels;
    for (let u = 0; u < plane.width; u++, to += 4, from += address.column * channels) {
      rgba[to] = (values[from] - low) * scale;
      rgba[to + 1] = (values[from + green] - low) * scale;
      rgba[to + 2] = (values[from + blue] - low) * scale;
      rgba[to + 3] = 255;
    }
  }
}

/**
 * A drag over the whole view moves either by the whole range.
 *
 * @param {Window} window
 * @param {[number, number]} range of the image
 * @param {number} across share of the view's width: wider to the right
 * @param {number} down share of its height: darker downwards
 * @returns {Window}
 */
export function dragged(window, range, across, down) {
  const span = Math.max(range[1] - range[0], Number.EPSILON);
  return {
    width: Math.min(2 * span, Math.max(span / 256, window.width + across * span)),
    centre: Math.min(range[1], Math.max(range[0], window.centre + down * span)),
  };
}

/**
 * @param {ArrayBuffer} bytes little-endian
 * @param {string} dtype
 * @returns {Values}
 */
export function valuesOf(bytes, dtype) {
  if (dtype === "uint8") return new Uint8Array(bytes);
  if (dtype === "int16") return new Int16Array(bytes);
  if (dtype === "float32") return new Float32Array(bytes);
  throw new TypeError(`images of ${dtype} cannot be shown`);
}
