"""A ventricle cut into discs along its long axis, and the ejection fraction from two of them.

Volumes are sums of discs along the long axis (Simpson's method; R. M. Lang et al., J. Am. Soc. Echocardiogr. 28(1),
2015): from one view the discs are circles, from two they are ellipses with one diameter from each view. The fraction is
a ratio of two such volumes of the same patient, 1 - V(ES) / V(ED), so a lost pixel size cancels. This assumes:

- ED and ES frames of a view have the same pixel size and field of view, as frames of one sequence do;
- pixels need not be square, but then the long axis must point nearly the same way in both frames;
- the long axis is the principal axis of the mask, from its first to its last pixel, apex up; there is no separate
  mitral plane, and of a mask in several parts the largest counts;
- lengths of two views cannot be compared without their pixel sizes, so the length of a two-view volume is their
  geometric mean (of which any factor cancels) and not, as in the clinic, the longer one.

Two ways to treat the length are offered. `own`: each phase has its own, as the formula says. `common`: ES discs are as
thick as ED discs, as if the long axis did not shorten. The published table of CAMUS follows `common`: from the experts'
masks of its first 250 patients (two views) the mean absolute difference is 1.4 points (bias +0.4, correlation .976),
with `own` 8.2 points (bias +8.2, .963).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

DISCS = 20
Length = Literal["common", "own"]
_FINER = 8  # Points along each side of a pixel: thin discs must not count whole rows of pixels.


@dataclass(frozen=True)
class Discs:
    """A ventricle cut into discs of equal height along its long axis.

    Attributes:
        length: Of the long axis, in pixels.
        diameters: From the apex down, in pixels.
    """

    length: float
    diameters: tuple[float, ...]

    @property
    def size(self) -> float:
        """Volume in cubic pixels, of discs that are circles."""
        return float(np.pi / 4 * np.square(self.diameters).sum() * self.length / len(self.diameters))


def measure_discs(mask: npt.NDArray[np.bool_]) -> Discs | None:
    """Cuts a mask `(H, W)` into discs; None where it is empty."""
    if not mask.any():
        return None
    parts, _ = ndimage.label(mask)
    largest = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1
    corner = ndimage.find_objects(largest.astype(np.uint8))[0]
    fine = np.kron(largest[corner], np.ones((_FINER, _FINER), dtype=bool))
    points = np.argwhere(fine) / _FINER
    centred = points - points.mean(axis=0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    if axis[0] < 0:  # Down the rows: from the apex to the base.
        axis = -axis
    along = centred @ axis
    length = float(np.ptp(along)) + 1 / _FINER
    counts, _ = np.histogram(along, bins=DISCS, range=(along.min() - 0.5 / _FINER, along.max() + 0.5 / _FINER))
    diameters = counts / _FINER**2 / (length / DISCS)
    return Discs(length, tuple(float(value) for value in diameters))


def disc_sum(views: Sequence[Discs]) -> float:
    """Area of all discs together, from one view or two, but for the factor pi / 4.

    Raises:
        ValueError: There are neither one nor two views.
    """
    match [np.asarray(view.diameters) for view in views]:
        case [diameters]:
            areas = diameters**2
        case [first, second]:
            areas = first * second
        case _:
            raise ValueError(f"a volume needs one view or two, got {len(views)}")
    return float(areas.sum())


def ejection_fraction(ed: Sequence[Discs], es: Sequence[Discs], length: Length = "common") -> float:
    """Percent of the ED volume that is ejected; negative where the ES volume is the larger one.

    Args:
        ed: The views at end diastole.
        es: The same views at end systole, in the same order.
        length: `own` gives each phase its own length, `common` that of ED to both.
    """
    if len(ed) != len(es):
        raise ValueError(f"{len(ed)} views at ED, {len(es)} at ES")
    remaining = disc_sum(es) / disc_sum(ed)
    if length == "own":
        shortening = [after.length / before.length for before, after in zip(ed, es, strict=True)]
        remaining *= float(np.prod(shortening)) ** (1 / len(shortening))
    return 100 * (1 - remaining)
