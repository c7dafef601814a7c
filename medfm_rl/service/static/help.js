/** The overlay that shows all keys. */

import { ACTIONS, written } from "./actions.js";
import { byId, make } from "./find.js";

const KEPT = "medfm-rl-desk-single-keys";

export class Help {
  constructor() {
    this.dialog = byId("help", HTMLDialogElement);
    this.box = byId("single-keys", HTMLInputElement);
    this.box.checked = localStorage.getItem(KEPT) !== "off";
    this.box.addEventListener("change", () => localStorage.setItem(KEPT, this.box.checked ? "on" : "off"));
    const groups = [...new Set(ACTIONS.map((action) => action.group))];
    byId("help-keys", HTMLElement).replaceChildren(...groups.map(section));
  }

  /** Whether keys without Ctrl act. */
  get singleKeys() {
    return this.box.checked;
  }

  show() {
    this.dialog.showModal();
  }
}

/** @param {string} group */
function section(group) {
  const list = make("dl", "");
  for (const action of ACTIONS.filter((one) => one.group === group)) {
    const term = make("dt", "");
    const ends = action.keys.length > 3 ? [action.keys[0], action.keys[action.keys.length - 1]] : action.keys.slice(0, 2);
    ends.forEach((key, place) => {
      if (place > 0) term.append(action.keys.length > 3 ? " to " : " or ");
      term.append(make("kbd", "", written(key)));
    });
    list.append(term, make("dd", "", action.compare ? `${action.text} (when two are compared)` : action.text));
  }
  const made = make("section", "");
  made.append(make("h3", "", group), list);
  return made;
}
