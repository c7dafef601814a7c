/** What each action of the table does. */

import { loadRewards } from "./loading.js";

/** @typedef {import("./desk.js").Desk} Desk */

const DECISIONS = ["accept", "reject", "save", "cannot-tell", "unfit", "better-a", "better-b"];
const LEVEL_STEP = 1 / 40;

/**
 * @param {Desk} desk
 * @returns {(id: string, key: string) => void} runs an action; `key` is empty where a button was pressed
 */
export function commands(desk) {
  const bench = desk.workbench;
  /** @type {Record<string, (key: string) => void>} */
  const table = {
    next: () => void desk.next(),
    back: () => void desk.back(),
    "take-back": () => void desk.deciding.takeBack(),
    comment: () => desk.panel.comment.focus(),
    grade: (key) => desk.panel.setGrade(Number(key.slice(-1))),
    "correct-a": () => choose(desk, "a"),
    "correct-b": () => choose(desk, "b"),
    structure: (key) => {
      const structure = bench.scene?.structures[Number(key) - 1];
      if (structure) desk.selectStructure(structure.value);
    },
    "slice-up": () => bench.step(1),
    "slice-down": () => bench.step(-1),
    "frame-on": () => bench.step(1),
    "frame-back": () => bench.step(-1),
    play: () => bench.play(),
    plane: () => bench.turn(),
    brighter: () => bench.level(0, -LEVEL_STEP),
    darker: () => bench.level(0, LEVEL_STEP),
    softer: () => bench.level(LEVEL_STEP, 0),
    harder: () => bench.level(-LEVEL_STEP, 0),
    "window-reset": () => bench.resetWindow(),
    "zoom-in": () => bench.zoom(1.25),
    "zoom-out": () => bench.zoom(0.8),
    fit: () => bench.fit(),
    mask: () => flag(desk, (scene) => (scene.maskShown = !scene.maskShown)),
    filling: () => flag(desk, (scene) => (scene.style = scene.style === "filling" ? "contours" : "filling")),
    faults: () => flag(desk, (scene) => (scene.faultsShown = !scene.faultsShown)),
    rewards: () => void rewards(desk),
    smaller: () => bench.resize(bench.tools.size - (bench.tools.size > 5 ? 1 : 0.5)),
    larger: () => bench.resize(bench.tools.size + (bench.tools.size >= 5 ? 1 : 0.5)),
    cursor: () => {
      if (bench.view) bench.cursor.toggle(bench.view);
      bench.reflect();
    },
    smooth: () => {
      if (bench.view) bench.tools.smooth(bench.view);
    },
    undo: () => step(desk, "undo"),
    redo: () => step(desk, "redo"),
    reset: () => reset(desk),
    help: () => desk.help.show(),
  };
  for (const tool of /** @type {const} */ (["look", "window", "brush", "eraser", "fill", "polygon"])) table[tool] = () => bench.choose(tool);
  for (const decision of DECISIONS) table[decision] = () => void desk.deciding.decide(decision);
  return (id, key) => table[id]?.(key);
}

/**
 * @param {Desk} desk
 * @param {"a"|"b"} side
 */
function choose(desk, side) {
  if (!desk.panel.comparing) return;
  desk.panel.choose(side);
  desk.workbench.used = side === "a" ? 0 : 1;
  desk.workbench.choose("brush");
  desk.messages.say(`${side.toUpperCase()} is better. Correct it, then save (S).`);
}

/**
 * @param {Desk} desk
 * @param {(scene: import("./scene.js").Scene) => unknown} change
 */
function flag(desk, change) {
  const { scene } = desk.workbench;
  if (!scene) return;
  change(scene);
  scene.changed();
  desk.workbench.reflect();
}

/** @param {Desk} desk */
async function rewards(desk) {
  const { scene } = desk.workbench;
  const item = desk.work?.item;
  if (!scene || !item || !scene.open.answer.has_rewards) return;
  try {
    await loadRewards(scene.open, item, desk.coming.signal);
    flag(desk, (one) => (one.rewardsShown = one === scene && !one.rewardsShown));
  } catch (error) {
    desk.failed(error);
  }
}

/**
 * @param {Desk} desk
 * @param {"undo"|"redo"} way
 */
function step(desk, way) {
  const { tools, session, scene } = desk.workbench;
  if (tools.outline) return tools.cancel();
  if (!session || !scene) return;
  if (session[way]()) desk.workbench.tools.work.edited(desk.workbench.view);
  scene.changed();
}

/** @param {Desk} desk */
function reset(desk) {
  const { session, scene } = desk.workbench;
  desk.workbench.tools.cancel();
  if (!session || !scene) return;
  session.reset();
  desk.workbench.tools.work.edited(desk.workbench.view);
  scene.changed();
}
