/** From what a person says of a case to an entry of the store, and back where it is taken back. */

import * as api from "./api.js";
import { byId } from "./find.js";
import { wordsOf } from "./messages.js";
import { Outbox, letterOf } from "./outbox.js";
import { Unsent } from "./unsent.js";

/** @typedef {import("./desk.js").Work} Work */

export class Deciding {
  /**
   * @param {import("./desk.js").Desk} desk
   * @param {string} reviewer
   */
  constructor(desk, reviewer) {
    this.desk = desk;
    /** @type {{entries: string[], work: Work}|null} */
    this.last = null;
    this.outbox = new Outbox(reviewer, {
      changed: (letters) => this.unsent?.show(letters),
      saved: (letter, entries) => this.#savedLater(letter, entries),
      refused: (letter, error) => this.desk.messages.warn(`NOT saved: ${letter.name}, ${letter.words}. ${wordsOf(error)} It is kept under "not saved yet".`),
    });
    this.unsent = new Unsent({
      retry: (id) => void this.outbox.retry(id),
      discard: (id) => void this.outbox.discard(id),
      sendAll: () => void this.outbox.sendAll(),
      trouble: () => this.outbox.trouble,
    });
  }

  /** @param {string} action */
  async decide(action) {
    const { work, workbench } = this.desk;
    if (!work || this.desk.busy) return;
    const answer = this.desk.panel.answer(action);
    if (typeof answer === "string") return this.desk.messages.say(answer);
    workbench.tools.up();
    const session = answer.edited ? workbench.session : undefined;
    await this.#send(work, answer, session ? { labels: session.labels.slice(), shape: [...session.grid.size].reverse() } : null);
  }

  /** @param {File} file a mask that was corrected elsewhere */
  async upload(file) {
    const { work } = this.desk;
    if (!work || this.desk.busy) return;
    if (this.desk.panel.comparing) return this.desk.messages.say("Choose A or B first; the upload is the better one, corrected.");
    this.desk.messages.say(`Uploading ${file.name}…`);
    try {
      const mask = await api.uploadMask(work.case, file);
      /** @type {import("./types.js").Decision[]} */
      const decisions = this.desk.panel.chosen ? [{ kind: "preference", value: this.desk.panel.chosen }] : [];
      decisions.push({ kind: "mask", mask, ...(this.desk.panel.subject ? { replaces: this.desk.panel.subject } : {}) });
      if (confirm(`${file.name} fits the image. Save it as the corrected mask of ${work.name}?`)) {
        await this.#send(work, { decisions, words: "corrected mask, uploaded" }, null);
      }
    } catch (error) {
      if (error instanceof api.Refused && error.status < 500 && error.status !== 401) {
        this.desk.messages.warn(`${file.name} was not taken: ${wordsOf(error)}`);
      } else {
        this.desk.failed(error);
      }
    }
  }

  async takeBack() {
    const { last } = this;
    if (!last) return this.desk.messages.say("There is no decision of this visit to take back.");
    try {
      await api.undoDecision(last.entries[0]);
      this.#remember(null);
      this.desk.messages.say(`Taken back: the decision on ${last.work.name}. The case is open again.`);
      await this.desk.openItem(last.work.item);
      void this.desk.queue.load();
    } catch (error) {
      this.desk.failed(error);
    }
  }

  /**
   * @param {Work} work
   * @param {{decisions: import("./types.js").Decision[], words: string}} answer
   * @param {{labels: Uint8Array, shape: number[]}|null} mask of the last mask decision
   */
  async #send(work, answer, mask) {
    this.desk.busy = true;
    this.desk.stopwatch.touch();
    const comment = this.desk.panel.comment.value.trim();
    const place = answer.decisions.findIndex((decision) => decision.kind === "mask");
    const letter = letterOf(this.outbox.reviewer, work, answer.words, {
      lease: this.desk.leases.held?.lease ?? work.lease,
      seconds: this.desk.stopwatch.seconds,
      decisions: answer.decisions,
      ...(comment ? { comment } : {}),
    }, mask ? { ...mask, place } : null);
    try {
      const outcome = await this.outbox.submit(letter);
      this.desk.busy = false;
      if (outcome.state === "refused") return this.desk.failed(outcome.error);
      this.desk.leases.ended();
      this.desk.before.push(work);
      this.desk.work = null;
      if (outcome.state === "saved") await this.#saved(letter, work, outcome.entries);
      else this.desk.messages.say(`NOT saved yet: ${letter.name}, ${letter.words}. It is kept in this browser and sent when the desk answers.`);
      await this.desk.next();
      void this.desk.queue.load();
    } finally {
      this.desk.busy = false;
    }
  }

  /**
   * @param {import("./outbox.js").Letter} letter
   * @param {Work} work
   * @param {string[]} entries
   */
  async #saved(letter, work, entries) {
    await this.desk.drafts.forget(letter.item);
    this.#remember({ entries, work });
    this.desk.messages.say(`Saved: ${letter.name}, ${letter.words}.`, { label: "Take back", run: () => void this.takeBack() });
  }

  /**
   * @param {import("./outbox.js").Letter} letter
   * @param {string[]} entries
   */
  async #savedLater(letter, entries) {
    await this.#saved(letter, { item: letter.item, case: letter.case, name: letter.name, kind: "", lease: "" }, entries);
    if (this.outbox.letters.length === 0) this.desk.messages.calmDown();
    void this.desk.queue.load();
    if (this.desk.waiting && !this.desk.busy) await this.desk.next();
  }

  /** @param {{entries: string[], work: Work}|null} last decision, as far as it can be taken back */
  #remember(last) {
    this.last = last;
    byId("take-back", HTMLButtonElement).disabled = last === null;
  }
}
