from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.calibration import calibration_curve

from medfm_rl.metrics.calibration import expected_calibration_error, reliability_curve


def predictions(count: int = 5000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident ones: the outcome is less sure than the prediction."""
    rng = np.random.default_rng(seed)
    p = rng.random(count)
    return p, (rng.random(count) < 0.25 + 0.5 * p).astype(np.uint8)


def test_ece_by_hand() -> None:
    # Two bins. Below 0.5: mean confidence 0.2, 1 of 2 right; above: mean 0.8, 3 of 4 right.
    p = np.array([0.1, 0.3, 0.7, 0.7, 0.9, 0.9])
    y = np.array([1, 0, 1, 0, 1, 1])
    curve = reliability_curve(p, y, bins=2)
    assert curve.confidence == pytest.approx([0.2, 0.8])
    assert curve.accuracy == pytest.approx([0.5, 0.75])
    assert curve.count.tolist() == [2, 4]
    assert expected_calibration_error(p, y, bins=2) == pytest.approx((2 * 0.3 + 4 * 0.05) / 6)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_the_curve_is_that_of_scikit_learn(bins: int) -> None:
    p, y = predictions()
    curve = reliability_curve(p, y, bins)
    accuracy, confidence = calibration_curve(y, p, n_bins=bins, strategy="uniform")
    assert curve.accuracy == pytest.approx(accuracy)
    assert curve.confidence == pytest.approx(confidence)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_is_that_of_a_loop_over_the_bins(bins: int) -> None:
    p, y = predictions()
    edges = np.linspace(0, 1, bins + 1)
    expected = 0.0
    for low, high in pairwise(edges):
        own = (p >= low) & (p < high)
        if own.any():
            expected += own.mean() * abs(p[own].mean() - y[own].mean())
    assert expected_calibration_error(p, y, bins) == pytest.approx(expected)


def test_confidences_of_exactly_zero_and_one_belong_to_the_outer_bins() -> None:
    sure = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    curve = reliability_curve(sure, sure)
    assert curve.confidence.tolist() == curve.accuracy.tolist() == [0, 1]
    assert curve.count.tolist() == [2, 3]
    assert expected_calibration_error(sure, sure) == 0
    assert expected_calibration_error(sure, 1 - sure) == 1


def test_a_flat_map_scores_without_nan() -> None:
    curve = reliability_curve(np.full((4, 5), 0.3, np.float32), np.ones((4, 5), bool))
    assert curve.count.tolist() == [20]
    assert curve.confidence == pytest.approx([0.3])
    assert expected_calibration_error(np.full((4, 5), 0.3), np.ones((4, 5), bool)) == pytest.approx(0.7)


@settings(deadline=None, max_examples=25)
@given(
    p=hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1)),
    bins=st.integers(1, 20),
    data=st.data(),
)
def test_the_bins_hold_every_prediction_once(p: np.ndarray, bins: int, data: st.DataObject) -> None:
    y = data.draw(hnp.arrays(np.uint8, p.shape, elements=st.integers(0, 1)))
    curve = reliability_curve(p, y, bins)
    assert curve.count.sum() == p.size
    assert (curve.count > 0).all()
    assert len(curve.count) <= bins
    assert (curve.count * curve.confidence).sum() == pytest.approx(p.sum())
    assert (curve.count * curve.accuracy).sum() == pytest.approx(y.sum())
    assert (np.diff(curve.confidence) > 0).all()
    # By the triangle inequality ECE is at least the distance of the two overall means.
    assert abs(p.mean() - y.mean()) - 1e-9 <= expected_calibration_error(p, y, bins) <= 1


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([], [], "at least one prediction"),
        ([0.5, 0.5], [1], "2 probabilities and 1 outcomes"),
        ([0.5, 1.2], [1, 0], "0.5 to 1.2"),
        ([-0.1, 0.2], [1, 0], "-0.1 to 0.2"),
        ([0.5, np.nan], [1, 0], "must lie in"),
    ],
    ids=["empty", "lengths", "above", "below", "nan"],
)
def test_what_are_no_probabilities_is_refused(p: list[float], y: list[int], message: str) -> None:
    for function in (reliability_curve, expected_calibration_error):
        with pytest.raises(ValueError, match=message):
            function(np.array(p), np.array(y))
