"""Whether probabilities mean what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """Predicted against observed, in bins of equal width; empty bins are left out.

    Attributes:
        confidence: Mean predicted probability of each bin.
        accuracy: Share of positive outcomes of each bin.
        count: Predictions in each bin.
    """

    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    count: npt.NDArray[np.int64]


def reliability_curve(probabilities: npt.NDArray[Any], outcomes: npt.NDArray[Any], bins: int = 15) -> ReliabilityCurve:
    """Bins predictions by their probability.

    Args:
        probabilities: In [0, 1], any shape; exactly 0 and 1 belong to the outer bins.
        outcomes: 0 or 1, the same shape.
        bins: Bins of equal width over [0, 1].

    Raises:
        ValueError: There is no prediction, one lies outside [0, 1], or there are more or fewer outcomes.
    """
    p, y = np.ravel(probabilities).astype(np.float64), np.ravel(outcomes).astype(np.float64)
    if p.size != y.size:
        raise ValueError(f"{p.size} probabilities and {y.size} outcomes; there must be one outcome per probability")
    if p.size == 0:
        raise ValueError("calibration needs at least one prediction, there is none")
    if not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(f"probabilities must lie in [0, 1], they go from {p.min():g} to {p.max():g}")
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    confidence = np.bincount(index, p, bins)[filled] / count[filled]
    accuracy = np.bincount(index, y, bins)[filled] / count[filled]
    return ReliabilityCurve(confidence, accuracy, count[filled])


def expected_calibration_error(probabilities: npt.NDArray[Any], outcomes: npt.NDArray[Any], bins: int = 15) -> float:
    """Mean distance of confidence and accuracy over all predictions (Naeini et al., AAAI 2015), in [0, 1]."""
    curve = reliability_curve(probabilities, outcomes, bins)
    return float(np.average(np.abs(curve.confidence - curve.accuracy), weights=curve.count))
