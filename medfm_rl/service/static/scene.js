/** What all views of a case share: where one is, what is shown, and how. Views draw it; nothing here draws. */

import { Camera } from "./camera.js";
import { colourOf } from "./colours.js";
import { planeOf } from "./grid.js";

/** @typedef {"contours"|"filling"} Style */

export class Scene {
  /** @param {import("./loading.js").OpenCase} open */
  constructor(open) {
    this.open = open;
    const { answer, grid } = open;
    this.window = { ...answer.window };
    /** @type {[number, number, number]} index of the point that all planes go through */
    this.position = [grid.size[0] >> 1, grid.size[1] >> 1, grid.form === "volume" ? grid.size[2] >> 1 : 0];
    /** @type {import("./grid.js").PlaneName[]} */
    const names = grid.form === "volume" ? ["xy", "xz", "yz"] : ["xy"];
    this.planes = names.map((name) => planeOf(grid, name, answer.axes));
    this.cameras = Object.fromEntries(names.map((name) => [name, new Camera()]));
    this.structures = answer.structures.map((structure, place) => ({
      ...structure,
      colour: colourOf(structure, place),
      visible: true,
    }));
    this.selected = this.structures[0]?.value ?? 1;
    this.maskShown = true;
    /** @type {Style} */
    this.style = "contours";
    this.rewardsShown = false;
    /** Failed rules that are drawn, each with its number. */
    this.faults = (answer.rules ?? []).filter((rule) => !rule.passed && rule.points.length > 0).map(inFrame);
    /** The one that is written out. @type {number|null} */
    this.pointedOut = this.faults.length === 1 ? 0 : null;
    this.faultsShown = true;
    /** @type {Map<string, import("./editing.js").EditSession>} by id of the mask that was shown */
    this.sessions = new Map();
    /** Counts arriving pieces of the image. */
    this.version = 0;
    /** @type {Set<() => void>} */
    this.watchers = new Set();
  }

  /** @param {() => void} draw called once before the next frame after any change */
  watch(draw) {
    this.watchers.add(draw);
  }

  /** Something that is drawn is different now. */
  changed() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      for (const draw of this.watchers) draw();
    });
  }

  /**
   * @param {string} mask id
   * @returns {{labels: Uint8Array|undefined, version: number}} as edited, where it was
   */
  labelsOf(mask) {
    const session = this.sessions.get(mask);
    return session ? { labels: session.labels, version: session.version } : { labels: this.open.masks.get(mask), version: -1 };
  }

  /**
   * @param {import("./grid.js").Plane} plane
   * @returns {number} its slice
   */
  sliceOf(plane) {
    return this.position[plane.axes[2]];
  }

  /**
   * @param {import("./grid.js").Plane} plane
   * @param {number} slice
   */
  goTo(plane, slice) {
    this.position[plane.axes[2]] = Math.min(plane.depth - 1, Math.max(0, Math.round(slice)));
    this.changed();
  }

  /** @param {number[]} point index that all planes shall go through */
  lookAt(point) {
    this.position = /** @type {[number, number, number]} */ (
      this.open.grid.size.map((size, axis) => Math.min(size - 1, Math.max(0, Math.round(point[axis] ?? this.position[axis]))))
    );
    this.changed();
  }

  /** @param {number} value */
  structureOf(value) {
    return this.structures.find((structure) => structure.value === value);
  }
}

/**
 * @param {import("./types.js").Rule} rule
 * @returns {import("./types.js").Rule} with the frame of a clip in its points
 */
function inFrame(rule) {
  const { frame } = rule;
  if (frame === null || frame === undefined) return rule;
  return { ...rule, points: rule.points.map((point) => (point.length === 2 ? [...point, frame] : point)) };
}
