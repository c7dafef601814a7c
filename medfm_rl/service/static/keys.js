/** The keyboard: from an event to an action of the table. */

import { ACTIONS } from "./actions.js";

/**
 * @param {KeyboardEvent} event
 * @returns {string} such as "a", "shift+a", "ctrl+z", "shift+Digit3", "ArrowUp"; "" for what the desk leaves to the browser
 */
export function keyName(event) {
  if (event.altKey && !event.getModifierState("AltGraph")) return "";
  const control = (event.ctrlKey || event.metaKey) && !event.getModifierState("AltGraph") ? "ctrl+" : "";
  if (event.shiftKey && /^Digit\d$/.test(event.code)) return `${control}shift+${event.code}`;
  const letter = event.key.length === 1;
  const shifted = event.shiftKey && (!letter || event.key.toLowerCase() !== event.key.toUpperCase());
  return `${control}${shifted ? "shift+" : ""}${letter ? event.key.toLowerCase() : event.key}`;
}

/**
 * @param {EventTarget|null} target
 * @param {string} name of the key
 * @returns {boolean} whether the element that has the focus uses the key itself
 */
function usesItself(target, name) {
  if (!(target instanceof HTMLElement)) return false;
  if (target.closest("dialog")) return true;
  if (target.matches("textarea, select, input:not([type]), input[type=text], input[type=search]")) return true;
  const keys = [" ", "Enter"];
  if (target.matches("input[type=range], input[type=radio]")) keys.push("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight");
  return target.matches("button, a, summary, input, label") && keys.includes(name);
}

/**
 * @param {{first: (name: string) => boolean, comparing: () => boolean, single: () => boolean, run: (id: string, key: string) => void}} desk
 *   `first` may take a key before the table; `single` says whether keys without Ctrl are wanted
 */
export function listenToKeys(desk) {
  addEventListener("keydown", (event) => {
    const name = keyName(event);
    if (event.defaultPrevented || usesItself(event.target, name)) return;
    if (desk.first(name)) return event.preventDefault();
    // Letters that act without a modifier can be switched off (WCAG 2.1.4); the others cannot be met by chance.
    if (!desk.single() && name.replace("shift+", "").length === 1) return;
    const action = ACTIONS.find((one) => one.keys.includes(name) && (one.compare ?? desk.comparing()) === desk.comparing());
    if (!action) return;
    event.preventDefault();
    if (!event.repeat || ["Go", "Look", "Change"].includes(action.group)) desk.run(action.id, name);
  });
}
