/**
 * Everything that can be done on the page, with its keys: the keyboard, the buttons and the help read this one table.
 *
 * @typedef {object} Action
 * @property {string} id as in `data-action` of a button
 * @property {string[]} keys as `keyName` writes them; the first is shown
 * @property {string} text
 * @property {string} group
 * @property {boolean} [compare] only where two masks are compared and none was chosen; false: only elsewhere
 */

/** @type {Action[]} */
export const ACTIONS = [
  { id: "better-a", keys: ["a"], text: "A is better", group: "Decide", compare: true },
  { id: "better-b", keys: ["b"], text: "B is better", group: "Decide", compare: true },
  { id: "correct-a", keys: ["shift+a"], text: "Choose A, and correct it", group: "Decide", compare: true },
  { id: "correct-b", keys: ["shift+b"], text: "Choose B, and correct it", group: "Decide", compare: true },
  { id: "accept", keys: ["a"], text: "Accept the mask", group: "Decide", compare: false },
  { id: "reject", keys: ["r"], text: "Reject the mask (or both)", group: "Decide" },
  { id: "save", keys: ["s", "ctrl+s"], text: "Save the corrected mask, or the answers by structure", group: "Decide" },
  { id: "grade", keys: ["shift+Digit0", "shift+Digit1", "shift+Digit2", "shift+Digit3", "shift+Digit4"], text: "Grade 0 to 4", group: "Decide" },
  { id: "cannot-tell", keys: ["t"], text: "I cannot tell", group: "Decide" },
  { id: "unfit", keys: ["x"], text: "Not this view or anatomy", group: "Decide" },
  { id: "comment", keys: ["c"], text: "Write a comment (Esc leaves it)", group: "Decide" },
  { id: "take-back", keys: ["u"], text: "Take back the last decision", group: "Decide" },
  { id: "next", keys: ["j"], text: "Next case, leave this one for later", group: "Go" },
  { id: "back", keys: ["k"], text: "Back to the previous case", group: "Go" },
  { id: "slice-up", keys: ["ArrowUp"], text: "Next slice", group: "Go" },
  { id: "slice-down", keys: ["ArrowDown"], text: "Previous slice", group: "Go" },
  { id: "frame-on", keys: ["ArrowRight"], text: "Next frame or slice", group: "Go" },
  { id: "frame-back", keys: ["ArrowLeft"], text: "Previous frame or slice", group: "Go" },
  { id: "play", keys: [" "], text: "Play or pause the clip", group: "Go" },
  { id: "plane", keys: ["p"], text: "Enlarge another plane", group: "Go" },
  { id: "look", keys: ["v"], text: "Move the picture", group: "Look" },
  { id: "window", keys: ["w"], text: "Drag window and level", group: "Look" },
  { id: "brighter", keys: ["shift+ArrowUp"], text: "Brighter", group: "Look" },
  { id: "darker", keys: ["shift+ArrowDown"], text: "Darker", group: "Look" },
  { id: "softer", keys: ["shift+ArrowRight"], text: "Wider window", group: "Look" },
  { id: "harder", keys: ["shift+ArrowLeft"], text: "Narrower window", group: "Look" },
  { id: "window-reset", keys: ["shift+w"], text: "Window and level as they were", group: "Look" },
  { id: "zoom-in", keys: ["+", "="], text: "Zoom in", group: "Look" },
  { id: "zoom-out", keys: ["-"], text: "Zoom out", group: "Look" },
  { id: "fit", keys: ["0"], text: "Fit to the view", group: "Look" },
  { id: "mask", keys: ["h"], text: "Hide or show the mask", group: "Look" },
  { id: "filling", keys: ["o"], text: "Contours or filling", group: "Look" },
  { id: "rewards", keys: ["y"], text: "Where the reward network doubts", group: "Look" },
  { id: "faults", keys: ["l"], text: "Where a rule failed", group: "Look" },
  { id: "structure", keys: ["1", "2", "3", "4", "5", "6", "7", "8", "9"], text: "Choose a structure", group: "Change" },
  { id: "brush", keys: ["b"], text: "Brush", group: "Change", compare: false },
  { id: "eraser", keys: ["e"], text: "Eraser", group: "Change" },
  { id: "polygon", keys: ["g"], text: "Polygon (Enter or double click closes it)", group: "Change" },
  { id: "fill", keys: ["f"], text: "Fill a region", group: "Change" },
  { id: "smooth", keys: ["m"], text: "Smooth the structure in this slice", group: "Change" },
  { id: "smaller", keys: ["[", ","], text: "Smaller brush", group: "Change" },
  { id: "larger", keys: ["]", "."], text: "Larger brush", group: "Change" },
  { id: "undo", keys: ["z", "ctrl+z"], text: "Undo", group: "Change" },
  { id: "redo", keys: ["shift+z", "ctrl+shift+z", "ctrl+y"], text: "Redo", group: "Change" },
  { id: "cursor", keys: ["q"], text: "Draw with the keyboard: arrows move (Shift: ten), Space puts the tool down, Esc ends", group: "Change" },
  { id: "reset", keys: ["shift+r"], text: "Back to the mask that was shown", group: "Change" },
  { id: "help", keys: ["?"], text: "This help", group: "Go" },
];

/** @type {Record<string, string>} */
const WRITTEN = { " ": "Space", ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→" };

/**
 * @param {string} key as in the table
 * @returns {string} as a person writes it
 */
export function written(key) {
  return key
    .split("+")
    .map((part) => WRITTEN[part] ?? { shift: "Shift", ctrl: "Ctrl" }[part] ?? part.replace("Digit", "").toUpperCase())
    .join(" ")
    .replace(/^ $/, "+");
}
