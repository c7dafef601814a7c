import assert from "node:assert/strict";
import { test } from "node:test";
import { boxes, polygons, segments } from "../medfm_rl/service/static/contours.js";

/** Twice the area by the shoelace formula, positive where corners run clockwise on the screen. */
function twiceArea(corners) {
  let sum = 0;
  for (let place = 0; place < corners.length; place += 2) {
    const next = (place + 2) % corners.length;
    sum += corners[place] * corners[next + 1] - corners[next] * corners[place + 1];
  }
  return sum;
}

test("a single pixel is a diamond of half its area", () => {
  const labels = Uint8Array.of(0, 0, 0, 0, 3, 0, 0, 0, 0);
  const area = polygons(labels, 3, 3, boxes(labels, 3).get(3)).reduce((sum, one) => sum + twiceArea(one) / 2, 0);
  assert.equal(area, 0.5);
  assert.equal(segments(labels, 3, 3, boxes(labels, 3).get(3)).length, 4 * 4);
});

test("a rectangle loses an eighth of a pixel at each corner", () => {
  const labels = new Uint8Array(6 * 5);
  for (let v = 1; v < 4; v++) for (let u = 1; u < 5; u++) labels[v * 6 + u] = 1;
  const area = polygons(labels, 6, 1, boxes(labels, 6).get(1)).reduce((sum, one) => sum + twiceArea(one) / 2, 0);
  assert.equal(area, 4 * 3 - 4 / 8);
});

test("every piece runs the same way round, so that neighbours never cancel out", () => {
  for (let kind = 1; kind < 16; kind++) {
    const labels = Uint8Array.of(kind & 1, (kind >> 1) & 1, (kind >> 3) & 1, (kind >> 2) & 1);
    for (const corners of polygons(labels, 2, 1, boxes(labels, 2).get(1))) assert.ok(twiceArea(corners) > 0);
  }
});

test("each end of an outline meets another one, on any mask", () => {
  let state = 7;
  const random = () => (state = (state * 1103515245 + 12345) % 2147483648) / 2147483648;
  for (let run = 0; run < 20; run++) {
    const labels = Uint8Array.from({ length: 64 }, () => (random() < 0.5 ? 1 : 0));
    const lines = segments(labels, 8, 1, boxes(labels, 8).get(1));
    const ends = new Map();
    for (let place = 0; place < lines.length; place += 2) {
      const name = `${lines[place]},${lines[place + 1]}`;
      ends.set(name, (ends.get(name) ?? 0) + 1);
    }
    for (const count of ends.values()) assert.equal(count, 2);
  }
});
