from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medfm_rl.metrics.bootstrap import paired_bootstrap


def scores(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    before = rng.uniform(0.6, 0.9, count)
    return before, before + rng.normal(0.02, 0.05, count), [f"p{i}" for i in range(count)]


def test_one_case_per_patient_gives_the_interval_of_scipy() -> None:
    before, after, patients = scores()
    ours = paired_bootstrap(before, after, patients)
    theirs = stats.bootstrap(
        (after - before,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    )
    error = float(theirs.standard_error)
    # The 2.5 % quantile of 10,000 draws has a Monte-Carlo error of about 0.027 standard errors; 5 times sqrt(2) of it.
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.19 * error)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.19 * error)
    assert ours.mean == pytest.approx((after - before).mean())
    assert ours.patients == 40
    assert ours.probability_positive == pytest.approx((theirs.bootstrap_distribution > 0).mean(), abs=0.01)


def test_the_cases_are_paired() -> None:
    # Cases differ a lot, each gains the same: the difference is certain.
    before = np.linspace(0.1, 0.8, 12)
    result = paired_bootstrap(before, before + 0.1, [str(i) for i in range(12)])
    assert (result.low, result.mean, result.high) == pytest.approx((0.1, 0.1, 0.1))
    assert result.probability_positive == 1


def test_copies_of_a_patients_image_are_no_further_evidence() -> None:
    before, after, patients = scores()
    once = paired_bootstrap(before, after, patients)
    copies = [np.repeat(before, 4), np.repeat(after, 4), [patient for patient in patients for _ in range(4)]]
    by_patient = paired_bootstrap(*copies)
    by_case = paired_bootstrap(copies[0], copies[1], [str(i) for i in range(160)])
    assert (by_patient.low, by_patient.high) == pytest.approx((once.low, once.high))
    assert by_patient.patients == 40
    # Four times the cases would halve the interval.
    assert (by_patient.high - by_patient.low) / (by_case.high - by_case.low) == pytest.approx(2, rel=0.1)


def test_the_mean_is_over_cases_also_where_patients_have_unequal_numbers() -> None:
    result = paired_bootstrap(np.zeros(4), np.array([0.1, 0.1, 0.1, 0.5]), ["a", "a", "a", "b"], draws=1000)
    assert result.mean == pytest.approx(0.2)
    # The draws are (a, a): 0.1; (a, b): 0.2; (b, b): 0.5.
    assert (result.low, result.high) == pytest.approx((0.1, 0.5))


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    patients = [f"p{i // 2}" for i in range(60)]
    hits = 0
    for draw in range(200):
        difference = 0.03 + np.repeat(rng.normal(0, 0.05, 30), 2) + rng.normal(0, 0.02, 60)
        result = paired_bootstrap(np.zeros(60), difference, patients, draws=500, confidence=0.8, seed=draw)
        hits += result.low <= 0.03 <= result.high
    # 80 % of 200 with a standard deviation of 2.8 %; percentile intervals of 30 patients are a little too narrow.
    assert 0.70 < hits / 200 < 0.88


def test_the_same_seed_gives_the_same_interval() -> None:
    first, second, other = (paired_bootstrap(*scores(), seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert first.low != other.low


def test_less_confidence_gives_a_narrower_interval() -> None:
    wide, narrow = (paired_bootstrap(*scores(), confidence=confidence) for confidence in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_pairs_with_a_missing_value_are_left_out() -> None:
    before, after, patients = scores()
    before[0] = after[1] = np.nan
    assert paired_bootstrap(before, after, patients) == paired_bootstrap(before[2:], after[2:], patients[2:])


def test_one_patient_gives_no_interval() -> None:
    before, after, _ = scores(4)
    with pytest.raises(ValueError, match="at least 2, there are 1"):
        paired_bootstrap(before, after, ["p1"] * 4)
    with pytest.raises(ValueError, match="at least 2, there are 1"):
        paired_bootstrap(np.array([np.nan, 0.5]), np.array([0.5, 0.5]), ["p1", "p2"])
    with pytest.raises(ValueError, match="at least 2, there are 0"):
        paired_bootstrap(np.array([]), np.array([]), [])


def test_lists_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values before, 2 after and 3 patients"):
        paired_bootstrap(np.zeros(3), np.zeros(2), ["a", "b", "c"])
