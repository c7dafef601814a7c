/** The list of structures: what is shown, what is drawn, and what the person says of each. */

import { make } from "./find.js";

/** @typedef {"accept"|"reject"|"cannot_tell"} Answer */
/** @typedef {{answer: Answer|null, grade: number|null}} Said */

/** @type {[Answer, string, string][]} */
const ANSWERS = [["accept", "✓", "Accept"], ["reject", "✗", "Reject"], ["cannot_tell", "?", "I cannot tell about"]];

/**
 * @param {import("./types.js").Score|undefined} score
 * @returns {string}
 */
function scoreText(score) {
  if (!score || score.dice === null) return "";
  const short = (/** @type {number} */ value) => value.toFixed(2).replace(/^0/, "");
  const between = score.low !== null && score.high !== null ? ` (${short(score.low)}–${short(score.high)})` : "";
  return `Dice ${short(score.dice)}${between}`;
}

export class StructureList {
  /**
   * @param {HTMLUListElement} list
   * @param {{chosen: (value: number) => void, shown: () => void, answered: () => void}} tell
   */
  constructor(list, tell) {
    this.list = list;
    this.tell = tell;
    /** @type {Map<string, Said>} by name of the structure */
    this.said = new Map();
  }

  /** Whether anything is said of a single structure. */
  get answered() {
    return [...this.said.values()].some((said) => said.answer !== null || said.grade !== null);
  }

  /**
   * @param {import("./scene.js").Scene} scene
   * @param {boolean} ask whether answers by structure make sense
   */
  show(scene, ask) {
    const scores = scene.open.answer.scores ?? {};
    this.said = new Map(scene.structures.map((structure) => [structure.name, { answer: null, grade: null }]));
    this.list.replaceChildren(
      ...scene.structures.map((structure, place) => {
        const row = make("li", "structure");
        row.dataset.value = String(structure.value);
        row.append(this.#eye(structure), this.#name(structure, place), make("span", "score", scoreText(scores[structure.name])));
        if (ask) row.append(this.#answers(structure.name));
        return row;
      }),
    );
    this.select(scene.selected);
  }

  /** @param {number} value of the structure that is drawn */
  select(value) {
    for (const row of this.list.children) {
      const here = row instanceof HTMLElement && row.dataset.value === String(value);
      row.classList.toggle("selected", here);
      row.querySelector(".structure-name")?.setAttribute("aria-pressed", String(here));
    }
  }

  /** @param {{name: string, visible: boolean}} structure */
  #eye(structure) {
    const box = make("input", "eye");
    box.type = "checkbox";
    box.checked = structure.visible;
    box.setAttribute("aria-label", `Show ${structure.name}`);
    box.addEventListener("change", () => {
      structure.visible = box.checked;
      this.tell.shown();
    });
    return box;
  }

  /**
   * @param {{name: string, value: number, colour: string}} structure
   * @param {number} place
   */
  #name(structure, place) {
    const button = make("button", "structure-name");
    button.type = "button";
    button.title = `Draw ${structure.name}`;
    const swatch = make("span", "swatch");
    swatch.style.backgroundColor = structure.colour;
    button.append(swatch, make("span", "", structure.name));
    if (place < 9) button.append(make("kbd", "", String(place + 1)));
    button.addEventListener("click", () => this.tell.chosen(structure.value));
    return button;
  }

  /** @param {string} name */
  #answers(name) {
    const said = /** @type {Said} */ (this.said.get(name));
    const group = make("span", "answers");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", `Answer for ${name}`);
    const buttons = ANSWERS.map(([answer, sign, words]) => {
      const button = make("button", `answer ${answer}`, sign);
      button.type = "button";
      button.setAttribute("aria-label", `${words} ${name}`);
      button.title = `${words} ${name}`;
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        said.answer = said.answer === answer ? null : answer;
        buttons.forEach((other, place) => other.setAttribute("aria-pressed", String(ANSWERS[place][0] === said.answer)));
        this.tell.answered();
      });
      return button;
    });
    const grade = make("select", "structure-grade");
    grade.setAttribute("aria-label", `Grade of ${name}`);
    grade.append(new Option("grade", ""), ...[0, 1, 2, 3, 4].map((value) => new Option(String(value), String(value))));
    grade.addEventListener("change", () => {
      said.grade = grade.value === "" ? null : Number(grade.value);
      this.tell.answered();
    });
    group.append(...buttons, grade);
    return group;
  }
}
