from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from medfm_rl.metrics.failure_detection import (
    augrc,
    aurc,
    excess_aurc,
    failure_auroc,
    false_positive_rate,
    interval_coverage,
)

CONFIDENCE = np.array([0.9, 0.8, 0.7, 0.6])
RISK = np.array([0.0, 1.0, 0.0, 1.0])


def test_the_risk_coverage_curve_by_hand() -> None:
    # Mean risks of the first 1, 2, 3, 4: 0, 1/2, 1/3, 1/2.
    assert aurc(CONFIDENCE, RISK) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    # The perfect order: 0, 0, 1/3, 1/2.
    assert excess_aurc(CONFIDENCE, RISK) == pytest.approx((1 / 2) / 4)
    assert excess_aurc(-RISK, RISK) == 0


def test_the_generalised_curve_by_hand() -> None:
    # Sums over 4: 0, 0, 1/4, 1/4, 1/2; trapezoids 0, 1/8, 1/4, 3/8.
    assert augrc(CONFIDENCE, RISK) == pytest.approx((0 + 1 / 8 + 1 / 4 + 3 / 8) / 4)


def test_equal_confidences_are_the_mean_over_all_orders() -> None:
    risk = np.array([0.1, 0.7, 0.4])
    orders = [aurc(np.array([3.0, 2.0, 1.0]), np.array(order)) for order in permutations(risk)]
    assert aurc(np.ones(3), risk) == pytest.approx(np.mean(orders))
    generalised = [augrc(np.array([3.0, 2.0, 1.0]), np.array(order)) for order in permutations(risk)]
    assert augrc(np.ones(3), risk) == pytest.approx(np.mean(generalised))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_for_failures_the_generalised_area_is_what_traub_et_al_say(cases: list[tuple[int, bool]]) -> None:
    confidence, failed = (np.array(values) for values in zip(*cases, strict=True))
    accuracy = 1 - failed.mean()
    if 0 < accuracy < 1:
        area = roc_auc_score(failed, -confidence)
        expected = (1 - area) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
        assert augrc(confidence, failed.astype(float)) == pytest.approx(expected)
        assert failure_auroc(confidence, failed) == pytest.approx(area)


def test_false_alarms_where_failures_are_found() -> None:
    confidence = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    failed = np.array([True, False, True, False, False, False])
    # To find both failures the good case of 0.2 is held back too.
    assert false_positive_rate(confidence, failed) == pytest.approx(1 / 4)
    assert false_positive_rate(confidence, failed, 0.5) == 0
    assert failure_auroc(confidence, failed) == pytest.approx(7 / 8)


@pytest.mark.parametrize("failed", [np.ones(3, bool), np.zeros(3, bool)])
def test_without_both_kinds_there_is_nothing_to_tell_apart(failed: np.ndarray) -> None:
    assert failure_auroc(np.arange(3.0), failed) is None
    assert false_positive_rate(np.arange(3.0), failed) is None


def test_coverage_and_width() -> None:
    found = interval_coverage(np.array([0.1, 0.5, 0.2]), np.array([0.3, 0.9, 0.2]), np.array([0.3, 0.4, 0.2]))
    assert found.share == pytest.approx(2 / 3)
    assert found.width == pytest.approx(0.2)
    with pytest.raises(ValueError, match="at least one interval"):
        interval_coverage(np.zeros(0), np.zeros(0), np.zeros(0))


@pytest.mark.parametrize(
    ("confidence", "risk", "message"),
    [([1.0], [1.0, 2.0], "1 confidences and 2 risks"), ([], [], "at least one case"), ([np.nan], [1.0], "finite")],
)
def test_what_is_no_list_of_cases_is_refused(confidence: list[float], risk: list[float], message: str) -> None:
    for metric in (aurc, excess_aurc, augrc):
        with pytest.raises(ValueError, match=message):
            metric(np.array(confidence), np.array(risk))
