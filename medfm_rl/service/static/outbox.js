/**
 * Decisions on their way. Each has a key of its own, so that it stands once however often it is sent; it is called saved
 * only when the service answered 201, and lies in this browser until then.
 *
 * @typedef {object} Letter
 * @property {string} id the idempotency key
 * @property {string} reviewer
 * @property {string} item
 * @property {string} case
 * @property {string} name of the case
 * @property {string} words what was decided, for messages
 * @property {import("./types.js").DecisionRequest} request
 * @property {{labels: Uint8Array, shape: number[], place: number}|null} mask to be sent first; `place` is its decision
 * @property {number} time
 * @property {string|null} problem why the service refused it
 *
 * @typedef {{state: "saved", entries: string[]}|{state: "waiting"}|{state: "refused", error: Refused}} Outcome
 */

import { Refused, Unreachable, leaseItem, sendDecision, sendMask } from "./api.js";
import { all, drop, keep } from "./database.js";
import { sentence } from "./messages.js";

const [FIRST_PAUSE_MS, LONGEST_PAUSE_MS] = [1000, 30000];

/**
 * @param {unknown} error
 * @returns {boolean} whether the same request can succeed later
 */
function passes(error) {
  if (error instanceof Unreachable) return true;
  return error instanceof Refused && ([401, 408, 429].includes(error.status) || error.status >= 500);
}

/**
 * @param {string} reviewer
 * @param {{item: string, case: string, name: string}} work
 * @param {string} words
 * @param {import("./types.js").DecisionRequest} request
 * @param {Letter["mask"]} mask
 * @returns {Letter}
 */
export function letterOf(reviewer, { item, case: id, name }, words, request, mask) {
  return { id: crypto.randomUUID(), reviewer, item, case: id, name, words, request, mask, time: Date.now(), problem: null };
}

export class Outbox {
  /**
   * @param {string} reviewer
   * @param {{changed: (letters: Letter[]) => void, saved: (letter: Letter, entries: string[]) => void,
   *   refused: (letter: Letter, error: Refused) => void}} tell
   */
  constructor(reviewer, tell) {
    this.reviewer = reviewer;
    this.tell = tell;
    /** @type {Letter[]} */
    this.letters = [];
    this.pause = FIRST_PAUSE_MS;
    /** @type {ReturnType<typeof setTimeout>|undefined} */
    this.alarm = undefined;
    /** @type {Error|null} why decisions wait */
    this.trouble = null;
    /** @type {Set<string>} items whose decision is being sent */
    this.sending = new Set();
    addEventListener("online", () => void this.sendAll());
  }

  /** Takes up what an earlier visit left. */
  async load() {
    const kept = /** @type {Letter[]} */ (await all("outbox"));
    this.letters = kept.filter((letter) => letter.reviewer === this.reviewer).sort((one, other) => one.time - other.time);
    this.tell.changed(this.letters);
    await this.sendAll();
  }

  /**
   * Keeps a decision in the browser, then sends it.
   *
   * @param {Letter} letter
   * @returns {Promise<Outcome>}
   */
  async submit(letter) {
    await keep("outbox", letter);
    this.letters.push(letter);
    this.tell.changed(this.letters);
    try {
      return { state: "saved", entries: await this.#send(letter) };
    } catch (error) {
      if (passes(error)) {
        this.#waitBecause(/** @type {Error} */ (error));
        return { state: "waiting" };
      }
      if (!(error instanceof Refused)) throw error;
      await this.discard(letter.id);
      return { state: "refused", error };
    }
  }

  /** Sends what waits, in the order in which it was decided. */
  async sendAll() {
    clearTimeout(this.alarm);
    const work = async () => {
      for (const letter of this.letters.filter((one) => one.problem === null && !this.sending.has(one.item))) {
        try {
          const entries = await this.#send(letter);
          this.tell.saved(letter, entries);
        } catch (error) {
          if (passes(error)) return this.#waitBecause(/** @type {Error} */ (error));
          if (!(error instanceof Refused)) throw error;
          letter.problem = sentence(error.message, error.remedy);
          await keep("outbox", letter);
          this.tell.changed(this.letters);
          this.tell.refused(letter, error);
        }
      }
    };
    // Two tabs of one browser share the letters; the keys make a second sending harmless, the lock makes it rare.
    if (navigator.locks) await navigator.locks.request("medfm-rl-desk-outbox", work);
    else await work();
  }

  /** @param {string} id */
  async discard(id) {
    await drop("outbox", id);
    this.letters = this.letters.filter((letter) => letter.id !== id);
    this.tell.changed(this.letters);
  }

  /** @param {string} id of a letter that was refused */
  async retry(id) {
    const letter = this.letters.find((one) => one.id === id);
    if (!letter) return;
    letter.problem = null;
    await keep("outbox", letter);
    this.tell.changed(this.letters);
    await this.sendAll();
  }

  /** @param {Error} error */
  #waitBecause(error) {
    this.trouble = error;
    this.tell.changed(this.letters);
    clearTimeout(this.alarm);
    this.alarm = setTimeout(() => void this.sendAll(), this.pause);
    this.pause = Math.min(2 * this.pause, LONGEST_PAUSE_MS);
  }

  /**
   * @param {Letter} letter
   * @returns {Promise<string[]>} ids of its entries
   */
  async #send(letter) {
    this.sending.add(letter.item);
    try {
      if (letter.mask) {
        const sha = await sendMask(letter.case, letter.mask.labels, letter.mask.shape);
        letter.request.decisions[letter.mask.place].mask = sha;
      }
      const { entries } = await this.#post(letter);
      this.pause = FIRST_PAUSE_MS;
      this.trouble = null;
      await this.discard(letter.id);
      return entries;
    } finally {
      this.sending.delete(letter.item);
    }
  }

  /** @param {Letter} letter */
  async #post(letter) {
    try {
      return await sendDecision(letter.item, letter.request, letter.id);
    } catch (error) {
      if (!(error instanceof Refused && error.code === "lease_lost")) throw error;
    }
    // The service took nothing under the old lease, so a new key cannot make the decision stand twice.
    const { lease } = await leaseItem(letter.item);
    const renewed = { ...letter, id: crypto.randomUUID(), request: { ...letter.request, lease } };
    await keep("outbox", renewed);
    await drop("outbox", letter.id);
    Object.assign(letter, renewed);
    return sendDecision(letter.item, letter.request, letter.id);
  }
}
