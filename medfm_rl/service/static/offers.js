/** Offers edits again that were not saved. */

import { byId } from "./find.js";
import { button } from "./messages.js";

/**
 * @param {import("./drafts.js").Draft} draft of the case that is open
 * @param {() => void} use
 * @param {() => void} discard
 */
export function offerDraft(draft, use, discard) {
  offer(byId("draft", HTMLElement), `You changed this mask at ${new Date(draft.time).toLocaleString()} and did not save it.`, [
    ["Continue with the edit", use],
    ["Discard it", discard],
  ]);
}

/**
 * @param {import("./drafts.js").Draft[]} drafts that an earlier visit left in this browser
 * @param {(item: string) => void} open
 */
export function offerDrafts(drafts, open) {
  if (drafts.length === 0) return;
  const names = drafts.slice(0, 3).map((draft) => draft.name).join(", ");
  const more = drafts.length > 3 ? ` and ${drafts.length - 3} more` : "";
  offer(byId("draft-notice", HTMLElement), `Edits that were not saved: ${names}${more}.`, [
    [`Open ${drafts[0].name}`, () => open(drafts[0].item)],
    ["Later", () => {}],
  ]);
}

/**
 * @param {HTMLElement} place
 * @param {string} text
 * @param {[string, () => void][]} choices each closes the offer
 */
function offer(place, text, choices) {
  const [words, row] = [place.querySelector("p"), place.querySelector(".row")];
  if (!words || !row) return;
  words.textContent = text;
  row.replaceChildren(
    ...choices.map(([label, run]) =>
      button(label, () => {
        place.hidden = true;
        run();
      }),
    ),
  );
  place.hidden = false;
}
