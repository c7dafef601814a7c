"""What a promise is worth to a stream."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medfm_rl.quality.drift import DriftTest
from medfm_rl.quality.promise_state import StreamFacts, contradiction, promise_state
from medfm_rl.quality.promises import Grounds, Promise, PromiseTarget, ReviewedMask, prove


def proven(patients: int = 24) -> Promise:
    masks = [ReviewedMask(f"c{n}", f"p{n}", 0.9, True, 0.9) for n in range(patients)]
    evidence = Grounds(
        quality_hash="q",
        scores_hash="s",
        feedback="f",
        feedback_hash="h",
        reviewers=("r1", "r2"),
        masks=tuple(f"m{n}" for n in range(patients)),
    )
    return prove(masks, PromiseTarget()).model_copy(update={"evidence": evidence})


OWN = {f"m{n}" for n in range(40)}


def quiet(studies: int) -> DriftTest:
    test = DriftTest(0)
    for number in np.random.default_rng(0).normal(size=studies):
        test.add({"appearance": float(number)})
    return test


def test_evidence_against_a_promise_by_hand() -> None:
    # Two bad masks at .1: ((1 + 2 x .9)^2 + (1 + 5 x .9)^2 + (1 + 8 x .9)^2) / 3.
    assert contradiction([1, 1], 0.1) == pytest.approx((2.8**2 + 5.5**2 + 8.2**2) / 3)
    assert contradiction([], 0.1) == 1


def test_a_true_promise_is_rarely_withdrawn() -> None:
    generator = np.random.default_rng(0)
    withdrawn = [contradiction((generator.random(200) < 0.1).astype(float).tolist(), 0.1) >= 20 for _ in range(400)]
    assert np.mean(withdrawn) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(
    ("promise", "quality", "studies", "losses", "standing"),
    [
        (None, "q", 30, [], "none"),
        (proven(10), "q", 30, [], "none"),
        (proven(), "other", 30, [], "withdrawn"),
        (proven(), "q", 30, [1, 1], "withdrawn"),
        (proven(), "q", 30, [0] * 10, "in force"),
        (proven(), "q", 10, [], "expected"),
    ],
)
def test_a_promise_stands_only_while_all_that_it_rests_on_does(
    promise: Promise | None, quality: str, studies: int, losses: list[float], standing: str
) -> None:
    assert promise_state(promise, StreamFacts(quality, quiet(studies), losses, OWN)).standing == standing


def test_a_promise_is_proven_for_the_stream_alone_that_its_reviewed_masks_are_of() -> None:
    facts = StreamFacts("q", quiet(30), [], OWN)
    assert promise_state(proven(), facts).standing == "in force"
    elsewhere = promise_state(proven(), replace(facts, masks=OWN - {"m0", "m1"}))
    assert (elsewhere.standing, elsewhere.reason[:12]) == ("expected", "2 of the 24 ")
    before = promise_state(proven(), replace(facts, masks=OWN - {"m0"}, former={"m0"}))
    assert (before.standing, "began anew" in before.reason) == ("withdrawn", True)
    nameless = promise_state(proven(), replace(facts, scanner_known=False))
    assert (nameless.standing, "which scanner" in nameless.reason) == ("expected", True)
    promise = proven()
    assert promise.evidence is not None
    older = promise.model_copy(update={"evidence": promise.evidence.model_copy(update={"masks": ()})})
    assert promise_state(older, facts).standing == "expected"
    contradicted = promise_state(proven(), replace(facts, losses=[1, 1]))
    assert (contradicted.standing, contradicted.contradicted) == ("withdrawn", True)


def test_an_alarm_withdraws_at_once() -> None:
    test = quiet(60)
    for _ in range(20):
        test.add({"appearance": 9.0})
    found = promise_state(proven(), StreamFacts("q", test, [], OWN))
    assert found.standing == "withdrawn"
    assert test.alarm is not None
    assert 60 < test.alarm.study <= 65
    assert "images are less like those of the calibration" in found.reason
