from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from medfm_rl.correction.acceptance import _MARGINS, Acceptance, HarmTarget, Outcome, fit_acceptance
from medfm_rl.errors import ModelError
from medfm_rl.quality.conformal import fewest_for_threshold
from medfm_rl.settings import CorrectionSettings

HASHES = {"segmenter": "a", "reward": "b", "rules": "c"}
SETTINGS = CorrectionSettings()


def fit(outcomes: list[Outcome], alpha: float = 0.1) -> Acceptance:
    patients = len({outcome.patient_id for outcome in outcomes})
    return fit_acceptance(outcomes, len(outcomes), patients, HarmTarget(alpha=alpha), SETTINGS, HASHES)


def harmless(count: int, gain: float = 0.05) -> list[Outcome]:
    return [Outcome(f"p{index}", gain, False) for index in range(count)]


def test_the_fewest_patients_are_those_that_the_test_needs() -> None:
    # (1 - alpha)^n <= (1 - confidence) / candidates: Holm's correction asks this of the first candidate.
    needed = fewest_for_threshold(0.1, 0.9)
    assert needed == math.ceil(math.log(0.1 / len(_MARGINS)) / math.log(0.9)) == 38
    assert fit(harmless(needed)).margin == 0.0
    few = fit(harmless(needed - 1))
    assert few.margin is None
    assert few.reason.endswith("needs a correction of at least 38 patients, there are 37")


def test_corrections_that_do_harm_raise_the_margin() -> None:
    outcomes = harmless(60, gain=0.05) + [Outcome(f"q{index}", 0.006, True) for index in range(40)]
    found = fit(outcomes)
    assert found.margin == 0.01
    assert "at most 10% of the accepted corrections lose more than 1 Dice point" in found.reason


def test_where_no_margin_keeps_the_limit_it_says_so() -> None:
    outcomes = [Outcome(f"p{index}", 0.05, index % 2 == 0) for index in range(80)]
    found = fit(outcomes)
    assert found.margin is None
    assert found.reason.endswith("no margin does, 40 of 80 corrections did harm")


def test_the_cases_of_a_patient_count_once() -> None:
    found = fit([Outcome(f"p{index % 10}", 0.03, False) for index in range(200)])
    assert (found.proposals, found.margin) == (10, None)


def test_the_promise_is_kept_in_most_draws() -> None:
    """Harm grows rarer with the gain; over 200 calibrations the true rate above the margin exceeds alpha in few."""
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(200):
        gains = rng.uniform(0, 0.06, 120)
        harmed = rng.random(120) < np.where(gains < 0.02, 0.4, 0.05)
        outcomes = [Outcome(f"p{row}", float(gains[row]), bool(harmed[row])) for row in range(120)]
        margin = fit(outcomes).margin
        # The rate above a margin m < .02 is (.4 (.02 - m) + .05 * .04) / (.06 - m): above 10 % below m = .0133.
        broken += margin is not None and margin < 0.0133
    assert broken <= 20


def test_the_file_is_read_back_and_applied_to_what_it_was_made_with(tmp_path: Path) -> None:
    found = fit(harmless(60))
    found.write(tmp_path / "correction.json")
    again = Acceptance.read(tmp_path / "correction.json")
    assert again == found
    settings, promise = again.apply(SETTINGS.model_copy(update={"seconds": 3.0, "margin": 0.5}), HASHES)
    assert (settings.margin, settings.seconds) == (0.0, 3.0)
    assert promise.startswith("promised for cases like these: at most 10%")
    tta = SETTINGS.model_copy(update={"method": "tta"})
    for other, hashes in ((tta, HASHES), (SETTINGS, {**HASHES, "rules": "x"})):
        kept, nothing = again.apply(other, hashes)
        assert kept == other
        assert nothing.startswith("no error rate is promised")
    (tmp_path / "correction.json").write_text("{}")
    with pytest.raises(ModelError, match="calibrate-correction"):
        Acceptance.read(tmp_path / "correction.json")
