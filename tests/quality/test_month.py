"""Mean and rate of a month's masks from a few reviewed ones and predictions of all."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from medfm_rl.errors import DataError
from medfm_rl.quality.month import (
    MonthMask,
    failure_probability,
    month_mean,
    month_rate,
    power_tuned_mean,
)


def test_a_mean_by_hand() -> None:
    # Reviewed y = (.6, .8), f = (.5, .9); others f' = (.7, .9).
    y, f, others = np.array([0.6, 0.8]), np.array([0.5, 0.9]), np.array([0.7, 0.9])
    first = power_tuned_mean(y, f, others, weight=1.0)
    # mean(f') + mean(y - f) = .8 + 0; variances .01 / 2 of f' and .01 / 2 of (.1, -.1).
    assert first.value == pytest.approx(0.8)
    assert first.error == pytest.approx(0.1)
    tuned = power_tuned_mean(y, f, others)
    # cov(y, f) = .02, over (1 + 2 / 2) times the variance of (.5, .9, .7, .9), .11 / 3.
    assert tuned.weight == pytest.approx(0.02 / (2 * 0.11 / 3))
    assert tuned.value == pytest.approx(0.7 + tuned.weight * (0.8 - 0.7))


@pytest.mark.parametrize(("count", "others"), [(10, 20), (16, 200), (40, 60)])
def test_it_is_that_of_the_authors_package(count: int, others: int) -> None:
    with warnings.catch_warnings():
        # The package silences all warnings of the process when it is imported.
        warnings.simplefilter("ignore")
        ppi = pytest.importorskip("ppi_py")
    generator = np.random.default_rng(count)
    truth = generator.beta(8, 2, count + others)
    predicted = np.clip(truth + generator.normal(0, 0.1, count + others), 0, 1)
    found = power_tuned_mean(truth[:count], predicted[:count], predicted[count:])
    low, high = ppi.ppi_mean_ci(truth[:count], predicted[:count], predicted[count:], alpha=0.1)
    reach = stats.norm.ppf(0.95) * found.error
    assert found.value - reach == pytest.approx(low[0], abs=1e-9)
    assert found.value + reach == pytest.approx(high[0], abs=1e-9)


def test_predictions_that_tell_nothing_get_no_weight_and_change_nothing() -> None:
    masks = [MonthMask(f"p{n}", 0.8, 0.7 + 0.01 * n) for n in range(10)] + [MonthMask(f"q{n}", 0.8) for n in range(50)]
    found = month_mean(masks)
    assert found.weight == 0
    assert found.value == pytest.approx(0.745)
    assert found.width_ratio == 1
    interval = stats.t.interval(0.95, 9, 0.745, np.std([0.7 + 0.01 * n for n in range(10)], ddof=1) / np.sqrt(10))
    assert (found.low, found.high) == pytest.approx(interval)


def test_masks_count_alike_however_many_a_patient_has() -> None:
    masks = [MonthMask(f"p{n}", 0.5, 1.0) for n in range(8)] + [MonthMask("p8", 0.5, 0.0)] * 8
    assert month_mean(masks).value == pytest.approx(0.5)


def test_no_failure_among_the_reviewed_is_no_proof_that_there_is_none() -> None:
    masks = [MonthMask(f"p{n}", 0.1, 0.0) for n in range(20)] + [MonthMask(f"q{n}", 0.1) for n in range(50)]
    found = month_rate(masks)
    assert found.low == 0
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_a_rate_alone_is_that_of_clopper_and_pearson() -> None:
    masks = [MonthMask(f"p{n}", 0.1, float(n < 3)) for n in range(20)]
    found = month_rate(masks)
    exact = stats.binomtest(3, 20).proportion_ci(0.95)
    assert (found.labelled_low, found.labelled_high) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize("reviewed", [16, 32])
def test_intervals_hold_and_are_narrower_than_those_of_the_reviewed_alone(reviewed: int) -> None:
    generator = np.random.default_rng(reviewed)
    mean, spread = 0.85, 0.08
    rate = 0.2
    limit = mean + spread * stats.norm.ppf(rate)
    held = {"mean": 0, "rate": 0}
    ratios: dict[str, list[float]] = {"mean": [], "rate": []}
    repeats = 200
    for _ in range(repeats):
        own = generator.normal(mean, spread, (reviewed + 200, 1))
        dice = own + generator.normal(0, 1e-9, (reviewed + 200, 2))
        predicted = dice - 0.03 + generator.normal(0, 0.03, dice.shape)
        shown = [
            (f"p{n}", float(predicted[n, k]), float(dice[n, k]) if n < reviewed else None)
            for n in range(len(dice))
            for k in range(2)
        ]
        found = month_mean([MonthMask(*row) for row in shown])
        failing = month_rate(
            [
                MonthMask(patient, failure_probability(guess, limit, 0.03), None if value is None else value < limit)
                for patient, guess, value in shown
            ]
        )
        held["mean"] += found.low <= mean <= found.high
        held["rate"] += failing.low <= rate <= failing.high
        ratios["mean"].append(found.width_ratio)
        ratios["rate"].append(failing.width_ratio)
    # 95 %, less three standard errors of 200 repeats.
    assert min(held.values()) / repeats >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / repeats), held
    assert np.mean(ratios["mean"]) < 0.7
    assert np.mean(ratios["rate"]) < 1


def test_a_failure_is_as_probable_as_the_error_of_predictions_makes_it() -> None:
    assert failure_probability(0.8, 0.8, 0.05) == 0.5
    # A mean absolute error of sqrt(2 / pi) standard deviations: one of these below the limit.
    assert failure_probability(0.7, 0.8, 0.1 * np.sqrt(2 / np.pi)) == pytest.approx(stats.norm.cdf(1))


def test_a_patient_reviewed_in_part_and_too_few_patients_are_refused() -> None:
    whole = [MonthMask(f"p{n}", 0.8, 0.8) for n in range(8)]
    with pytest.raises(DataError, match=r"p0: 1 of 2 masks were reviewed"):
        month_mean([*whole, MonthMask("p0", 0.8)])
    with pytest.raises(DataError, match="7 patients of the month"):
        month_mean(whole[:7])
