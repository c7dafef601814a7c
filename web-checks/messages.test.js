import assert from "node:assert/strict";
import { test } from "node:test";

import { sentence } from "../medfm_rl/service/static/messages.js";

test("a fault begins with a capital, and the name of a file stays as it is", () => {
  assert.equal(sentence("the mask is gone", "put it back"), "The mask is gone; put it back");
  assert.equal(sentence("runs/demo/a.nii.gz: is no longer there", ""), "runs/demo/a.nii.gz: is no longer there");
  assert.equal(sentence("a.png is damaged.", "send another"), "a.png is damaged. send another");
});
