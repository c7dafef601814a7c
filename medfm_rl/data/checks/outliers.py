"""Which of many numbers are unlike the others: the one rule for spacing, size and values.

A number is called unlike the others where it lies further from their median than both

- 3.5 robust standard deviations, 1.4826 times the median absolute deviation from the median (MAD): the limit of B.
  Iglewicz and D. Hoaglin, How to Detect and Handle Outliers, 1993. Median and MAD stay what they are until half of the
  numbers are odd, where mean and standard deviation are drawn along by one; and
- a least distance, below which nobody would care: where most are equal the MAD is 0, and rounding would be an outlier.

Below three numbers nothing is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

_DEVIATIONS: Final = 3.5
_TO_STANDARD_DEVIATION: Final = 1.4826
"""MAD of a normal distribution is its standard deviation divided by this."""
FEWEST: Final = 3
"""Cases from which on most of them are something."""
K = TypeVar("K")
V = TypeVar("V")


def unlike_the_others(rows: Mapping[K, Sequence[float]], least: float | Sequence[float]) -> dict[K, list[bool]]:
    """Which numbers of each row are unlike those of the same place in the other rows; rows with none are left out.

    Args:
        rows: Numbers, as many in each row.
        least: Distance from the median below which nothing is said, of all or of each place.
    """
    if len(rows) < FEWEST:
        return {}
    values: npt.NDArray[np.float64] = np.array(list(rows.values()), dtype=np.float64)
    distance = abs(values - np.median(values, axis=0))
    limit = np.maximum(_DEVIATIONS * _TO_STANDARD_DEVIATION * np.median(distance, axis=0), least)
    far = distance > limit
    return {key: row.tolist() for key, row in zip(rows, far, strict=True) if row.any()}


def unlike_most(rows: Mapping[K, V]) -> tuple[V, dict[K, V]] | None:
    """What more than half of the rows are, and the rows that are something else; None where there is no such thing."""
    if len(rows) < FEWEST:
        return None
    (value, count), *others = Counter(rows.values()).most_common()
    if not others or 2 * count <= len(rows):
        return None
    return value, {key: other for key, other in rows.items() if other != value}
