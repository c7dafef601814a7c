/**
 * Edits that were not saved, kept in this browser until they are.
 *
 * @typedef {object} Draft
 * @property {string} id
 * @property {string} reviewer
 * @property {string} item
 * @property {string} case
 * @property {string} name of the case
 * @property {string} mask that was shown
 * @property {number} time milliseconds since 1970
 * @property {Map<number, Uint8Array>} slices labels of what was touched
 */

import { all, drop, find, keep } from "./database.js";

const PAUSE_MS = 400;

export class Drafts {
  /**
   * @param {string} reviewer
   * @param {(problem: string) => void} warn
   */
  constructor(reviewer, warn) {
    this.reviewer = reviewer;
    this.warn = warn;
    /** @type {ReturnType<typeof setTimeout>|undefined} */
    this.waiting = undefined;
    /** @type {(() => Promise<void>)|null} */
    this.pending = null;
  }

  /** @param {string} item */
  #id(item) {
    return `${this.reviewer}/${item}`;
  }

  /**
   * Keeps what was edited, once the hand rests.
   *
   * @param {{item: string, case: string, name: string}} work
   * @param {import("./editing.js").EditSession} session
   */
  later(work, session) {
    clearTimeout(this.waiting);
    this.pending = () => this.#write(work, session);
    this.waiting = setTimeout(() => void this.flush(), PAUSE_MS);
  }

  /** Keeps at once what `later` has put off. */
  async flush() {
    clearTimeout(this.waiting);
    const write = this.pending;
    this.pending = null;
    await write?.();
  }

  /**
   * @param {string} item
   * @returns {Promise<Draft|undefined>}
   */
  async of(item) {
    return find("drafts", this.#id(item));
  }

  /** @returns {Promise<Draft[]>} of this reviewer, the newest first */
  async mine() {
    const drafts = /** @type {Draft[]} */ (await all("drafts"));
    return drafts.filter((draft) => draft.reviewer === this.reviewer).sort((one, other) => other.time - one.time);
  }

  /** @param {string} item */
  async forget(item) {
    clearTimeout(this.waiting);
    this.pending = null;
    await drop("drafts", this.#id(item));
  }

  /**
   * @param {{item: string, case: string, name: string}} work
   * @param {import("./editing.js").EditSession} session
   */
  async #write(work, session) {
    try {
      if (!session.changed) return await drop("drafts", this.#id(work.item));
      await keep("drafts", /** @type {Draft} */ ({
        id: this.#id(work.item),
        reviewer: this.reviewer,
        item: work.item,
        case: work.case,
        name: work.name,
        mask: session.mask,
        time: Date.now(),
        slices: session.touchedSlices(),
      }));
    } catch (error) {
      this.warn(`This browser cannot keep your edit (${error instanceof Error ? error.message : error}). Save it before you leave the page.`);
    }
  }
}
