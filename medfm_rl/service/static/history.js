/**
 * Undo and redo without end: a step keeps the pixels that it changed, not the mask.
 *
 * @typedef {{name: string, places: Uint32Array, before: Uint8Array, after: Uint8Array}} Step
 */

export class History {
  constructor() {
    /** @type {Step[]} */
    this.done = [];
    /** @type {Step[]} */
    this.undone = [];
  }

  /**
   * @param {string} name what the person did, such as "brush"
   * @param {Map<number, number>} before the value that each changed pixel had
   * @param {Uint8Array} labels as they are now
   * @returns {boolean} whether anything differs
   */
  add(name, before, labels) {
    const places = Uint32Array.from([...before.keys()].filter((place) => labels[place] !== before.get(place)));
    if (places.length === 0) return false;
    this.done.push({
      name,
      places,
      before: Uint8Array.from(places, (place) => /** @type {number} */ (before.get(place))),
      after: Uint8Array.from(places, (place) => labels[place]),
    });
    this.undone = [];
    return true;
  }

  /**
   * @param {Uint8Array} labels changed in place
   * @returns {Step|null} null where nothing is left to undo
   */
  undo(labels) {
    const step = this.done.pop();
    if (!step) return null;
    step.places.forEach((place, at) => (labels[place] = step.before[at]));
    this.undone.push(step);
    return step;
  }

  /**
   * @param {Uint8Array} labels changed in place
   * @returns {Step|null} null where nothing was undone
   */
  redo(labels) {
    const step = this.undone.pop();
    if (!step) return null;
    step.places.forEach((place, at) => (labels[place] = step.after[at]));
    this.done.push(step);
    return step;
  }
}
