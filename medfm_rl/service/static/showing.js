/** Which masks of a case are seen, and which one is spoken of. */

/** @type {Record<string, string>} */
const CAPTIONS = { given: "Given", proposal: "Proposal", mine: "Yours" };

/**
 * @param {import("./loading.js").OpenCase} open where a case has no mask, it gets an empty one to draw on
 * @returns {{shown: import("./workbench.js").Shown[], subject: string|null}} `subject` is null where two are compared
 */
export function masksToShow(open) {
  const { masks } = open.answer;
  const of = (/** @type {string} */ role) => masks.find((mask) => mask.role === role);
  const [a, b] = [of("a"), of("b")];
  if (a && b) return { shown: [{ mask: a.mask, caption: "A" }, { mask: b.mask, caption: "B" }], subject: null };
  const subject = of("mine") ?? of("proposal") ?? of("given") ?? masks[0];
  if (!subject) {
    const [x, y, z] = open.grid.size;
    open.masks.set("", new Uint8Array(x * y * z));
    return { shown: [{ mask: "", caption: "" }], subject: "" };
  }
  const beside = subject.role === "given" ? undefined : of("given");
  if (!beside) return { shown: [{ mask: subject.mask, caption: "" }], subject: subject.mask };
  const shown = [beside, subject].map(({ mask, role }) => ({ mask, caption: CAPTIONS[role] ?? role }));
  return { shown, subject: subject.mask };
}
