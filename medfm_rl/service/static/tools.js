/** What the hand does on a picture: strokes of a pointer, or of the keyboard's cursor, become changes of a mask. */

/** @typedef {"look"|"window"|"brush"|"eraser"|"fill"|"polygon"} ToolName */
/** @typedef {import("./view.js").View} View */
/** @typedef {import("./strokes.js").Spot} Spot */

const DRAWS = ["brush", "eraser", "fill", "polygon"];
/** Near the first corner a polygon closes; pixels of the screen. */
const CLOSES_WITHIN = 10;

export class Tools {
  /**
   * @param {{session: (view: View) => import("./editing.js").EditSession|null, edited: (view: View) => void}} work
   *   `session` gives the mask that may be changed there, or says why not and gives null
   */
  constructor(work) {
    this.work = work;
    /** @type {ToolName} */
    this.tool = "look";
    /** Radius of the brush, in pixels of the image. */
    this.size = 4;
    this.keepOthers = true;
    /** @type {{view: View, last: Spot}|null} */
    this.stroke = null;
    /** @type {{view: View, corners: Spot[]}|null} */
    this.outline = null;
  }

  get draws() {
    return DRAWS.includes(this.tool);
  }

  /** @param {ToolName} tool */
  choose(tool) {
    this.cancel();
    this.tool = tool;
  }

  /** @param {View} view */
  radius(view) {
    return this.size * Math.min(...view.plane.spacing);
  }

  /**
   * @param {View} view
   * @param {Spot} spot
   * @returns {boolean} whether a stroke began
   */
  down(view, spot) {
    const session = this.work.session(view);
    if (!session) return false;
    if (this.tool === "polygon") return this.#corner(view, spot);
    session.begin();
    this.stroke = { view, last: spot };
    if (this.tool === "fill") {
      session.fill(view.plane, view.scene.sliceOf(view.plane), spot, this.#pen(view));
      this.up();
    } else {
      this.move(view, spot);
    }
    return this.stroke !== null;
  }

  /**
   * @param {View} view
   * @param {Spot} spot
   */
  move(view, spot) {
    if (this.stroke?.view !== view) return;
    const session = this.work.session(view);
    if (!session) return;
    const slice = view.scene.sliceOf(view.plane);
    if (this.tool === "eraser") session.erase(view.plane, slice, this.stroke.last, spot, this.#pen(view));
    else session.paint(view.plane, slice, this.stroke.last, spot, this.#pen(view));
    this.stroke.last = spot;
    view.scene.changed();
  }

  up() {
    const stroke = this.stroke;
    this.stroke = null;
    if (!stroke) return;
    this.work.session(stroke.view)?.end(this.tool);
    this.work.edited(stroke.view);
    stroke.view.scene.changed();
  }

  /** Forgets a polygon on its way, and takes back a stroke on its way. */
  cancel() {
    const view = this.outline?.view ?? this.stroke?.view;
    if (this.stroke) {
      const session = this.work.session(this.stroke.view);
      session?.end(this.tool);
      session?.undo();
      this.work.edited(this.stroke.view);
    }
    this.stroke = null;
    this.outline = null;
    if (view?.trace) view.trace.corners = [];
    view?.scene.changed();
  }

  /** Closes a polygon on its way. */
  close() {
    const outline = this.outline;
    if (!outline) return;
    this.outline = null;
    const { view, corners } = outline;
    if (view.trace) view.trace.corners = [];
    const session = this.work.session(view);
    if (session && corners.length > 2) {
      session.begin();
      session.outline(view.plane, view.scene.sliceOf(view.plane), corners, this.#pen(view));
      session.end("polygon");
      this.work.edited(view);
    }
    view.scene.changed();
  }

  /** @param {View} view whose slice's selected structure is made smoother */
  smooth(view) {
    const session = this.work.session(view);
    if (!session) return;
    session.begin();
    const pen = { ...this.#pen(view), radius: Math.max(1.5 * Math.max(...view.plane.spacing), this.radius(view) / 2) };
    session.smooth(view.plane, view.scene.sliceOf(view.plane), pen);
    session.end("smooth");
    this.work.edited(view);
    view.scene.changed();
  }

  /**
   * @param {View} view
   * @param {Spot} spot
   */
  #corner(view, spot) {
    if (this.outline?.view !== view) this.outline = { view, corners: [] };
    const { corners } = this.outline;
    const place = view.placing;
    const first = corners[0];
    if (corners.length > 2 && Math.hypot((first.u - spot.u) * place.a, (first.v - spot.v) * place.d) < CLOSES_WITHIN * devicePixelRatio) {
      this.close();
      return false;
    }
    corners.push(spot);
    view.trace = { corners, cursor: spot, radius: 0, down: false };
    view.scene.changed();
    return false;
  }

  /** @param {View} view */
  #pen(view) {
    return { label: view.scene.selected, radius: this.radius(view), keepOthers: this.keepOthers };
  }
}
