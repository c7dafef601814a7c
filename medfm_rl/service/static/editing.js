/** A mask that a person changes: labels of the whole grid, what was changed, and the way back. */

import { History } from "./history.js";
import { addressing, sliceOf } from "./grid.js";
import { brush, polygon, region, smooth } from "./strokes.js";

/**
 * @typedef {import("./grid.js").Grid} Grid
 * @typedef {import("./grid.js").Plane} Plane
 * @typedef {import("./strokes.js").Spot} Spot
 * @typedef {{label: number, radius: number, keepOthers: boolean}} Pen radius in units of the spacing
 */

export class EditSession {
  /**
   * @param {string} mask id of the mask that was shown
   * @param {Uint8Array} base its labels, which stay as they are
   * @param {Grid} grid
   */
  constructor(mask, base, grid) {
    this.mask = mask;
    this.base = base;
    this.grid = grid;
    this.labels = base.slice();
    this.history = new History();
    /** Counts changes, so that a view knows when to draw again. */
    this.version = 0;
    /** @type {Set<number>} slices or frames that a draft has to keep */
    this.touched = new Set();
    /** @type {Map<number, number>|null} */
    this.open = null;
    this.differing = 0;
  }

  /** Whether any pixel differs from the mask that was shown. */
  get changed() {
    return this.differing > 0;
  }

  /** Starts a step: everything up to `end` is undone together. */
  begin() {
    this.open ??= new Map();
  }

  /** @param {string} name of the step */
  end(name) {
    if (this.open) this.history.add(name, this.open, this.labels);
    this.open = null;
  }

  undo() {
    if (this.open) this.end("stroke");
    const step = this.history.undo(this.labels);
    if (step) this.#moved(step.places, step.after);
    return step;
  }

  redo() {
    const step = this.history.redo(this.labels);
    if (step) this.#moved(step.places, step.before);
    return step;
  }

  /** Goes back to the mask that was shown; this can be undone. */
  reset() {
    this.begin();
    for (const slice of this.touched) {
      const size = this.grid.size[0] * this.grid.size[1];
      for (let place = slice * size; place < (slice + 1) * size; place++) this.#set(place, this.base[place]);
    }
    this.end("reset");
  }

  /**
   * @param {Plane} plane
   * @param {number} slice
   * @param {Spot} from
   * @param {Spot} to
   * @param {Pen} pen
   */
  paint(plane, slice, from, to, pen) {
    this.#cover(plane, slice, brush(plane, from, to, pen.radius), pen.label, (label) => this.#mayPaint(label, pen));
  }

  /**
   * Takes a structure away; every structure where others need not be kept.
   *
   * @param {Plane} plane
   * @param {number} slice
   * @param {Spot} from
   * @param {Spot} to
   * @param {Pen} pen
   */
  erase(plane, slice, from, to, pen) {
    const mayErase = (/** @type {number} */ label) => !pen.keepOthers || label === pen.label;
    this.#cover(plane, slice, brush(plane, from, to, pen.radius), 0, mayErase);
  }

  /**
   * @param {Plane} plane
   * @param {number} slice
   * @param {Spot} spot
   * @param {Pen} pen
   */
  fill(plane, slice, spot, pen) {
    const found = region(sliceOf(this.labels, this.grid, plane, slice), plane, spot);
    this.#cover(plane, slice, found, pen.label, (label) => this.#mayPaint(label, pen));
  }

  /**
   * @param {Plane} plane
   * @param {number} slice
   * @param {Spot[]} corners
   * @param {Pen} pen
   */
  outline(plane, slice, corners, pen) {
    this.#cover(plane, slice, polygon(plane, corners), pen.label, (label) => this.#mayPaint(label, pen));
  }

  /**
   * @param {Plane} plane
   * @param {number} slice
   * @param {Pen} pen
   */
  smooth(plane, slice, pen) {
    const seen = sliceOf(this.labels, this.grid, plane, slice);
    const { base, column, row } = addressing(this.grid, plane, slice);
    for (const change of smooth(seen, plane, pen.label, pen.radius, (label) => this.#mayPaint(label, pen))) {
      const [u, v] = [change.place % plane.width, Math.floor(change.place / plane.width)];
      this.#set(base + u * column + v * row, change.label);
    }
  }

  /**
   * Takes over labels that were kept elsewhere, as one step.
   *
   * @param {Map<number, Uint8Array>} slices labels of each slice or frame
   * @param {string} name
   */
  restore(slices, name) {
    const size = this.grid.size[0] * this.grid.size[1];
    this.begin();
    for (const [slice, kept] of slices) {
      if (kept.length !== size) throw new RangeError("the draft is of another grid");
      kept.forEach((label, place) => this.#set(slice * size + place, label));
    }
    this.end(name);
  }

  /** @returns {Map<number, Uint8Array>} the slices that a draft has to keep */
  touchedSlices() {
    const size = this.grid.size[0] * this.grid.size[1];
    return new Map([...this.touched].map((slice) => [slice, this.labels.slice(slice * size, (slice + 1) * size)]));
  }

  /**
   * @param {number} label
   * @param {Pen} pen
   */
  #mayPaint(label, pen) {
    return !pen.keepOthers || label === 0 || label === pen.label;
  }

  /**
   * @param {Plane} plane
   * @param {number} slice
   * @param {number[]} places in the slice as it is seen
   * @param {number} label
   * @param {(label: number) => boolean} may
   */
  #cover(plane, slice, places, label, may) {
    const { base, column, row } = addressing(this.grid, plane, slice);
    for (const place of places) {
      const at = base + (place % plane.width) * column + Math.floor(place / plane.width) * row;
      if (may(this.labels[at])) this.#set(at, label);
    }
  }

  /**
   * @param {number} place
   * @param {number} label
   */
  #set(place, label) {
    const before = this.labels[place];
    if (before === label) return;
    if (!this.open) throw new Error("a change outside a step could not be undone");
    if (!this.open.has(place)) this.open.set(place, before);
    this.labels[place] = label;
    this.#count(place, before);
    this.version++;
  }

  /**
   * @param {Uint32Array} places
   * @param {Uint8Array} before
   */
  #moved(places, before) {
    places.forEach((place, at) => this.#count(place, before[at]));
    this.version++;
  }

  /**
   * @param {number} place whose label was `before` until now
   * @param {number} before
   */
  #count(place, before) {
    const shown = this.base[place];
    this.differing += Number(this.labels[place] !== shown) - Number(before !== shown);
    this.touched.add(Math.floor(place / (this.grid.size[0] * this.grid.size[1])));
  }
}
