/** Mouse, pen and fingers on a view. Once a pen was seen, fingers move the picture and never draw. */

import { pan, spotAt, zoomAt } from "./camera.js";
import { dragged } from "./level.js";
import { pixelAt } from "./grid.js";

/** A shorter way of a pointer is a click. */
const CLICK_PX = 4;
const [LEFT, MIDDLE, RIGHT] = [0, 1, 2];

/**
 * @param {import("./view.js").View} view
 * @param {import("./tools.js").Tools} tools
 * @param {{used: (view: import("./view.js").View) => void, windowed: () => void,
 *   pointed: (view: import("./view.js").View, spot: import("./strokes.js").Spot|null) => void, step: (view: import("./view.js").View, by: number) => void}} tell
 */
export function listen(view, tools, tell) {
  const { canvas, scene } = view;
  /** @type {Map<number, {x: number, y: number}>} fingers and buttons that are down */
  const downs = new Map();
  /** @type {"draw"|"pan"|"window"|"pinch"|null} */
  let doing = null;
  let penSeen = false;
  let way = 0;
  let rolled = 0;

  const at = (/** @type {{clientX: number, clientY: number}} */ event) => {
    const box = canvas.getBoundingClientRect();
    const dense = canvas.width / Math.max(1, box.width);
    return { x: (event.clientX - box.left) * dense, y: (event.clientY - box.top) * dense };
  };
  const spotOf = (/** @type {{x: number, y: number}} */ point) => spotAt(view.placing, point.x, point.y);

  const startOf = (/** @type {PointerEvent} */ event) => {
    if (event.button === MIDDLE) return "pan";
    if (event.button === RIGHT) return "window";
    if (event.pointerType === "touch" && penSeen) return "pan";
    if (tools.tool === "window") return "window";
    return tools.draws && event.button === LEFT ? "draw" : "pan";
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    penSeen ||= event.pointerType === "pen";
    const point = at(event);
    downs.set(event.pointerId, point);
    tell.used(view);
    if (downs.size === 2) {
      // The second finger: what the first one drew was no stroke.
      if (doing === "draw") tools.cancel();
      doing = "pinch";
      return;
    }
    way = 0;
    doing = startOf(event);
    if (doing === "draw" && !tools.down(view, spotOf(point))) doing = null;
  });

  canvas.addEventListener("pointermove", (event) => {
    const point = at(event);
    tell.pointed(view, spotOf(point));
    if (view.trace && tools.draws) {
      view.trace.cursor = spotOf(point);
      view.trace.radius = tools.tool === "polygon" || tools.tool === "fill" ? 0 : tools.radius(view);
      scene.changed();
    }
    const before = downs.get(event.pointerId);
    if (!before) return;
    const [dx, dy] = [point.x - before.x, point.y - before.y];
    way += Math.hypot(dx, dy);
    if (doing === "draw") {
      const between = event.getCoalescedEvents?.() ?? [];
      for (const one of between.length ? between : [event]) tools.move(view, spotOf(at(one)));
    } else if (doing === "pan") {
      pan(view.camera, view.plane, canvas, dx, dy);
    } else if (doing === "window") {
      scene.window = dragged(scene.window, scene.open.answer.range, dx / canvas.width, dy / canvas.height);
      tell.windowed();
    } else if (doing === "pinch") {
      const other = [...downs].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {
        const apart = Math.hypot(point.x - other.x, point.y - other.y) / Math.max(1, Math.hypot(before.x - other.x, before.y - other.y));
        zoomAt(view.camera, view.plane, canvas, apart, (point.x + other.x) / 2, (point.y + other.y) / 2);
        pan(view.camera, view.plane, canvas, dx / 2, dy / 2);
      }
    }
    downs.set(event.pointerId, point);
    scene.changed();
  });

  const lift = (/** @type {PointerEvent} */ event) => {
    if (!downs.delete(event.pointerId)) return;
    if (doing === "draw") {
      if (event.type === "pointercancel") tools.cancel();
      else tools.up();
    } else if (doing === "pan" && way < CLICK_PX * devicePixelRatio && event.button === LEFT && scene.planes.length > 1) {
      const spot = spotOf(at(event));
      scene.lookAt(pixelAt(view.plane, spot.u, spot.v, scene.sliceOf(view.plane)));
    }
    if (downs.size === 0) doing = null;
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => {
    tell.pointed(view, null);
    if (view.trace && view.trace.corners.length === 0) view.trace = null;
    scene.changed();
  });
  canvas.addEventListener("pointerenter", () => {
    if (tools.draws && !view.trace) view.trace = { corners: [], cursor: null, radius: 0, down: false };
  });
  canvas.addEventListener("dblclick", () => tools.close());
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      if (event.ctrlKey || event.metaKey || view.plane.depth === 1) {
        const { x, y } = at(event);
        zoomAt(view.camera, view.plane, canvas, Math.exp(-event.deltaY / 400), x, y);
        scene.changed();
        return;
      }
      rolled += event.deltaY;
      const notches = Math.trunc(rolled / 40);
      if (notches !== 0) {
        rolled -= 40 * notches;
        tell.step(view, Math.sign(notches));
      }
    },
    { passive: false },
  );
}
