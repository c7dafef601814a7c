/** The middle of the page: the views of the open case, and everything that moves or changes them. */

import { areas } from "./areas.js";
import { zoomAt } from "./camera.js";
import { Chart } from "./chart.js";
import { Player } from "./clip.js";
import { Cursor } from "./cursor.js";
import { byId, make } from "./find.js";
import { listen } from "./gestures.js";
import { pixelAt } from "./grid.js";
import { dragged } from "./level.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";

/** @typedef {{mask: string, caption: string}} Shown */

export class Workbench {
  /**
   * @param {{session: (view: View) => import("./editing.js").EditSession|null, edited: () => void, say: (text: string) => void}} tell
   */
  constructor(tell) {
    this.tell = tell;
    /** @type {import("./scene.js").Scene|null} */
    this.scene = null;
    /** @type {View[]} */
    this.views = [];
    /** @type {Shown[]} */
    this.shown = [];
    this.main = 0;
    this.used = 0;
    this.tools = new Tools({ session: tell.session, edited: () => this.#edited() });
    this.cursor = new Cursor(this.tools, tell.say);
    /** @type {Player|null} */
    this.player = null;
    this.place = byId("views", HTMLElement);
    this.slider = byId("slice", HTMLInputElement);
    this.chart = new Chart(/** @type {SVGSVGElement} */ (/** @type {unknown} */ (byId("chart", SVGElement))), (frame) => this.step(0, frame));
    this.slider.addEventListener("input", () => this.step(0, Number(this.slider.value)));
    byId("speed", HTMLSelectElement).addEventListener("change", (event) => {
      if (this.player) this.player.speed = Number(/** @type {HTMLSelectElement} */ (event.target).value);
    });
    new ResizeObserver(() => {
      this.#arrange();
      this.draw();
    }).observe(this.place);
    this.#listenToSize();
  }

  /** The view that was used last. */
  get view() {
    return this.views[Math.min(this.used, this.views.length - 1)];
  }

  /**
   * @param {import("./scene.js").Scene} scene
   * @param {Shown[]} shown masks, one or two
   */
  open(scene, shown) {
    this.close();
    this.scene = scene;
    this.shown = shown;
    this.main = 0;
    scene.watch(() => this.draw());
    this.#build();
    const clip = scene.open.grid.form === "clip";
    if (clip) {
      this.player = new Player(scene.open.grid.size[2], scene.open.answer.times, (frame) => scene.goTo(scene.planes[0], frame));
      this.player.speed = Number(byId("speed", HTMLSelectElement).value);
    }
    byId("play", HTMLElement).hidden = byId("speed-label", HTMLElement).hidden = !clip;
    byId("chart", SVGElement).toggleAttribute("hidden", !clip);
    this.drawChart();
  }

  close() {
    this.cursor.end();
    this.tools.cancel();
    this.player?.stop();
    this.player = null;
    this.scene = null;
    this.views = [];
    this.place.querySelectorAll("figure").forEach((figure) => figure.remove());
    this.place.dataset.layout = "empty";
    byId("steps", HTMLElement).hidden = true;
    byId("chart", SVGElement).toggleAttribute("hidden", true);
    byId("readout", HTMLElement).textContent = "";
    this.reflect();
  }

  /** A clip plays by itself once it is here, unless the person's system asks for less motion. */
  ready() {
    if (this.player && !matchMedia("(prefers-reduced-motion: reduce)").matches) this.play();
  }

  play() {
    if (!this.player || !this.scene) return;
    this.player.frame = this.scene.position[2];
    if (this.player.playing) this.player.stop();
    else this.player.play();
    this.reflect();
  }

  draw() {
    const scene = this.scene;
    if (!scene) return;
    for (const view of this.views) view.draw();
    const plane = this.view.plane;
    const slice = scene.sliceOf(plane);
    this.slider.max = String(plane.depth - 1);
    this.slider.value = String(slice);
    const times = scene.open.answer.times;
    const text = `${slice + 1} of ${plane.depth}${this.player && times ? `, ${times[slice].toFixed(2)} s` : ""}`;
    byId("slice-text", HTMLElement).textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
    byId("steps", HTMLElement).hidden = plane.depth === 1;
    byId("slice-name", HTMLElement).textContent = this.player ? "Frame" : `${plane.title}, slice`;
    if (this.player) this.chart.point(slice);
  }

  drawChart() {
    const scene = this.scene;
    if (!scene || !this.player) return;
    const { grid } = scene.open;
    const lines = this.shown.flatMap(({ mask, caption }, place) => {
      const labels = scene.labelsOf(mask).labels;
      const structures = scene.structures.filter((one) => one.visible && (this.shown.length === 1 || one.value === scene.selected));
      return labels ? structures.map((one) => ({ name: [one.name, caption].filter(Boolean).join(" "), values: areas(labels, grid, one.value), colour: one.colour, dashed: place > 0 })) : [];
    });
    const times = this.player.starts;
    this.chart.draw(times, lines, grid.unit === "mm" ? "cm²" : "pixels");
    this.chart.point(scene.position[2]);
  }

  /**
   * @param {number} by slices or frames
   * @param {number} [to] instead
   */
  step(by, to) {
    const scene = this.scene;
    if (!scene) return;
    this.stopPlaying();
    const plane = this.view.plane;
    const next = (to ?? scene.sliceOf(plane)) + by;
    // A clip is a loop; a volume has ends.
    scene.goTo(plane, this.player ? (next + plane.depth) % plane.depth : next);
  }

  stopPlaying() {
    if (this.player?.playing) this.play();
  }

  /**
   * @param {number} across share of the range
   * @param {number} down
   */
  level(across, down) {
    if (!this.scene) return;
    this.scene.window = dragged(this.scene.window, this.scene.open.answer.range, across, down);
    this.scene.changed();
    this.#sayWindow();
  }

  resetWindow() {
    if (!this.scene) return;
    this.scene.window = { ...this.scene.open.answer.window };
    this.scene.changed();
  }

  /** @param {number} factor */
  zoom(factor) {
    const view = this.view;
    if (!this.scene || !view) return;
    zoomAt(view.camera, view.plane, view.canvas, factor, view.canvas.width / 2, view.canvas.height / 2);
    this.scene.changed();
  }

  fit() {
    for (const camera of Object.values(this.scene?.cameras ?? {})) camera.reset();
    this.scene?.changed();
  }

  /** Enlarges the next plane. */
  turn() {
    const scene = this.scene;
    if (!scene || scene.planes.length === 1) return;
    this.enlarge((this.main + 1) % scene.planes.length);
  }

  /** @param {number} plane */
  enlarge(plane) {
    this.cursor.end();
    this.tools.cancel();
    this.main = plane;
    this.#build();
  }

  /**
   * @param {number[]} point that shall be seen
   * @param {number|null} fault that is written out there
   */
  look(point, fault) {
    if (!this.scene) return;
    this.stopPlaying();
    this.scene.pointedOut = fault;
    this.scene.faultsShown = true;
    this.scene.lookAt(point);
    this.reflect();
  }

  /** @param {import("./tools.js").ToolName} tool */
  choose(tool) {
    this.tools.choose(tool);
    for (const view of this.views) view.trace = null;
    if (this.cursor.view && !this.tools.draws) this.cursor.end();
    this.stopPlaying();
    this.reflect();
    this.scene?.changed();
  }

  /** @param {number} size radius of the brush, in pixels */
  resize(size) {
    this.tools.size = Math.min(40, Math.max(0.5, size));
    byId("size", HTMLInputElement).value = String(this.tools.size);
    byId("size-text", HTMLElement).textContent = String(this.tools.size);
    for (const view of this.views) if (view.trace?.radius) view.trace.radius = this.tools.radius(view);
    this.scene?.changed();
  }

  /** Buttons show what is on. */
  reflect() {
    const scene = this.scene;
    /** @type {Record<string, boolean>} */
    const on = { mask: !!scene?.maskShown, filling: scene?.style === "filling", rewards: !!scene?.rewardsShown, faults: !!scene?.faultsShown && scene.faults.length > 0 };
    for (const button of document.querySelectorAll("#tools button")) {
      if (!(button instanceof HTMLButtonElement)) continue;
      const { tool, flag } = button.dataset;
      if (tool) button.setAttribute("aria-pressed", String(tool === this.tools.tool));
      if (flag) button.setAttribute("aria-pressed", String(on[flag] ?? false));
      button.disabled = !scene || (flag === "rewards" && !scene.open.answer.has_rewards) || (flag === "faults" && scene.faults.length === 0);
    }
    const session = scene ? this.session : undefined;
    for (const [id, able] of /** @type {[string, boolean][]} */ ([["undo", !!session?.history.done.length], ["redo", !!session?.history.undone.length]])) {
      const button = document.querySelector(`#tools [data-action="${id}"]`);
      if (button instanceof HTMLButtonElement) button.disabled = !able;
    }
    const play = byId("play", HTMLElement);
    play.setAttribute("aria-pressed", String(this.player?.playing ?? false));
    play.setAttribute("aria-label", this.player?.playing ? "Pause" : "Play");
  }

  /** The mask that is being changed, if any. */
  get session() {
    return this.scene && this.views.length ? this.scene.sessions.get(this.view.mask) ?? [...this.scene.sessions.values()][0] : undefined;
  }

  #build() {
    const scene = this.scene;
    if (!scene) return;
    this.place.querySelectorAll("figure").forEach((figure) => figure.remove());
    const order = [this.main, ...scene.planes.keys()].filter((plane, place, all) => all.indexOf(plane) === place);
    const pair = this.shown.length > 1;
    const wanted = pair
      ? this.shown.map((shown) => ({ shown, plane: order[0] }))
      : order.map((plane) => ({ shown: this.shown[0], plane }));
    this.used = 0;
    this.views = wanted.map(({ shown, plane }, place) => this.#figure(scene, shown, plane, place));
    this.place.dataset.layout = wanted.length === 1 ? "single" : "planes";
    this.#arrange();
    this.reflect();
    this.draw();
  }

  /** Two masks lie side by side, or one above the other where that makes them larger. */
  #arrange() {
    if (this.shown.length < 2 || this.views.length < 2) return;
    const { plane } = this.views[0];
    const [width, height] = [plane.width * plane.spacing[0], plane.height * plane.spacing[1]];
    const box = this.place.getBoundingClientRect();
    const beside = Math.min(box.width / 2 / width, box.height / height);
    const above = Math.min(box.width / width, box.height / 2 / height);
    this.place.dataset.layout = above > beside ? "stack" : "pair";
  }

  /**
   * @param {import("./scene.js").Scene} scene
   * @param {Shown} shown
   * @param {number} plane
   * @param {number} place
   */
  #figure(scene, shown, plane, place) {
    const figure = make("figure", "view");
    const canvas = make("canvas", "");
    const name = [shown.caption, scene.planes.length > 1 ? scene.planes[plane].title : ""].filter(Boolean).join(" · ");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "picture");
    canvas.setAttribute("aria-label", `Picture ${name} of ${scene.open.answer.name}; press ? for the keys`);
    figure.append(canvas);
    if (name) {
      const caption = make("figcaption", shown.caption ? "letter" : "", name);
      figure.append(caption);
    }
    if (place > 0 && this.shown.length === 1) {
      const larger = make("button", "enlarge", "Enlarge");
      larger.type = "button";
      larger.setAttribute("aria-label", `Enlarge ${name}`);
      larger.addEventListener("click", () => this.enlarge(plane));
      figure.append(larger);
    }
    this.place.append(figure);
    const view = new View(canvas, scene, scene.planes[plane], shown.mask);
    const use = () => {
      this.used = this.views.indexOf(view);
    };
    canvas.addEventListener("focus", use);
    listen(view, this.tools, {
      used: () => {
        use();
        if (this.tools.draws) this.stopPlaying();
      },
      windowed: () => this.#sayWindow(),
      pointed: (one, spot) => this.#read(one, spot),
      step: (one, by) => {
        this.used = this.views.indexOf(one);
        this.step(by);
      },
    });
    return view;
  }

  #edited() {
    this.reflect();
    this.drawChart();
    this.tell.edited();
  }

  #sayWindow() {
    const window = this.scene?.window;
    if (window) byId("readout", HTMLElement).textContent = `level ${window.centre.toFixed(0)}, window ${window.width.toFixed(0)}`;
  }

  /**
   * @param {View} view
   * @param {import("./strokes.js").Spot|null} spot
   */
  #read(view, spot) {
    const { plane, scene } = view;
    const inside = spot && spot.u >= 0 && spot.v >= 0 && spot.u < plane.width && spot.v < plane.height;
    const values = scene.open.values;
    if (!inside || !values) return;
    const { size } = scene.open.grid;
    const pixel = pixelAt(plane, spot.u, spot.v, scene.sliceOf(plane));
    const index = (pixel[2] * size[1] + pixel[1]) * size[0] + pixel[0];
    const label = scene.labelsOf(view.mask).labels?.[index] ?? 0;
    const { channels } = scene.open.answer;
    const value = Array.from(values.slice(index * channels, (index + 1) * channels), (one) => Math.round(one)).join(", ");
    const name = label ? (scene.structureOf(label)?.name ?? `label ${label}`) : "background";
    const shownPixel = scene.open.grid.form === "image" ? pixel.slice(0, 2) : pixel;
    byId("readout", HTMLElement).textContent = `(${shownPixel.join(", ")})  value ${value}  ${name}`;
  }

  #listenToSize() {
    const size = byId("size", HTMLInputElement);
    size.addEventListener("input", () => this.resize(Number(size.value)));
    const others = byId("keep-others", HTMLInputElement);
    others.addEventListener("change", () => {
      this.tools.keepOthers = others.checked;
    });
  }
}
