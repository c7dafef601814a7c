"""What few reviewed patients tell of predicted Dice."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medfm_rl.errors import DataError, ModelError
from medfm_rl.quality.reports import QualityReport, StructureScore
from medfm_rl.quality.reviewed_errors import (
    REVIEWED_FILE,
    Origin,
    ReviewedErrors,
    ReviewedPrediction,
    fit_reviewed_errors,
)

ORIGIN = Origin("quality", "store", "state", "2026-11-30T00:00:00+00:00")


def report(lv: float | None, myo: float | None) -> QualityReport:
    mean = None if lv is None or myo is None else (lv + myo) / 2
    values = {"LV": lv, "MYO": myo, "mean": mean}
    scores = tuple(StructureScore(name, value, None, None, 0.5, 0.1, (0, 0)) for name, value in values.items())
    return QualityReport("case", "patient", scores, (), 1.0, 0.5, "refer", ())


def reviewed(lv_off: list[float], myo_off: list[float], predicted: float = 0.8) -> list[ReviewedPrediction]:
    """One mask of each patient: truth less prediction is what is given."""
    return [
        ReviewedPrediction(f"p{n}", {"LV": predicted, "MYO": predicted}, {"LV": predicted + lv, "MYO": predicted + myo})
        for n, (lv, myo) in enumerate(zip(lv_off, myo_off, strict=True))
    ]


def fit(masks: list[ReviewedPrediction], coverage: float = 0.9) -> ReviewedErrors:
    return fit_reviewed_errors(masks, coverage, ORIGIN)


def test_predictions_that_are_all_off_alike_are_moved_by_nearly_that_by_structure() -> None:
    errors = fit(reviewed([-0.1] * 9, [0.05] * 9))
    # The deviation is taken as .001 at least: its variance is pi / 2 * 1e-6 / 9, beside .05^2 of the prior.
    share = 0.05**2 / (0.05**2 + np.pi / 2 * 1e-6 / 9)
    assert errors.shifts == pytest.approx({"LV": -0.1 * share, "MYO": 0.05 * share})
    moved = errors.moved(report(0.7, 0.9))
    assert [score.predicted_dice for score in moved.scores] == pytest.approx([0.6, 0.95, 0.775], abs=1e-4)
    assert moved.mean_as_calibrated == 0.8
    assert errors.count == 9
    assert errors.error_before == pytest.approx(0.025)
    assert errors.structures["mean"].error == pytest.approx(0, abs=1e-4)


def test_a_few_bad_masks_do_not_drag_the_others_along() -> None:
    assert fit(reviewed([0.0] * 10 + [-0.7, -0.6], [0.0] * 12)).shifts["LV"] == pytest.approx(0, abs=1e-9)


def test_many_masks_of_a_patient_count_as_one_patient() -> None:
    masks = reviewed([-0.1] * 10, [0.0] * 10)
    crowded = [*masks, *[replace(masks[0], dice={"LV": 0.1, "MYO": 0.8})] * 30]
    assert fit(crowded).shifts["LV"] == pytest.approx(fit(masks).shifts["LV"], abs=0.01)
    assert fit(crowded).count == 10


def test_errors_are_measured_with_what_the_other_patients_move() -> None:
    off = [-0.1, -0.08, -0.12, -0.05, -0.15, -0.1, -0.09, -0.11, -0.3, -0.02]
    errors = fit(reviewed(off, [0.0] * 10))
    for place, own in enumerate(off):
        others = fit(reviewed([value for n, value in enumerate(off) if n != place], [0.0] * 9))
        missed = 0.8 + own - (0.8 + others.shifts["LV"])
        spread = 1 - (0.8 + others.shifts["LV"]) + 0.05
        assert errors.structures["LV"].residuals[place] == pytest.approx(missed / spread, abs=1e-5)


def test_moving_twice_is_moving_once_and_what_is_missing_stays_so() -> None:
    errors = fit(reviewed([-0.1] * 9, [0.05] * 9))
    once = errors.moved(report(0.7, None))
    assert once.scores[0].predicted_dice == pytest.approx(0.6, abs=1e-4)
    assert [score.predicted_dice for score in once.scores[1:]] == [None, None]
    assert once.mean.low is None
    assert errors.moved(once).to_json() == once.to_json()
    again = QualityReport.from_json(once.to_json())
    assert again.unmoved == (0.7, None, None)


def test_predictions_stay_between_0_and_1() -> None:
    errors = fit(reviewed([-0.3] * 9, [0.15] * 9))
    moved = errors.moved(report(0.1, 0.95))
    assert [score.predicted_dice for score in moved.scores[:2]] == [0, 1]
    assert all(0 <= score.low <= score.high <= 1 for score in moved.scores if score.low is not None)


def test_a_mask_is_the_more_probably_bad_the_lower_its_prediction() -> None:
    generator = np.random.default_rng(0)
    errors = fit(reviewed(generator.normal(-0.05, 0.05, 20).tolist(), generator.normal(0, 0.05, 20).tolist()))
    found = [errors.risk(errors.moved(report(value, value)), {"mean": 0.75}) for value in (0.6, 0.75, 0.95)]
    assert found[0] is not None
    assert found[0] > 0.9
    assert found == sorted(found, reverse=True)
    assert errors.risk(errors.moved(report(None, 0.9)), {"mean": 0.75}) is None


@pytest.mark.parametrize("bias", [-0.15, 0.0, 0.08])
def test_intervals_hold_the_dice_of_new_patients_as_often_as_they_say(bias: float) -> None:
    generator = np.random.default_rng(0)

    def draw(count: int) -> list[ReviewedPrediction]:
        predicted = generator.uniform(0.7, 0.9, count)
        true = np.clip(predicted + bias + 0.05 * generator.standard_t(5, count), 0, 1)
        return [
            ReviewedPrediction(f"p{n}", {"LV": float(p), "MYO": float(p)}, {"LV": float(d), "MYO": float(d)})
            for n, (p, d) in enumerate(zip(predicted, true, strict=True))
        ]

    held = []
    for _ in range(12):
        errors = fit(draw(16))
        for mask in draw(60):
            mean = errors.moved(report(mask.predicted["LV"], mask.predicted["MYO"])).mean
            held.append(mean.low <= mask.dice["LV"] <= mean.high)  # type: ignore[operator]
    # Of 720, of which those of one draw go together.
    assert np.mean(held) >= 0.84


def test_too_few_patients_are_refused_and_the_number_that_is_needed_named() -> None:
    with pytest.raises(DataError, match=r"8 reviewed patients have a mask .* intervals of 90% need 9"):
        fit(reviewed([0.0] * 8, [0.0] * 8))
    without = [replace(mask, predicted={"LV": 0.8, "MYO": None}) for mask in reviewed([0.0] * 9, [0.0] * 9)]
    with pytest.raises(DataError, match="0 reviewed patients"):
        fit(without)
    with pytest.raises(DataError, match="0 reviewed patients"):
        fit([])


def test_what_is_written_comes_back_and_is_of_one_quality_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from medfm_rl.data.files import hash_file

    (tmp_path / "quality.json").write_text("{}")
    assert ReviewedErrors.of_run(tmp_path) is None
    origin = replace(ORIGIN, quality_hash=hash_file(tmp_path / "quality.json"))
    errors = fit_reviewed_errors(reviewed([-0.1] * 9, [0.05] * 9), 0.9, origin)
    errors.write(tmp_path / REVIEWED_FILE)
    assert ReviewedErrors.of_run(tmp_path) == errors
    assert "p0" not in (tmp_path / REVIEWED_FILE).read_text()
    (tmp_path / "quality.json").write_text("{ }")
    with caplog.at_level(logging.WARNING):
        assert ReviewedErrors.of_run(tmp_path) is None
    assert "is of another quality.json than there is now" in caplog.text
    (tmp_path / REVIEWED_FILE).write_text('{"format": 1}')
    with pytest.raises(
        ModelError, match=rf"{REVIEWED_FILE}: not the errors of reviewed patients \(\w+: this field is needed"
    ):
        ReviewedErrors.of_run(tmp_path)
