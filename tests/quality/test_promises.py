"""What a few reviewed patients prove of accepted masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medfm_rl.choices import PromiseUnit
from medfm_rl.errors import ModelError
from medfm_rl.quality.promises import (
    Promise,
    PromiseTarget,
    ReviewedMask,
    bet_for,
    fewest_for_promise,
    p_value,
    patient_losses,
    prove,
)

TARGET = PromiseTarget()
WORST = PromiseTarget(unit="worst")


def masks(patients: int, bad: int = 0, predicted: float = 0.9) -> list[ReviewedMask]:
    return [
        ReviewedMask(f"c{number}", f"p{number}", predicted, True, 0.5 if number < bad else 0.9)
        for number in range(patients)
    ]


@pytest.mark.parametrize("target", [TARGET, WORST])
def test_22_patients_without_a_bad_mask_are_enough_and_21_are_not(target: PromiseTarget) -> None:
    assert fewest_for_promise(target) == 22
    assert prove(masks(22), target).p_value == pytest.approx(0.9**22)
    assert prove(masks(22), target).threshold == pytest.approx(0.9)
    few = prove(masks(21), target)
    assert few.threshold is None
    assert "review 1 more" in few.reason


def test_one_bad_patient_needs_38_by_the_exact_test_and_47_by_betting() -> None:
    # P(Bin(38, .1) <= 1) = .9^38 + 38 .1 .9^37 = .0953, and .1047 with 37; 47 KL(1/47, .1) = 2.31 > log 10 = 2.3026.
    assert prove(masks(38, bad=1), WORST).threshold == pytest.approx(0.9)
    assert prove(masks(37, bad=1), WORST).threshold is None
    assert prove(masks(47, bad=1), TARGET).threshold == pytest.approx(0.9)
    assert prove(masks(46, bad=1), TARGET).threshold is None
    assert bet_for(46, TARGET) == pytest.approx(1 / 0.9)
    assert bet_for(47, TARGET) == pytest.approx((0.1 - 1 / 47) / 0.09)


def test_a_patient_with_one_bad_mask_of_four_costs_less_than_one_who_is_bad() -> None:
    # All in, the bet is 1 / .9: a loss of 1/4 multiplies by 1 - .15 / .9 = .8333 where no loss gives 1.1111.
    losses = np.array([0.25] + [0.0] * 24)
    assert 1 / p_value(losses, TARGET) == pytest.approx((1 / 0.9) ** 24 * (1 - 0.15 / 0.9))
    assert p_value(losses, TARGET) <= 0.1 < p_value(losses[:-1], TARGET)


def test_masks_of_one_patient_are_one_piece_of_evidence() -> None:
    one = [ReviewedMask(f"c{number}", "p0", 0.9, True, 0.9) for number in range(100)]
    assert prove(one, TARGET).threshold is None
    mixed = [*one[:3], ReviewedMask("c3", "p0", 0.9, True, 0.2)]
    assert patient_losses(mixed, 0.5, TARGET).tolist() == [0.25]
    assert patient_losses(mixed, 0.5, WORST).tolist() == [1]


def test_nothing_below_what_reviewers_have_seen_is_accepted() -> None:
    several = [replace(mask, predicted=0.7 + 0.01 * number) for number, mask in enumerate(masks(30))]
    found = prove(several, TARGET)
    assert (found.threshold, found.accepted_patients) == (pytest.approx(0.7), 30)
    assert not found.accepts(0.69, True)


def test_the_threshold_leaves_out_what_is_predicted_to_be_bad() -> None:
    low = [ReviewedMask(f"d{number}", f"q{number}", 0.6, True, 0.3) for number in range(5)]
    found = prove([*masks(30), *low], TARGET)
    assert found.threshold == pytest.approx(0.9)
    assert (found.accepted_patients, found.bad_masks, found.patients) == (30, 0, 35)
    assert found.accepts(0.9, True)
    assert not found.accepts(0.899, True)
    assert not found.accepts(0.9, False)
    assert not found.accepts(None, True)


def test_masks_without_prediction_or_against_a_rule_prove_nothing() -> None:
    unusable = [ReviewedMask(f"d{n}", f"q{n}", None if n % 2 else 0.9, n % 2 == 1, 0.9) for n in range(30)]
    found = prove([*masks(10), *unusable], TARGET)
    assert found.threshold is None
    assert "10 reviewed patients" in found.reason


@pytest.mark.parametrize(("unit", "patients"), [("mean", 26), ("worst", 40)])
def test_the_promise_is_broken_in_no_more_calibrations_than_confidence_allows(unit: PromiseUnit, patients: int) -> None:
    """Some patients are hard, and predicted to be: with them, more than `alpha` of the masks are bad, without few.

    The true loss at a threshold is known from a large sample of patients.
    """
    target = PromiseTarget(unit=unit)
    generator = np.random.default_rng(0)
    chances = (0.03, 0.7) if unit == "mean" else (0.01, 0.5)

    def draw(count: int) -> list[ReviewedMask]:
        hard = generator.random(count) < 0.13
        scores = np.clip(np.where(hard, 0.6, 0.85)[:, None] + generator.normal(0, 0.05, (count, 3)), 0, 1)
        bad = generator.random((count, 3)) < np.where(hard, chances[1], chances[0])[:, None]
        return [
            ReviewedMask(f"{n}-{k}", f"p{n}", float(scores[n, k]), True, 0.5 if bad[n, k] else 0.9)
            for n in range(count)
            for k in range(3)
        ]

    everybody = draw(1500)
    true_loss: dict[float, float] = {}
    broken = proven = 0
    repeats = 100
    for _ in range(repeats):
        threshold = prove(draw(patients), target).threshold
        if threshold is None:
            continue
        proven += 1
        if threshold not in true_loss:
            true_loss[threshold] = float(patient_losses(everybody, threshold, target).mean())
        broken += true_loss[threshold] > target.alpha
    # At most 10 % are broken; more than this many by chance in one of a thousand simulations.
    assert broken <= stats.binom.ppf(0.999, repeats, 0.1)
    assert proven > 0


def test_at_the_limit_the_betting_test_rejects_in_no_more_than_a_tenth() -> None:
    generator = np.random.default_rng(1)
    for size in (22, 30, 60):
        rejected = [p_value(generator.binomial(4, 0.1, size) / 4, TARGET) <= 0.1 + 1e-9 for _ in range(2000)]
        assert np.mean(rejected) <= 0.1 + 3 * np.sqrt(0.09 / 2000)


def test_a_promise_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    promise = prove(masks(24), TARGET)
    promise.write(tmp_path / "promise.json")
    assert Promise.read(tmp_path / "promise.json") == promise


@pytest.mark.parametrize("content", ["{}", "[]", '{"format": 99}', '{"format": 2, "threshold": 1}'])
def test_a_file_that_is_no_promise_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "promise.json").write_text(content)
    with pytest.raises(ModelError, match=r"promise\.json"):
        Promise.read(tmp_path / "promise.json")
