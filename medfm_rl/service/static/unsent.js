/** Says whether everything is saved, and shows what is not. */

import { byId, make } from "./find.js";
import { button } from "./messages.js";

export class Unsent {
  /** @param {{retry: (id: string) => void, discard: (id: string) => void, sendAll: () => void, trouble: () => Error|null}} outbox */
  constructor(outbox) {
    this.outbox = outbox;
    this.pill = byId("saved", HTMLButtonElement);
    this.dialog = byId("unsent", HTMLDialogElement);
    this.pill.addEventListener("click", () => this.dialog.showModal());
    byId("send-now", HTMLButtonElement).addEventListener("click", () => outbox.sendAll());
  }

  /** @param {import("./outbox.js").Letter[]} letters */
  show(letters) {
    const count = letters.length;
    this.pill.textContent = count === 0 ? "All saved" : `${count} not saved yet`;
    this.pill.classList.toggle("unsaved", count > 0);
    byId("send-now", HTMLButtonElement).hidden = count === 0;
    const trouble = this.outbox.trouble();
    byId("unsent-title", HTMLElement).textContent = count === 0 ? "All saved" : "Not saved yet";
    byId("unsent-text", HTMLElement).textContent =
      count === 0
        ? "Every decision was confirmed by the desk."
        : `These decisions are kept in this browser, and sent again until the desk confirms them.${trouble ? ` ${trouble.message}` : ""}`;
    byId("unsent-list", HTMLUListElement).replaceChildren(...letters.map((letter) => this.#row(letter)));
  }

  /** @param {import("./outbox.js").Letter} letter */
  #row(letter) {
    const row = make("li", "");
    row.append(make("b", "", letter.name), ` ${letter.words}, ${new Date(letter.time).toLocaleTimeString()}`);
    if (letter.problem === null) return row;
    row.append(make("p", "problem", letter.problem));
    const again = button("Send again", () => this.outbox.retry(letter.id));
    const away = button("Discard", () => {
      if (confirm(`Discard the decision on ${letter.name}? It was never saved.`)) this.outbox.discard(letter.id);
    });
    row.append(again, away);
    return row;
  }
}
