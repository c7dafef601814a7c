/** Which mask may be changed now. */

import { EditSession } from "./editing.js";

/**
 * @param {import("./view.js").View} view
 * @param {import("./panel.js").Panel} panel
 * @returns {EditSession|string} or why not
 */
export function editable(view, panel) {
  const { scene, mask } = view;
  if (panel.comparing) return "Choose A or B first: the better one can then be corrected.";
  if (panel.subject !== null && mask !== panel.subject) return "This mask is only shown beside; correct the other one.";
  const open = scene.sessions.get(mask);
  if (open) return open;
  const base = scene.open.masks.get(mask);
  if (!base) return "The mask is still on its way.";
  const session = new EditSession(mask, base, scene.open.grid);
  scene.sessions.set(mask, session);
  return session;
}
