/** The bar above the picture: which case is open, and why; and what is said where none is. */

import { byId } from "./find.js";
import { KINDS } from "./queue.js";

/**
 * @param {import("./types.js").CaseAnswer} answer
 * @param {string} kind
 * @param {string} reason
 */
export function showCase(answer, kind, reason) {
  byId("nothing", HTMLElement).hidden = true;
  const name = byId("case-name", HTMLElement);
  name.textContent = answer.name;
  const tag = byId("case-kind", HTMLElement);
  tag.textContent = KINDS[kind] ?? kind;
  tag.hidden = kind === "";
  byId("case-simulated", HTMLElement).hidden = !answer.simulated;
  byId("case-reason", HTMLElement).textContent = reason;
  document.title = `${answer.name} · medfm-rl desk`;
  // A screen reader begins to read here.
  name.focus({ preventScroll: true });
}

/**
 * The name above the picture stays that of the picture until the new one is there.
 *
 * @param {string} name of a case that is on its way
 */
export function showComing(name) {
  byId("nothing-text", HTMLElement).textContent = `Opening ${name}…`;
  byId("start", HTMLElement).hidden = true;
}

/**
 * @param {string} text why no case is open
 * @param {boolean} more whether there is anything to open
 */
export function showNone(text, more) {
  byId("case-name", HTMLElement).textContent = "No case is open";
  byId("case-reason", HTMLElement).textContent = "";
  for (const id of ["case-kind", "case-simulated", "draft"]) byId(id, HTMLElement).hidden = true;
  byId("nothing", HTMLElement).hidden = false;
  byId("nothing-text", HTMLElement).textContent = text;
  byId("start", HTMLElement).hidden = !more;
  document.title = "Review · medfm-rl desk";
}
