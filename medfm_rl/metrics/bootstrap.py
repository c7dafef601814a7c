"""Intervals of paired differences, by resampling patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

FEW_PATIENTS: Final = 10
"""Below so many, whoever shows what was measured of patients says that others may differ."""


@dataclass(frozen=True)
class PairedDifference:
    """A mean paired difference with its percentile interval.

    Attributes:
        mean: Mean of after - before over cases.
        low: Lower end of the interval.
        high: Upper end of the interval.
        probability_positive: Share of the bootstrap draws above 0.
        patients: Patients that were resampled.
    """

    mean: float
    low: float
    high: float
    probability_positive: float
    patients: int


def paired_bootstrap(
    before: npt.NDArray[np.floating],
    after: npt.NDArray[np.floating],
    patients: Sequence[str],
    draws: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Percentile bootstrap of the mean of `after - before` (Efron, 1979).

    Patients are drawn, not cases: the images of a patient are no independent evidence. Pairs in which a value is NaN
    are left out.

    Args:
        before: One value per case.
        after: One value per case, the same cases.
        patients: Patient of each case.
        draws: Bootstrap draws.
        confidence: Confidence of the interval, two-sided.
        seed: Seed of the draws.

    Raises:
        ValueError: There are fewer than two patients, or the lengths differ.
    """
    if not len(before) == len(after) == len(patients):
        raise ValueError(f"{len(before)} values before, {len(after)} after and {len(patients)} patients")
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    known = np.isfinite(difference)
    difference = difference[known]
    names, index = np.unique(np.asarray(patients)[known], return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"a bootstrap over patients needs at least 2, there are {len(names)}")
    sums, counts = np.bincount(index, difference), np.bincount(index)
    weights = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    means = (weights @ sums) / (weights @ counts)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return PairedDifference(float(difference.mean()), float(low), float(high), float((means > 0).mean()), len(names))
