import assert from "node:assert/strict";
import { test } from "node:test";
import { EditSession } from "../medfm_rl/service/static/editing.js";
import { addressing, pixelAt, planeOf, seenAt, sliceOf } from "../medfm_rl/service/static/grid.js";
import { brush, polygon, region, smooth } from "../medfm_rl/service/static/strokes.js";

const SHEET = { width: 7, height: 5, spacing: [1, 1] };
const VOLUME = { form: "volume", size: [5, 4, 3], spacing: [1, 1, 2], unit: "mm" };

/** A small generator, so that a failure can be repeated. */
function numbers(seed) {
  let state = seed;
  return (most) => {
    state = (state * 1103515245 + 12345) % 2147483648;
    return Math.floor((state / 2147483648) * most);
  };
}

test("a brush of radius 1 covers the pixel and its four neighbours", () => {
  const covered = brush(SHEET, { u: 3.5, v: 2.5 }, { u: 3.5, v: 2.5 }, 1);
  assert.deepEqual(covered.sort((a, b) => a - b), [10, 16, 17, 18, 24]);
});

test("a brush is round in millimetres, not in pixels", () => {
  const covered = brush({ width: 7, height: 5, spacing: [1, 3] }, { u: 3.5, v: 2.5 }, { u: 3.5, v: 2.5 }, 2);
  assert.deepEqual(covered.sort((a, b) => a - b), [15, 16, 17, 18, 19]);
});

test("a fast stroke leaves no gap", () => {
  const covered = brush(SHEET, { u: 0.5, v: 2.5 }, { u: 6.5, v: 2.5 }, 0.5);
  assert.deepEqual(covered.sort((a, b) => a - b), [14, 15, 16, 17, 18, 19, 20]);
});

test("a polygon covers the pixels whose middle lies inside", () => {
  const covered = polygon(SHEET, [{ u: 1, v: 1 }, { u: 4, v: 1 }, { u: 4, v: 3 }, { u: 1, v: 3 }]);
  assert.deepEqual(covered, [8, 9, 10, 15, 16, 17]);
});

test("a region ends at another label, and does not pass corners", () => {
  const labels = Uint8Array.of(0, 1, 0, 1, 0, 1, 0, 1, 0);
  assert.deepEqual(region(labels, { width: 3, height: 3, spacing: [1, 1] }, { u: 1.5, v: 1.5 }), [4]);
});

test("smoothing takes a single pixel away and closes a single hole", () => {
  const sheet = { width: 5, height: 5, spacing: [1, 1] };
  const speck = new Uint8Array(25);
  speck[12] = 2;
  assert.deepEqual(smooth(speck, sheet, 2, 1.5, () => true), [{ place: 12, label: 0 }]);
  const hole = new Uint8Array(25).fill(2);
  hole[12] = 0;
  assert.deepEqual(smooth(hole, sheet, 2, 1.5, () => true), [{ place: 12, label: 2 }]);
});

test("what is seen is what is addressed, in every plane and orientation", () => {
  const labels = Uint8Array.from({ length: 60 }, (_, place) => place);
  for (const letters of [null, ["L", "P", "S"], ["R", "A", "I"], ["P", "S", "L"]]) {
    for (const name of ["xy", "xz", "yz"]) {
      const plane = planeOf(VOLUME, name, letters);
      for (let slice = 0; slice < plane.depth; slice++) {
        const seen = sliceOf(labels, VOLUME, plane, slice);
        const { base, column, row } = addressing(VOLUME, plane, slice);
        for (let v = 0; v < plane.height; v++) {
          for (let u = 0; u < plane.width; u++) {
            const index = base + u * column + v * row;
            assert.equal(seen[v * plane.width + u], index);
            const [x, y, z] = pixelAt(plane, u + 0.5, v + 0.5, slice);
            assert.equal((z * 4 + y) * 5 + x, index);
            assert.deepEqual(seenAt(plane, [x, y, z]), { u: u + 0.5, v: v + 0.5, slice });
          }
        }
      }
    }
  }
});

test("pictures lie as radiology has them: patient's left at the right, feet below", () => {
  const axial = planeOf(VOLUME, "xy", ["R", "A", "S"]);
  assert.deepEqual([axial.title, axial.flip, axial.letters], ["Axial", [true, true], ["R", "L", "A", "P"]]);
  const coronal = planeOf(VOLUME, "xz", ["L", "P", "S"]);
  assert.deepEqual([coronal.title, coronal.flip, coronal.letters], ["Coronal", [false, true], ["R", "L", "S", "I"]]);
});

test("undo and redo without end give back every mask on the way", () => {
  const next = numbers(3);
  const base = Uint8Array.from({ length: 60 }, () => next(3));
  const session = new EditSession("m", base, VOLUME);
  const states = [session.labels.slice()];
  for (let step = 0; step < 60; step++) {
    const plane = planeOf(VOLUME, ["xy", "xz", "yz"][next(3)]);
    const slice = next(plane.depth);
    const spot = () => ({ u: next(plane.width) + 0.5, v: next(plane.height) + 0.5 });
    const pen = { label: 1 + next(2), radius: 1 + next(2), keepOthers: next(2) === 0 };
    session.begin();
    if (next(2)) session.paint(plane, slice, spot(), spot(), pen);
    else session.erase(plane, slice, spot(), spot(), pen);
    session.end("stroke");
    if (!states[states.length - 1].every((label, place) => label === session.labels[place])) states.push(session.labels.slice());
    assert.equal(session.differing, session.labels.filter((label, place) => label !== base[place]).length);
  }
  assert.equal(session.history.done.length, states.length - 1);
  for (const state of states.slice(0, -1).reverse()) {
    session.undo();
    assert.deepEqual(session.labels, state);
  }
  assert.equal(session.changed, false);
  for (const state of states.slice(1)) {
    session.redo();
    assert.deepEqual(session.labels, state);
  }
  session.reset();
  assert.deepEqual(session.labels, base);
});

test("other structures are kept where that is asked", () => {
  const grid = { form: "image", size: [3, 1, 1], spacing: [1, 1, 1], unit: "pixel" };
  const plane = planeOf(grid, "xy");
  const pen = { label: 1, radius: 5, keepOthers: true };
  const session = new EditSession("m", Uint8Array.of(0, 2, 1), grid);
  session.begin();
  session.paint(plane, 0, { u: 1.5, v: 0.5 }, { u: 1.5, v: 0.5 }, pen);
  assert.deepEqual(session.labels, Uint8Array.of(1, 2, 1));
  session.erase(plane, 0, { u: 1.5, v: 0.5 }, { u: 1.5, v: 0.5 }, { ...pen, keepOthers: false });
  assert.deepEqual(session.labels, Uint8Array.of(0, 0, 0));
});

test("a draft gives the edit back", () => {
  const base = new Uint8Array(60);
  const plane = planeOf(VOLUME, "xz");
  const first = new EditSession("m", base, VOLUME);
  first.begin();
  first.paint(plane, 2, { u: 1, v: 1 }, { u: 4, v: 2 }, { label: 2, radius: 1, keepOthers: true });
  first.end("brush");
  const second = new EditSession("m", base, VOLUME);
  second.restore(first.touchedSlices(), "draft");
  assert.deepEqual(second.labels, first.labels);
  second.undo();
  assert.deepEqual(second.labels, base);
});
