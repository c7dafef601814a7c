/** Draws with the keyboard: a cursor on the picture that arrows move, and that Space puts down and lifts. */

/** @type {Record<string, [number, number]>} */
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Cursor {
  /**
   * @param {import("./tools.js").Tools} tools
   * @param {(text: string) => void} say
   */
  constructor(tools, say) {
    this.tools = tools;
    this.say = say;
    /** @type {import("./view.js").View|null} */
    this.view = null;
    this.spot = { u: 0, v: 0 };
  }

  /** @param {import("./view.js").View} view */
  toggle(view) {
    if (this.view) return this.end();
    if (!this.tools.draws) this.tools.choose("brush");
    this.view = view;
    this.spot = { u: Math.floor(view.plane.width / 2) + 0.5, v: Math.floor(view.plane.height / 2) + 0.5 };
    this.#show();
    this.say("The keyboard draws: arrows move, Space puts the tool down and lifts it, Esc ends.");
  }

  end() {
    const view = this.view;
    if (!view) return;
    this.tools.up();
    this.view = null;
    view.trace = null;
    view.scene.changed();
  }

  /**
   * @param {string} name of a key
   * @returns {boolean} whether the cursor used it
   */
  take(name) {
    const view = this.view;
    if (!view) return false;
    const way = WAYS[name.replace("shift+", "")];
    if (way) this.#move(view, way, name.startsWith("shift+") ? 10 : 1);
    else if (name === "Escape") this.end();
    else if (name === "Enter") this.tools.close();
    else if (name === " ") this.#press(view);
    else return false;
    return true;
  }

  /**
   * @param {import("./view.js").View} view
   * @param {[number, number]} way
   * @param {number} far
   */
  #move(view, [du, dv], far) {
    const held = (/** @type {number} */ value, /** @type {number} */ size) => Math.min(size - 0.5, Math.max(0.5, value));
    this.spot = { u: held(this.spot.u + far * du, view.plane.width), v: held(this.spot.v + far * dv, view.plane.height) };
    this.tools.move(view, this.spot);
    this.#show();
  }

  /** @param {import("./view.js").View} view */
  #press(view) {
    if (this.tools.stroke) this.tools.up();
    else this.tools.down(view, { ...this.spot });
    this.#show();
  }

  #show() {
    const view = this.view;
    if (!view) return;
    const corners = this.tools.outline?.corners ?? [];
    const area = ["brush", "eraser"].includes(this.tools.tool);
    view.trace = { corners, cursor: { ...this.spot }, radius: area ? this.tools.radius(view) : 0, down: this.tools.stroke !== null };
    view.scene.changed();
  }
}
