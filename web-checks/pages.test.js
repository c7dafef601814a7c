import assert from "node:assert/strict";
import { test } from "node:test";
import { ACTIONS } from "../medfm_rl/service/static/actions.js";
import { areas } from "../medfm_rl/service/static/areas.js";
import { Camera, placing, spotAt, zoomAt } from "../medfm_rl/service/static/camera.js";
import { PALETTE } from "../medfm_rl/service/static/colours.js";
import { develop, dragged } from "../medfm_rl/service/static/level.js";
import { pieces } from "../medfm_rl/service/static/loading.js";
import { Stopwatch } from "../medfm_rl/service/static/stopwatch.js";

test("a key does one thing in each situation", () => {
  for (const comparing of [true, false]) {
    const met = ACTIONS.filter((action) => (action.compare ?? comparing) === comparing).flatMap((action) => action.keys);
    assert.equal(new Set(met).size, met.length);
  }
});

test("window and level make the lower end black and the upper end white", () => {
  const rgba = new Uint8ClampedArray(16);
  develop(Int16Array.of(-100, 0, 40, 300), 1, { width: 4, height: 1 }, { base: 0, column: 1, row: 4 }, { centre: 50, width: 100 }, rgba);
  assert.deepEqual([rgba[0], rgba[4], rgba[8], rgba[12]], [0, 0, 102, 255]);
});

test("a drag keeps the window within twice the range", () => {
  const wide = dragged({ centre: 100, width: 200 }, [0, 255], 50, -50);
  assert.deepEqual(wide, { width: 510, centre: 0 });
});

test("what lies under the pointer stays there while zooming", () => {
  const camera = new Camera();
  const sheet = { width: 64, height: 48, spacing: [0.8, 0.6] };
  const canvas = { width: 800, height: 500 };
  const before = spotAt(placing(camera, sheet, 800, 500), 500, 300);
  zoomAt(camera, sheet, canvas, 3, 500, 300);
  const after = spotAt(placing(camera, sheet, 800, 500), 500, 300);
  assert.ok(Math.hypot(before.u - after.u, before.v - after.v) < 1e-9);
});

test("pieces cover all slices once, those in the middle first", () => {
  const all = pieces(10, 3, 5);
  assert.deepEqual(all[0], [3, 6]);
  assert.deepEqual(all.flatMap(([from, to]) => Array.from({ length: to - from }, (_, place) => from + place)).sort((a, b) => a - b), [...Array(10).keys()]);
});

test("areas are in square centimetres", () => {
  const grid = { form: "clip", size: [2, 2, 2], spacing: [10, 5, 1], unit: "mm" };
  assert.deepEqual(areas(Uint8Array.of(1, 1, 0, 2, 1, 0, 0, 0), grid, 1), [1, 0.5]);
});

test("a pause of a person is no work", () => {
  let now = 0;
  const watch = new Stopwatch(() => now);
  now = 5000;
  watch.touch();
  now = 605000;
  watch.touch();
  now = 606000;
  assert.equal(watch.seconds, 36);
});

test("colours of structures are distinct and bright enough beside black", () => {
  const light = (colour) => {
    const [r, g, b] = [1, 3, 5].map((place) => Number.parseInt(colour.slice(place, place + 2), 16) / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  assert.equal(new Set(PALETTE).size, PALETTE.length);
  for (const colour of PALETTE) assert.ok((light(colour) + 0.05) / 0.05 >= 3, colour);
});
