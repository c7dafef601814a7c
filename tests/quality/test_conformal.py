from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfm_rl.quality.conformal import (
    accept_threshold,
    effective_patients,
    fewest_for_intervals,
    fewest_for_threshold,
    interval,
    patient_quantile,
    predictive_probability,
    residuals,
    threshold_candidates,
    weighted_quantile,
)


def test_the_quantile_by_hand() -> None:
    scores = np.array([3.0, 1.0, 2.0, 4.0])
    # 4 patients weigh 1 / 5 each: 80 % are reached with the last.
    assert patient_quantile(scores, list("abcd"), 0.8) == 4
    assert patient_quantile(scores, list("abcd"), 0.6) == 3
    assert patient_quantile(scores, list("abcd"), 0.9) == math.inf
    # Two patients: 1 / 3 for the one case of a, 1 / 9 for each of the three of b.
    assert patient_quantile(np.array([5.0, 1.0, 2.0, 3.0]), list("abbb"), 0.3) == 3
    assert patient_quantile(np.array([5.0, 1.0, 2.0, 3.0]), list("abbb"), 0.6) == 5


def test_the_weighted_quantile_by_hand() -> None:
    scores, weights = np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 2.0])
    # Of 5 in all the case itself has 1: 1/5, 2/5 and 4/5 are reached.
    assert weighted_quantile(scores, weights, list("abc"), 1.0, 0.4) == 2
    assert weighted_quantile(scores, weights, list("abc"), 1.0, 0.8) == 3
    assert weighted_quantile(scores, weights, list("abc"), 1.0, 0.9) == math.inf
    # A case that is unlike all others is known nothing of; one that is likelier among them has their quantile.
    assert weighted_quantile(scores, weights, list("abc"), 100.0, 0.5) == math.inf
    assert weighted_quantile(scores, weights, list("abc"), 1e-9, 0.24) == 1
    # The two cases of b share the weight of one patient.
    assert weighted_quantile(np.array([1.0, 2.0, 3.0]), np.ones(3), list("abb"), 1.0, 0.5) == 2


@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5)), min_size=1, max_size=30),
    st.floats(0.1, 10),
    st.floats(0.05, 0.95),
)
def test_equal_weights_change_nothing(rows: list[tuple[float, int]], weight: float, confidence: float) -> None:
    scores, patients = np.array([score for score, _ in rows]), [str(patient) for _, patient in rows]
    plain = patient_quantile(scores, patients, confidence)
    assert weighted_quantile(scores, np.full(len(rows), weight), patients, weight, confidence) == plain


def test_how_many_patients_weighted_ones_are_worth() -> None:
    assert effective_patients(np.ones(4), list("aabc"), np.ones(2)) == pytest.approx(3)
    # (1 + 1 + 2)^2 / (1 + 1 + 4)
    assert effective_patients(np.array([1.0, 1.0, 2.0]), list("abc"), np.ones(1)) == pytest.approx(16 / 6)
    # None of them is like the new cases.
    assert effective_patients(np.full(30, 0.05), [str(row) for row in range(30)], np.full(3, 20.0)) < 0.1


def test_with_one_case_for_each_patient_it_is_the_split_conformal_interval_of_mapie() -> None:
    from mapie.regression import SplitConformalRegressor
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1))
    y = 2 * x[:, 0] + rng.normal(size=200)
    model = LinearRegression().fit(x[:100], y[:100])
    reference = SplitConformalRegressor(model, confidence_level=0.9, prefit=True).conformalize(x[100:], y[100:])
    _, intervals = reference.predict_interval(x[:1])
    half = float(intervals[0, 1, 0] - intervals[0, 0, 0]) / 2
    scores = np.abs(y[100:] - model.predict(x[100:]))
    assert patient_quantile(scores, [str(row) for row in range(100)], 0.9) == pytest.approx(half)


def test_intervals_cover_new_patients_whose_cases_depend_on_each_other() -> None:
    rng = np.random.default_rng(0)

    def draw(patients: int) -> tuple[np.ndarray, list[str]]:
        sizes = rng.integers(1, 9, patients)
        scores = [np.abs(rng.normal() + 0.2 * rng.normal(size=size)) for size in sizes]
        return np.concatenate(scores), [str(row) for row, size in enumerate(sizes) for _ in range(size)]

    covered = []
    for _ in range(400):
        quantile = patient_quantile(*draw(19), 0.9)
        covered.append(draw(1)[0][0] <= quantile)
    # At least 90 %, less three standard errors.
    assert np.mean(covered) >= 0.9 - 3 * math.sqrt(0.09 / 400)


