/** Draws one plane of a case on a canvas. */

import { placing } from "./camera.js";
import { DOUBT, FAULT, channelsOf } from "./colours.js";
import { areaOf, boxes, pathOf, polygons, segments } from "./contours.js";
import { addressing, seenAt, sliceOf } from "./grid.js";
import { develop } from "./level.js";

/** Beyond this many screen pixels a pixel, single pixels are shown as they are. */
const SHARP_FROM = 16;
const FILLING = 110;
/** Radius of the ring around a place where a rule failed. */
const RING_PX = 11;

/**
 * What a tool wants drawn above the picture.
 *
 * @typedef {object} Trace
 * @property {import("./strokes.js").Spot[]} corners of a polygon on its way
 * @property {import("./strokes.js").Spot|null} cursor
 * @property {number} radius of the brush, 0 for none
 * @property {boolean} down whether a keyboard's pen is on the picture
 */

export class View {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {import("./scene.js").Scene} scene
   * @param {import("./grid.js").Plane} plane
   * @param {string} mask id
   */
  constructor(canvas, scene, plane, mask) {
    this.canvas = canvas;
    this.scene = scene;
    this.plane = plane;
    this.mask = mask;
    /** @type {Trace|null} */
    this.trace = null;
    const context = canvas.getContext("2d");
    if (!context) throw new Error("this browser gives no canvas to draw on");
    this.context = context;
    this.sheets = { image: new Layer(plane), filling: new Layer(plane), doubt: new Layer(plane) };
    this.paths = { key: "", of: /** @type {Map<number, {line: Path2D, area: Path2D}>} */ (new Map()) };
  }

  get camera() {
    return this.scene.cameras[this.plane.name];
  }

  get placing() {
    return placing(this.camera, this.plane, this.canvas.width, this.canvas.height);
  }

  /** Takes the size that the page gives it, in the screen's own pixels. */
  fit() {
    const box = this.canvas.getBoundingClientRect();
    const dense = devicePixelRatio || 1;
    const [width, height] = [Math.max(1, Math.round(box.width * dense)), Math.max(1, Math.round(box.height * dense))];
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
  }

  draw() {
    this.fit();
    const { context, scene, placing: place } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.setTransform(place.a, 0, 0, place.d, place.e, place.f);
    context.imageSmoothingEnabled = place.a < SHARP_FROM;
    context.imageSmoothingQuality = "high";
    this.#image();
    context.imageSmoothingEnabled = false;
    if (scene.rewardsShown && scene.open.rewards) this.#doubt(scene.open.rewards);
    const { labels, version } = scene.labelsOf(this.mask);
    if (scene.maskShown && labels) {
      if (scene.style === "filling") this.#filling(labels, version);
      this.#contours(labels, version, place);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (scene.faultsShown) this.#faults(place);
    if (scene.planes.length > 1) this.#crosshair(place);
    if (this.plane.letters) this.#letters(this.plane.letters);
    if (this.trace) this.#trace(this.trace, place);
  }

  #image() {
    const { scene, plane } = this;
    const { values, answer, grid } = scene.open;
    if (!values) return;
    const slice = scene.sliceOf(plane);
    const key = `${slice}/${scene.version}/${scene.window.centre}/${scene.window.width}`;
    this.sheets.image.show(this.context, key, (rgba) =>
      develop(values, answer.channels, plane, addressing(grid, plane, slice), scene.window, rgba),
    );
  }

