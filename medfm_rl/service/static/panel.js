/** The panel of decisions: what the person says of a case, as the service takes it. */

import { downloadAddress } from "./api.js";
import { byId, make } from "./find.js";
import { StructureList } from "./structures.js";

/** A place that is right with a higher probability is not worth a look. */
const DOUBTFUL = 0.5;

/**
 * @typedef {import("./types.js").Decision} Decision
 * @typedef {{decisions: Decision[], words: string, edited: boolean}} Answer `edited`: the last mask decision needs its mask
 */

export class Panel {
  /** @param {{chosen: (value: number) => void, shown: () => void, look: (fault: number) => void, doubt: (point: number[]) => void}} tell */
  constructor(tell) {
    this.tell = tell;
    this.box = byId("decision", HTMLElement);
    this.case = "";
    this.comment = byId("comment", HTMLTextAreaElement);
    this.structures = new StructureList(byId("structures", HTMLUListElement), { ...tell, answered: () => this.refresh() });
    /** @type {import("./types.js").MaskEntry[]} */
    this.masks = [];
    /** The mask that is spoken of; null while two are compared. @type {string|null} */
    this.subject = null;
    /** @type {"a"|"b"|null} */
    this.chosen = null;
    this.blind = false;
    this.edited = false;
    this.broken = false;
    byId("no-grade", HTMLButtonElement).addEventListener("click", () => this.setGrade(null));
  }

  /** Whether two masks are compared, and neither was chosen yet. */
  get comparing() {
    return this.blind && this.chosen === null;
  }

  /**
   * @param {import("./scene.js").Scene} scene
   * @param {import("./types.js").MaskEntry[]} masks that are seen
   * @param {string|null} subject
   */
  show(scene, masks, subject) {
    this.box.hidden = false;
    this.case = scene.open.answer.case;
    this.masks = masks;
    this.subject = subject;
    this.blind = subject === null;
    this.chosen = null;
    this.edited = false;
    this.broken = false;
    this.comment.value = "";
    this.setGrade(null);
    this.structures.show(scene, !this.blind);
    this.#facts(scene.open.answer);
    this.refresh();
  }

  /** A case that cannot be shown can still be set aside. */
  showBroken() {
    this.box.hidden = false;
    this.masks = [];
    this.subject = this.chosen = null;
    this.blind = this.edited = false;
    this.broken = true;
    this.comment.value = "";
    byId("facts", HTMLElement).replaceChildren();
    this.refresh();
  }

  hide() {
    this.box.hidden = true;
  }

  /** @param {"a"|"b"} side that is better, and shall be corrected */
  choose(side) {
    this.chosen = side;
    this.subject = this.masks.find((mask) => mask.role === side)?.mask ?? null;
    this.refresh();
  }

  /** @param {number|null} grade */
  setGrade(grade) {
    for (const input of document.querySelectorAll('input[name="grade"]')) {
      if (input instanceof HTMLInputElement) input.checked = grade !== null && input.value === String(grade);
    }
  }

  /** @returns {number|null} */
  get grade() {
    const checked = document.querySelector('input[name="grade"]:checked');
    return checked instanceof HTMLInputElement ? Number(checked.value) : null;
  }

  /** Shows what can be decided now. */
  refresh() {
    byId("compare", HTMLElement).hidden = !this.comparing;
    byId("verdict", HTMLElement).hidden = this.blind || this.edited || this.broken;
    byId("corrected", HTMLElement).hidden = !this.edited && this.chosen === null;
    byId("corrected-title", HTMLElement).textContent =
      this.chosen === null ? "You changed the mask" : `${this.chosen.toUpperCase()} is better; correct it and save`;
    byId("grades", HTMLElement).hidden = this.blind || this.broken;
    byId("structures-box", HTMLElement).hidden = this.broken;
    byId("download", HTMLAnchorElement).href = downloadAddress(this.case, this.subject);
    byId("save-answers", HTMLElement).hidden = this.edited || this.chosen !== null || !this.structures.answered;
  }

