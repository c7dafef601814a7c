/** The list of work: what is left, of which kind and why, and where one is. */

import { byId, make } from "./find.js";
import { queue as askQueue } from "./api.js";

const PAGE = 50;
/** @type {Record<string, string>} */
export const KINDS = {
  all: "All",
  audit: "Audit",
  learn: "Learn",
  refer: "Referred",
  correct: "To correct",
  compare: "Compare",
  second: "Second reading",
  disagreement: "Disagreement",
  accepted: "Accepted",
};

/**
 * @param {number|null|undefined} seconds
 * @returns {string}
 */
export function spoken(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  return seconds < 90 ? `${Math.round(seconds)} s` : `${(seconds / 60).toFixed(1)} min`;
}

export class Queue {
  /**
   * @param {(item: import("./types.js").QueueItem) => void} open
   * @param {(error: unknown) => void} failed
   * @param {() => void} reached the service answered
   */
  constructor(open, failed, reached) {
    this.open = open;
    this.failed = failed;
    this.reached = reached;
    this.kind = "all";
    /** @type {import("./types.js").QueueItem[]} */
    this.items = [];
    this.left = 0;
    this.current = "";
    this.asked = 0;
    this.list = byId("items", HTMLOListElement);
    this.kinds = byId("kinds", HTMLElement);
    this.more = byId("more", HTMLButtonElement);
    this.text = byId("find-text", HTMLInputElement);
    this.state = byId("find-state", HTMLSelectElement);
    this.more.addEventListener("click", () => void this.load(this.items.length));
    this.state.addEventListener("change", () => void this.load());
    /** @type {ReturnType<typeof setTimeout>|undefined} */
    let typing = undefined;
    this.text.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => void this.load(), 250);
    });
  }

  /** Kinds that the next case may be of; all where none is chosen. */
  get wanted() {
    return this.kind === "all" ? undefined : [this.kind];
  }

  /** @param {number} [offset] items that are shown already */
  async load(offset = 0) {
    const asked = ++this.asked;
    try {
      const answer = await askQueue({ kind: this.kind, state: this.state.value, text: this.text.value.trim(), offset, limit: PAGE });
      this.reached();
      // A slower answer to an older question must not replace a newer one.
      if (asked === this.asked) this.#show(answer, offset);
    } catch (error) {
      this.failed(error);
    }
  }

  /** Brings a list up to date that nobody has unfolded or typed into. */
  async refresh() {
    if (this.items.length <= PAGE && !this.list.contains(document.activeElement)) await this.load();
  }

  /** @param {string} item that is open now */
  mark(item) {
    this.current = item;
    for (const button of this.list.querySelectorAll("button")) {
      const here = button.dataset.item === item;
      button.toggleAttribute("aria-current", false);
      if (here) {
        button.setAttribute("aria-current", "true");
        this.#scrollTo(button);
      }
    }
  }

  /**
   * Within the list only: the page itself stays where the person is.
   *
   * @param {HTMLElement} button
   */
  #scrollTo(button) {
    const own = this.list.scrollHeight > this.list.clientHeight + 1;
    const scroller = own ? this.list : this.list.closest(".queue");
    if (!scroller || scroller.scrollHeight <= scroller.clientHeight + 1) return;
    const [box, seen] = [button.getBoundingClientRect(), scroller.getBoundingClientRect()];
    if (box.top < seen.top) scroller.scrollTop += box.top - seen.top;
    else if (box.bottom > seen.bottom) scroller.scrollTop += box.bottom - seen.bottom;
  }

  /**
   * @param {import("./types.js").QueueAnswer} answer
   * @param {number} offset
   */
  #show(answer, offset) {
    this.items = offset === 0 ? answer.items : [...this.items, ...answer.items];
    this.left = Object.entries(answer.left).reduce((sum, [kind, count]) => sum + (kind === "all" ? 0 : count), 0);
    byId("left", HTMLElement).textContent = String(this.left);
    byId("done-today", HTMLElement).textContent = answer.done ? ` · ${answer.done} done` : "";
    byId("median", HTMLElement).textContent = spoken(answer.median_seconds);
    this.more.hidden = this.items.length >= answer.total;
    byId("no-items", HTMLElement).hidden = this.items.length > 0;
    this.#chips(answer.left);
    this.list.replaceChildren(...this.items.map((item) => this.#row(item)));
    this.mark(this.current);
  }

  /** @param {Record<string, number>} left */
  #chips(left) {
    const focused = this.kinds.contains(document.activeElement);
    const chips = Object.entries(KINDS).filter(([kind]) => kind === "all" || kind in left).map(([kind, name]) => {
      const chip = make("button", "chip", name);
      chip.type = "button";
      chip.append(make("b", "", String(kind === "all" ? this.left : left[kind])));
      chip.setAttribute("aria-pressed", String(kind === this.kind));
      chip.addEventListener("click", () => {
        this.kind = kind;
        void this.load();
      });
      return chip;
    });
    this.kinds.replaceChildren(...chips);
    if (focused) chips.find((chip) => chip.getAttribute("aria-pressed") === "true")?.focus();
  }

  /** @param {import("./types.js").QueueItem} item */
  #row(item) {
    const row = make("li", "");
    const button = make("button", `item item-${item.state}`);
    button.type = "button";
    button.dataset.item = item.item;
    const why = make("span", "item-reason");
    why.append(make("b", "", KINDS[item.kind] ?? item.kind), ` ${item.reason}`);
    button.append(make("span", "item-name", item.name), why);
    const state = item.state === "done" ? (item.by_me ? "decided by you" : "decided") : item.state === "leased" && !item.by_me ? "somebody works on it" : "";
    if (state) button.append(make("span", "item-state", state));
    button.addEventListener("click", () => this.open(item));
    row.append(button);
    return row;
  }
}
