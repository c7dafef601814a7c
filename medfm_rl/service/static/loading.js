/**
 * Fetches a case piece by piece: masks first, then the image from the slice that is shown outwards, so that work can begin
 * before all has arrived.
 *
 * @typedef {object} OpenCase
 * @property {import("./types.js").CaseAnswer} answer
 * @property {import("./grid.js").Grid} grid
 * @property {import("./level.js").Values|null} values null until the first piece arrived
 * @property {Map<string, Uint8Array>} masks labels of the whole grid, by id
 * @property {Uint8Array|null} rewards 255 is certainly right; null until asked for
 * @property {number} arrived share of the image that is here, 0 to 1
 */

import { openCase, rawArray } from "./api.js";
import { gridOf } from "./grid.js";
import { valuesOf } from "./level.js";

const PIECE_BYTES = 16 * 1024 * 1024;
/** @type {Record<string, number>} */
const BYTES = { uint8: 1, int16: 2, float32: 4 };

/**
 * @param {number} depth slices or frames
 * @param {number} each slices in a piece
 * @param {number} middle slice that is wanted first
 * @returns {[number, number][]} from and to of each piece
 */
export function pieces(depth, each, middle) {
  /** @type {[number, number][]} */
  const all = [];
  for (let from = 0; from < depth; from += each) all.push([from, Math.min(depth, from + each)]);
  const far = (/** @type {[number, number]} */ [from, to]) => Math.abs((from + to - 1) / 2 - middle);
  return all.sort((one, other) => far(one) - far(other));
}

/**
 * @param {string} id case
 * @param {string} item
 * @param {{opened: (open: OpenCase) => void, progress: (open: OpenCase) => void}} tell
 * @param {AbortSignal} signal
 * @returns {Promise<OpenCase>} complete but for the rewards
 */
export async function load(id, item, tell, signal) {
  const answer = await openCase(id, item);
  signal.throwIfAborted();
  const grid = gridOf(answer);
  /** @type {OpenCase} */
  const open = { answer, grid, values: null, masks: new Map(), rewards: null, arrived: 0 };
  for (const { mask } of answer.masks) {
    open.masks.set(mask, await wholeMask(open, `masks/${encodeURIComponent(mask)}`, item, signal));
  }
  tell.opened(open);
  await fetchImage(open, item, tell.progress, signal);
  return open;
}

/**
 * @param {OpenCase} open
 * @param {string} item
 * @param {AbortSignal} signal
 */
export async function loadRewards(open, item, signal) {
  open.rewards ??= await wholeMask(open, "rewards", item, signal);
}

/**
 * @param {OpenCase} open
 * @param {string} part
 * @param {string} item
 * @param {AbortSignal} signal
 * @returns {Promise<Uint8Array>}
 */
async function wholeMask(open, part, item, signal) {
  const [x, y, z] = open.grid.size;
  const path = `/cases/${encodeURIComponent(open.answer.case)}/${part}?item=${encodeURIComponent(item)}`;
  const labels = new Uint8Array((await rawArray(path, 0, z, signal)).bytes);
  requireLength(labels.length, x * y * z);
  return labels;
}

/**
 * @param {OpenCase} open
 * @param {string} item
 * @param {(open: OpenCase) => void} progress
 * @param {AbortSignal} signal
 */
async function fetchImage(open, item, progress, signal) {
  const [x, y, z] = open.grid.size;
  const perSlice = x * y * open.answer.channels;
  const each = Math.max(1, Math.floor(PIECE_BYTES / (perSlice * 2)));
  const middle = open.grid.form === "volume" ? Math.floor(z / 2) : 0;
  const path = `/cases/${encodeURIComponent(open.answer.case)}/image?item=${encodeURIComponent(item)}`;
  let here = 0;
  for (const [from, to] of pieces(z, each, middle)) {
    const { bytes, dtype } = await rawArray(path, from, to, signal);
    requireLength(bytes.byteLength, (to - from) * perSlice * (BYTES[dtype] ?? 1));
    const piece = valuesOf(bytes, dtype);
    // Where nothing has arrived yet it is as dark as the darkest pixel.
    open.values ??= valuesOf(new ArrayBuffer(z * perSlice * piece.BYTES_PER_ELEMENT), dtype).fill(open.answer.range[0]);
    open.values.set(/** @type {any} */ (piece), from * perSlice);
    here += to - from;
    open.arrived = here / z;
    progress(open);
  }
}

/**
 * @param {number} got
 * @param {number} due
 */
function requireLength(got, due) {
  if (got !== due) throw new Error(`The case did not arrive whole (${got} of ${due} bytes). Open it again.`);
}