  /**
   * @param {string} action
   * @returns {Answer|string} or why it cannot be said
   */
  answer(action) {
    if (this.broken && !["cannot-tell", "unfit"].includes(action)) return "This case cannot be shown: say that you cannot tell (T), or go on to the next (J).";
    if (this.edited && ["accept", "reject"].includes(action)) return "You changed the mask: save it (S), or go back to the mask that was shown (Shift R), then decide.";
    const mask = this.subject ?? undefined;
    switch (action) {
      case "accept":
        if ([...this.structures.said.values()].some((said) => said.answer !== null && said.answer !== "accept")) {
          return "You did not accept every structure: save these answers (S), or take them back first.";
        }
        return this.#with([{ kind: "verdict", value: "accept", mask }], "accepted");
      case "reject":
        if (this.comparing) {
          const both = this.masks.map(({ mask: one }) => /** @type {Decision} */ ({ kind: "verdict", value: "reject", mask: one }));
          return { decisions: both, words: "both rejected", edited: false };
        }
        return this.#with([{ kind: "verdict", value: "reject", mask }], "rejected");
      case "better-a":
      case "better-b":
        return { decisions: [{ kind: "preference", value: action.slice(-1) }], words: `${action.slice(-1).toUpperCase()} is better`, edited: false };
      case "cannot-tell":
        return { decisions: [{ kind: "cannot_tell" }], words: "cannot tell", edited: false };
      case "unfit":
        return { decisions: [{ kind: "unfit" }], words: "not this view or anatomy", edited: false };
      default:
        return this.#save();
    }
  }

  /** @returns {Answer|string} */
  #save() {
    /** @type {Decision[]} */
    const decisions = this.chosen === null ? [] : [{ kind: "preference", value: this.chosen }];
    if (this.edited) {
      decisions.push(this.subject ? { kind: "mask", replaces: this.subject } : { kind: "mask" });
      return { ...this.#with(decisions, "corrected mask"), edited: true };
    }
    if (this.chosen !== null) return { decisions, words: `${this.chosen.toUpperCase()} is better`, edited: false };
    if (!this.structures.answered && this.grade === null) return "Nothing to save yet: accept, reject, grade or correct the mask.";
    return this.#with(decisions, "answers");
  }

  /**
   * Adds grade and answers by structure.
   *
   * @param {Decision[]} decisions
   * @param {string} words
   * @returns {Answer}
   */
  #with(decisions, words) {
    const mask = this.subject ?? undefined;
    if (!this.blind) {
      if (this.grade !== null) decisions.push({ kind: "grade", value: this.grade, mask });
      for (const [structure, said] of this.structures.said) {
        if (said.answer === "cannot_tell") decisions.push({ kind: "cannot_tell", structure });
        else if (said.answer !== null) decisions.push({ kind: "verdict", value: said.answer, structure, mask });
        if (said.grade !== null) decisions.push({ kind: "grade", value: said.grade, structure, mask });
      }
    }
    return { decisions, words, edited: false };
  }

  /** @param {import("./types.js").CaseAnswer} answer */
  #facts(answer) {
    const place = byId("facts", HTMLElement);
    place.replaceChildren();
    if (!this.blind && answer.verdict) {
      const line = make("p", "");
      line.append("Scored: ", make("b", "", answer.verdict), answer.guarantee ? `, guarantee ${answer.guarantee}` : "");
      place.append(line);
    }
    const reasons = this.blind ? [] : (answer.reasons ?? []);
    if (reasons.length) {
      const list = make("ul", "reasons");
      list.append(...reasons.map((reason) => make("li", "", reason)));
      place.append(list);
    }
    // What the service found would give away which mask is which.
    const rules = this.blind ? [] : (answer.rules ?? []);
    const failed = rules.filter((rule) => !rule.passed);
    if (rules.length) {
      place.append(make("h3", "", failed.length ? `${failed.length} of ${rules.length} rules failed` : `${rules.length} of ${rules.length} rules passed`));
    }
    let drawn = 0;
    for (const rule of failed) {
      const line = make("p", "rule");
      if (rule.points.length > 0) {
        const number = drawn++;
        line.append(make("b", "", `${number + 1} `), rule.text, link("Show where", `Show where: ${rule.text}`, () => this.tell.look(number)));
      } else {
        line.append(rule.text);
      }
      place.append(line);
    }
    const worst = (this.blind ? [] : (answer.worst ?? [])).filter((spot) => spot.reward < DOUBTFUL);
    for (const spot of worst) {
      const line = make("p", "rule", `${spot.structure}: right with probability ${spot.reward.toFixed(2).replace(/^0/, "")} at its worst place`);
      line.append(link("Show where", `Show where: worst place of ${spot.structure}`, () => this.tell.doubt(spot.point)));
      place.append(line);
    }
  }
}

/**
 * @param {string} text
 * @param {string} spoken
 * @param {() => void} run
 */
function link(text, spoken, run) {
  const made = make("button", "plain", text);
  made.type = "button";
  made.setAttribute("aria-label", spoken);
  made.addEventListener("click", run);
  return made;
}
