/**
 * Which pixels of a slice a stroke covers. Pure: a slice as it is seen goes in, places in it come out. Lengths are in the
 * units of the spacing, so that a brush is round on the screen whatever the pixels are.
 *
 * @typedef {{width: number, height: number, spacing: [number, number]}} Sheet
 * @typedef {{u: number, v: number}} Spot in pixels; the middle of the first pixel is (0.5, 0.5)
 */

/**
 * Pixels whose middle lies within `radius` of the way from one spot to another; at least the pixel under each.
 *
 * @param {Sheet} sheet
 * @param {Spot} from
 * @param {Spot} to
 * @param {number} radius
 * @returns {number[]}
 */
export function brush(sheet, from, to, radius) {
  const [su, sv] = sheet.spacing;
  const low = { u: Math.min(from.u, to.u) - radius / su, v: Math.min(from.v, to.v) - radius / sv };
  const high = { u: Math.max(from.u, to.u) + radius / su, v: Math.max(from.v, to.v) + radius / sv };
  const [du, dv] = [(to.u - from.u) * su, (to.v - from.v) * sv];
  const length = du * du + dv * dv;
  /** @type {Set<number>} */
  const covered = new Set();
  for (let v = Math.max(0, Math.floor(low.v)); v <= Math.min(sheet.height - 1, Math.floor(high.v)); v++) {
    for (let u = Math.max(0, Math.floor(low.u)); u <= Math.min(sheet.width - 1, Math.floor(high.u)); u++) {
      const [pu, pv] = [(u + 0.5 - from.u) * su, (v + 0.5 - from.v) * sv];
      const along = length > 0 ? Math.min(1, Math.max(0, (pu * du + pv * dv) / length)) : 0;
      const [eu, ev] = [pu - along * du, pv - along * dv];
      if (eu * eu + ev * ev <= radius * radius) covered.add(v * sheet.width + u);
    }
  }
  for (const spot of [from, to]) {
    const [u, v] = [Math.floor(spot.u), Math.floor(spot.v)];
    if (u >= 0 && v >= 0 && u < sheet.width && v < sheet.height) covered.add(v * sheet.width + u);
  }
  return [...covered];
}

/**
 * Pixels whose middle lies inside a closed outline (even-odd rule).
 *
 * @param {Sheet} sheet
 * @param {Spot[]} corners
 * @returns {number[]}
 */
export function polygon(sheet, corners) {
  /** @type {number[]} */
  const covered = [];
  if (corners.length < 3) return covered;
  for (let v = 0; v < sheet.height; v++) {
    const y = v + 0.5;
    /** @type {number[]} */
    const crossings = [];
    corners.forEach((start, place) => {
      const end = corners[(place + 1) % corners.length];
      if (start.v <= y === end.v <= y) return;
      crossings.push(start.u + ((y - start.v) / (end.v - start.v)) * (end.u - start.u));
    });
    crossings.sort((one, other) => one - other);
    for (let pair = 0; pair + 1 < crossings.length; pair += 2) {
      const first = Math.max(0, Math.ceil(crossings[pair] - 0.5));
      const last = Math.min(sheet.width - 1, Math.ceil(crossings[pair + 1] - 0.5) - 1);
      for (let u = first; u <= last; u++) covered.push(v * sheet.width + u);
    }
  }
  return covered;
}

/**
 * The connected region of one label (over edges, not corners) around a spot.
 *
 * @param {Uint8Array} labels
 * @param {Sheet} sheet
 * @param {Spot} spot
 * @returns {number[]}
 */
export function region(labels, sheet, spot) {
  const [u, v] = [Math.floor(spot.u), Math.floor(spot.v)];
  if (u < 0 || v < 0 || u >= sheet.width || v >= sheet.height) return [];
  const start = v * sheet.width + u;
  const label = labels[start];
  const met = new Uint8Array(labels.length);
  const found = [start];
  met[start] = 1;
  for (let next = 0; next < found.length; next++) {
    const place = found[next];
    const column = place % sheet.width;
    const around = [
      column > 0 ? place - 1 : -1,
      column < sheet.width - 1 ? place + 1 : -1,
      place - sheet.width,
      place + sheet.width,
    ];
    for (const other of around) {
      if (other < 0 || other >= labels.length || met[other] || labels[other] !== label) continue;
      met[other] = 1;
      found.push(other);
    }
  }
  return found;
}

/**
 * Smooths the outline of one structure: a pixel belongs to it when more than half of the disc around it does. What leaves
 * takes the label that most of the disc's other pixels have.
 *
 * @param {Uint8Array} labels
 * @param {Sheet} sheet
 * @param {number} structure
 * @param {number} radius
 * @param {(label: number) => boolean} mayTake whether a pixel of another label may become the structure
 * @returns {{place: number, label: number}[]} what changes
 */
export function smooth(labels, sheet, structure, radius, mayTake) {
  const [ru, rv] = [Math.ceil(radius / sheet.spacing[0]), Math.ceil(radius / sheet.spacing[1])];
  /** @type {[number, number][]} */
  const disc = [];
  for (let v = -rv; v <= rv; v++) {
    for (let u = -ru; u <= ru; u++) {
      if ((u * sheet.spacing[0]) ** 2 + (v * sheet.spacing[1]) ** 2 <= radius * radius) disc.push([u, v]);
    }
  }
  /** @type {{place: number, label: number}[]} */
  const changes = [];
  const others = new Uint32Array(256);
  for (let v = 0, place = 0; v < sheet.height; v++) {
    for (let u = 0; u < sheet.width; u++, place++) {
      const own = labels[place] === structure;
      let members = 0;
      let pixels = 0;
      others.fill(0);
      for (const [du, dv] of disc) {
        const [x, y] = [u + du, v + dv];
        if (x < 0 || y < 0 || x >= sheet.width || y >= sheet.height) continue;
        pixels++;
        const label = labels[y * sheet.width + x];
        if (label === structure) members++;
        else others[label]++;
      }
      const belongs = 2 * members > pixels || (own && 2 * members === pixels);
      if (belongs && !own && mayTake(labels[place])) changes.push({ place, label: structure });
      if (!belongs && own) changes.push({ place, label: others.indexOf(Math.max(...others)) });
    }
  }
  return changes;
}
