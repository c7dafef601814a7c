/** Who is signed in, and the way out. */

import { UNDER, signOut } from "./api.js";
import { byId } from "./find.js";
import { wordsOf } from "./messages.js";

/**
 * @param {import("./types.js").Me} me
 * @param {(problem: string) => void} warn
 * @param {() => Promise<boolean>} [mayLeave] asked before; what is not saved yet stays behind
 */
export function showVisitor(me, warn, mayLeave) {
  byId("reviewer", HTMLElement).textContent = me.reviewer;
  byId("sign-out", HTMLButtonElement).addEventListener("click", async () => {
    try {
      if (mayLeave && !(await mayLeave())) return;
      await signOut();
      location.assign(`${UNDER}/login`);
    } catch (error) {
      warn(wordsOf(error));
    }
  });
}
