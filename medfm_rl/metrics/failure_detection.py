"""Whether predicted qualities find the bad masks, and mean what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class IntervalCoverage:
    """How often intervals hold the truth.

    Attributes:
        share: Share of the cases whose truth lies within its interval, ends included.
        width: Mean width of the intervals.
    """

    share: float
    width: float


def aurc(confidence: npt.NDArray[Any], risk: npt.NDArray[Any]) -> float:
    """Area under the risk-coverage curve (Geifman and El-Yaniv, NeurIPS 2017).

    The mean, over k = 1 .. n, of the mean risk of the k most confident cases. Among equal confidences the order is
    random, and the expectation over it is taken.

    Args:
        confidence: One for each case, higher is better: a predicted Dice, for example.
        risk: One for each case: 1 - Dice, for example.

    Raises:
        ValueError: There is no case, a value is not finite, or the lengths differ.
    """
    ordered = _ordered(confidence, risk)
    return float((np.cumsum(ordered) / np.arange(1, len(ordered) + 1)).mean())


def excess_aurc(confidence: npt.NDArray[Any], risk: npt.NDArray[Any]) -> float:
    """AURC above that of the perfect order (Geifman, Uziel and El-Yaniv, ICLR 2019); 0 is the best there is.

    Args:
        confidence: As in `aurc`.
        risk: As in `aurc`.

    Raises:
        ValueError: As in `aurc`.
    """
    return aurc(confidence, risk) - aurc(-np.asarray(risk, dtype=np.float64), risk)


def augrc(confidence: npt.NDArray[Any], risk: npt.NDArray[Any]) -> float:
    """Area under the generalised risk-coverage curve (Traub et al., NeurIPS 2024).

    The generalised risk at coverage k / n is the risk of the k most confident cases summed and divided by n: the mean
    risk of failures that pass unseen. By trapezoids from coverage 0 on.

    Args:
        confidence: As in `aurc`.
        risk: As in `aurc`.

    Raises:
        ValueError: As in `aurc`.
    """
    ordered = _ordered(confidence, risk)
    curve = np.concatenate([[0.0], np.cumsum(ordered) / len(ordered)])
    return float((curve[1:] + curve[:-1]).mean() / 2)


def failure_auroc(confidence: npt.NDArray[Any], failed: npt.NDArray[Any]) -> float | None:
    """Probability that a failure has a lower confidence than a success; None where there are not both.

    Args:
        confidence: As in `aurc`.
        failed: Whether each case is a failure.
    """
    from sklearn.metrics import roc_auc_score

    outcome = np.asarray(failed, dtype=bool)
    if outcome.all() or not outcome.any():
        return None
    return float(roc_auc_score(outcome, -np.asarray(confidence, dtype=np.float64)))


def false_positive_rate(
    confidence: npt.NDArray[Any], failed: npt.NDArray[Any], true_positive_rate: float = 0.95
) -> float | None:
    """Share of the good cases that are held back where at least this share of the failures is; None without both.

    Args:
        confidence: As in `aurc`.
        failed: Whether each case is a failure.
        true_positive_rate: Share of the failures that have to be found.
    """
    from sklearn.metrics import roc_curve

    outcome = np.asarray(failed, dtype=bool)
    if outcome.all() or not outcome.any():
        return None
    held_back, found, _ = roc_curve(outcome, -np.asarray(confidence, dtype=np.float64), drop_intermediate=False)
    return float(held_back[found >= true_positive_rate - 1e-12].min())


def interval_coverage(low: npt.NDArray[Any], high: npt.NDArray[Any], truth: npt.NDArray[Any]) -> IntervalCoverage:
    """Share of intervals that hold the truth, and their mean width.

    Raises:
        ValueError: There is no interval.
    """
    below, above, value = (np.asarray(values, dtype=np.float64) for values in (low, high, truth))
    if len(value) == 0:
        raise ValueError("coverage needs at least one interval, there is none")
    inside = (below <= value) & (value <= above)
    return IntervalCoverage(float(inside.mean()), float((above - below).mean()))


def _ordered(confidence: npt.NDArray[Any], risk: npt.NDArray[Any]) -> Array:
    """Risks from the most to the least confident case; cases of equal confidence share their mean."""
    confident, risks = (np.ravel(values).astype(np.float64) for values in (confidence, risk))
    if len(confident) != len(risks):
        raise ValueError(f"{len(confident)} confidences and {len(risks)} risks; there must be one for each case")
    if len(risks) == 0 or not (np.isfinite(confident).all() and np.isfinite(risks).all()):
        raise ValueError("confidences and risks must be finite, and of at least one case")
    _, group, counts = np.unique(-confident, return_inverse=True, return_counts=True)
    shared = np.bincount(group, risks) / counts
    return np.asarray(np.repeat(shared, counts))