  /** @param {Uint8Array} rewards */
  #doubt(rewards) {
    const { scene, plane } = this;
    const slice = scene.sliceOf(plane);
    const [red, green, blue] = channelsOf(DOUBT);
    this.sheets.doubt.show(this.context, String(slice), (rgba) => {
      sliceOf(rewards, scene.open.grid, plane, slice).forEach((right, at) => {
        rgba.set([red, green, blue, (255 - right) * 0.8], 4 * at);
      });
    });
  }

  /**
   * @param {Uint8Array} labels
   * @param {number} version
   */
  #filling(labels, version) {
    const { scene, plane } = this;
    const slice = scene.sliceOf(plane);
    const shown = scene.structures.filter((structure) => structure.visible);
    const key = `${slice}/${version}/${shown.map((structure) => structure.value)}`;
    this.sheets.filling.show(this.context, key, (rgba) => {
      const colours = new Map(shown.map((structure) => [structure.value, channelsOf(structure.colour)]));
      sliceOf(labels, scene.open.grid, plane, slice).forEach((label, at) => {
        const colour = colours.get(label);
        rgba.set(colour ? [...colour, FILLING] : [0, 0, 0, 0], 4 * at);
      });
    });
  }

  /**
   * @param {Uint8Array} labels
   * @param {number} version
   * @param {import("./camera.js").Placing} place
   */
  #contours(labels, version, place) {
    const { context, scene, plane } = this;
    const slice = scene.sliceOf(plane);
    const key = `${slice}/${version}`;
    if (this.paths.key !== key) {
      const seen = sliceOf(labels, scene.open.grid, plane, slice);
      const drawn = [...boxes(seen, plane.width)].map(([label, box]) => {
        const [line, area] = [pathOf(segments(seen, plane.width, label, box)), areaOf(polygons(seen, plane.width, label, box))];
        return /** @type {[number, {line: Path2D, area: Path2D}]} */ ([label, { line, area }]);
      });
      this.paths = { key, of: new Map(drawn) };
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.lineCap = context.lineJoin = "round";
    const matrix = new DOMMatrix([place.a, 0, 0, place.d, place.e, place.f]);
    const dense = devicePixelRatio || 1;
    const onScreen = scene.structures.filter((one) => one.visible).map((structure) => {
      const paths = this.paths.of.get(structure.value);
      const [line, area] = [new Path2D(), new Path2D()];
      if (paths) [line.addPath(paths.line, matrix), area.addPath(paths.area, matrix)];
      return { structure, line, area };
    });
    context.lineWidth = 4 * dense;
    context.strokeStyle = "rgba(0, 0, 0, 0.5)";
    for (const { line } of onScreen) context.stroke(line);
    // Only the half that lies inside is drawn, so that neighbours do not hide each other's line.
    for (const { structure, line, area } of onScreen) {
      context.save();
      context.clip(area);
      context.lineWidth = (structure.value === scene.selected ? 5 : 3.4) * dense;
      context.strokeStyle = structure.colour;
      context.stroke(line);
      context.restore();
    }
  }

  /** @param {import("./camera.js").Placing} place */
  #faults(place) {
    const { context, scene, plane } = this;
    const dense = devicePixelRatio || 1;
    context.font = `600 ${12 * dense}px system-ui, sans-serif`;
    // The one that is written out lies above the others.
    const order = [...scene.faults.entries()].sort(([one], [other]) => Number(one === scene.pointedOut) - Number(other === scene.pointedOut));
    for (const [number, rule] of order) {
      const here = rule.points
        .map((point) => seenAt(plane, point))
        .filter((point) => scene.open.grid.form === "image" || point.slice === scene.sliceOf(plane))
        .map((point) => ({ x: place.a * point.u + place.e, y: place.d * point.v + place.f }));
      if (here.length === 0) continue;
      context.setLineDash([6 * dense, 4 * dense]);
      for (const [width, colour] of /** @type {[number, string][]} */ ([[4, "rgba(0, 0, 0, 0.6)"], [2, FAULT]])) {
        context.lineWidth = width * dense;
        context.strokeStyle = colour;
        for (const { x, y } of here) {
          context.beginPath();
          context.arc(x, y, RING_PX * dense, 0, 2 * Math.PI);
          context.stroke();
        }
      }
      context.setLineDash([]);
      const text = scene.pointedOut === number ? `${number + 1}  ${rule.text}` : String(number + 1);
      this.#label(text, here[0].x, here[0].y - (RING_PX + 6) * dense, FAULT);
    }
  }

  /** @param {import("./camera.js").Placing} place */
  #crosshair(place) {
    const { context, scene, plane } = this;
    const dense = devicePixelRatio || 1;
    const { u, v } = seenAt(plane, scene.position);
    const [x, y] = [place.a * u + place.e, place.d * v + place.f];
    context.strokeStyle = "rgba(170, 190, 205, 0.45)";
    context.lineWidth = dense;
    context.beginPath();
    context.moveTo(0, y);
    context.lineTo(x - 12 * dense, y);
    context.moveTo(x + 12 * dense, y);
    context.lineTo(this.canvas.width, y);
    context.moveTo(x, 0);
    context.lineTo(x, y - 12 * dense);
    context.moveTo(x, y + 12 * dense);
    context.lineTo(x, this.canvas.height);
    context.stroke();
  }

  /** @param {string[]} letters left, right, top, bottom */
  #letters([left, right, top, bottom]) {
    const dense = devicePixelRatio || 1;
    const { width, height } = this.canvas;
    this.context.font = `600 ${13 * dense}px system-ui, sans-serif`;
    this.#label(left, 14 * dense, height / 2, "#d5dbe1");
    this.#label(right, width - 14 * dense, height / 2, "#d5dbe1");
    this.#label(top, width / 2, 18 * dense, "#d5dbe1");
    this.#label(bottom, width / 2, height - 10 * dense, "#d5dbe1");
  }

  /**
   * @param {string} text
   * @param {number} x its middle
   * @param {number} y
   * @param {string} colour
   */
  #label(text, x, y, colour) {
    const { context } = this;
    const dense = devicePixelRatio || 1;
    const half = context.measureText(text).width / 2;
    const seen = Math.min(this.canvas.width - half - 10 * dense, Math.max(half + 10 * dense, x));
    const top = Math.max(16 * dense, y);
    context.fillStyle = "rgba(8, 11, 13, 0.72)";
    context.beginPath();
    context.roundRect(seen - half - 6 * dense, top - 13 * dense, 2 * half + 12 * dense, 19 * dense, 6 * dense);
    context.fill();
    context.textAlign = "center";
    context.fillStyle = colour;
    context.fillText(text, seen, top);
  }

  /**
   * @param {Trace} trace
   * @param {import("./camera.js").Placing} place
   */
  #trace(trace, place) {
    const { context } = this;
    const dense = devicePixelRatio || 1;
    const on = (/** @type {import("./strokes.js").Spot} */ spot) => /** @type {[number, number]} */ ([place.a * spot.u + place.e, place.d * spot.v + place.f]);
    const colour = this.scene.structureOf(this.scene.selected)?.colour ?? "#fff";
    context.strokeStyle = colour;
    context.lineWidth = 2 * dense;
    if (trace.corners.length > 0) {
      context.beginPath();
      for (const corner of trace.corners) context.lineTo(...on(corner));
      if (trace.cursor) context.lineTo(...on(trace.cursor));
      context.stroke();
      context.fillStyle = "#fff";
      for (const corner of trace.corners) {
        const [x, y] = on(corner);
        context.fillRect(x - 3 * dense, y - 3 * dense, 6 * dense, 6 * dense);
      }
    }
    if (!trace.cursor) return;
    const [x, y] = on(trace.cursor);
    const radius = Math.max(3 * dense, (trace.radius * place.a) / this.plane.spacing[0]);
    for (const [width, line] of /** @type {[number, string][]} */ ([[3, "rgba(0, 0, 0, 0.7)"], [trace.down ? 2.5 : 1.2, trace.down ? colour : "#fff"]])) {
      context.lineWidth = width * dense;
      context.strokeStyle = line;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

/** A picture of the plane's own size, made again only when its key changes. */
class Layer {
  /** @param {import("./grid.js").Plane} plane */
  constructor(plane) {
    this.pixels = new ImageData(plane.width, plane.height);
    this.canvas = document.createElement("canvas");
    [this.canvas.width, this.canvas.height] = [plane.width, plane.height];
    this.key = "";
  }

  /**
   * @param {CanvasRenderingContext2D} onto
   * @param {string} key
   * @param {(rgba: Uint8ClampedArray) => void} make
   */
  show(onto, key, make) {
    if (this.key !== key) {
      make(this.pixels.data);
      this.canvas.getContext("2d")?.putImageData(this.pixels, 0, 0);
      this.key = key;
    }
    onto.drawImage(this.canvas, 0, 0);
  }
}