@pytest.mark.parametrize(("confidence", "needed"), [(0.9, 9), (0.8, 4), (0.95, 19)])
def test_how_many_patients_an_interval_needs(confidence: float, needed: int) -> None:
    assert fewest_for_intervals(confidence) == needed
    names = [str(row) for row in range(needed)]
    assert math.isfinite(patient_quantile(np.arange(needed, dtype=float), names, confidence))
    assert patient_quantile(np.arange(needed - 1.0), names[1:], confidence) == math.inf


def test_an_interval_is_wider_where_the_prediction_is_low_and_stays_a_dice() -> None:
    low, high = interval(0.9, 0.4)
    assert (low, high) == (pytest.approx(0.84), pytest.approx(0.96))
    assert interval(0.5, 0.4)[1] - interval(0.5, 0.4)[0] > high - low
    assert interval(0.97, 2.0) == (pytest.approx(0.81), 1.0)
    assert interval(0.5, math.inf) == (0.0, 1.0)
    assert residuals(np.array([0.9]), np.array([0.84]))[0] == pytest.approx(-0.4)


def test_a_threshold_needs_enough_patients_and_then_is_the_lowest() -> None:
    needed = fewest_for_threshold(0.1, 0.9)
    # 0.9 ^ 37 is the first power below 0.1 / 5.
    assert needed == 38 or 0.9**needed <= 0.02 < 0.9 ** (needed - 1)
    predicted = np.linspace(0.7, 0.95, needed)
    candidates = np.array([0.7, 0.71, 0.72, 0.73, 0.74])
    good = np.ones(needed, bool)
    assert accept_threshold(predicted, good, candidates, 0.1, 0.9) == 0.7
    few = slice(0, needed - 1)
    assert accept_threshold(predicted[few], good[few], candidates, 0.1, 0.9) is None


def test_no_threshold_is_given_where_bad_masks_look_like_good_ones() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.uniform(0.7, 0.95, 200)
    assert accept_threshold(predicted, rng.random(200) > 0.3, threshold_candidates(predicted), 0.1, 0.9) is None
    assert accept_threshold(np.array([0.5]), np.array([True]), np.array([0.8]), 0.1, 0.9) is None


def test_the_accepted_keep_the_limit_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    broken, given = 0, 0
    candidates = np.array([0.2, 0.4, 0.6, 0.8, 0.9])

    def bad_above(threshold: float) -> float:
        """True share of bad masks among the accepted: predicted p is bad with a probability of 0.6 (1 - p)."""
        return 0.6 * (1 - (1 + threshold) / 2)

    for _ in range(200):
        predicted = rng.random(300)
        good = rng.random(300) >= 0.6 * (1 - predicted)
        threshold = accept_threshold(predicted, good, candidates, 0.2, 0.9)
        given += threshold is not None
        broken += threshold is not None and bad_above(threshold) > 0.2
    assert given > 100
    assert broken / 200 <= 0.1 + 3 * math.sqrt(0.09 / 200)


def test_the_probability_of_an_event_counts_the_new_case_by_half() -> None:
    event, patients = np.array([True, True, False, False]), ["a", "a", "b", "b"]
    ones = np.ones(4)
    assert predictive_probability(event, ones, patients, 1.0) == pytest.approx(1.5 / 3)
    assert predictive_probability(~event & False, ones, patients, 1.0) == pytest.approx(0.5 / 3)
    # A patient's mean weight is the patient's.
    assert predictive_probability(event, np.array([3.0, 3, 1, 1]), patients, 2.0) == pytest.approx(4 / 6)
    assert predictive_probability(np.zeros(0, bool), np.zeros(0), [], 1.0) == 0.5


def test_the_probability_of_an_event_is_right_on_average() -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(400):
        errors = generator.normal(size=13)
        found.append(predictive_probability(errors[:12] < -1, np.ones(12), list(range(12)), 1.0))
    # P(error < -1) = .1587; the new case pulls it by (1/2 - p) / 13.
    assert np.mean(found) == pytest.approx(0.1587 + (0.5 - 0.1587) / 13, abs=0.015)
