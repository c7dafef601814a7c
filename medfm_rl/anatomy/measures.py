"""Measures of the structures of a mask, each taken once however many rules ask for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medfm_rl.structures import bounding_box, pixels_of
from medfm_rl.types import LabelMap, LabelSchema

Mask = npt.NDArray[np.bool_]
T = TypeVar("T")


def _once(measure: Callable[[MaskView, str], T]) -> Callable[[MaskView, str], T]:
    """Keeps a measure of a structure for the next rule that asks."""

    @wraps(measure)
    def kept(view: MaskView, structure: str) -> T:
        key = (measure.__name__, structure)
        if key not in view.found:
            view.found[key] = measure(view, structure)
        found: T = view.found[key]
        return found

    return kept


class MaskView:
    """The structures of one mask and what is measured in them, each found once however many rules ask for it.

    Args:
        labels: Class indices `(*S)`.
        schema: Structures.
        spacing: Size of a pixel in mm in array order, or None where it is unknown.
        cropped: Whether to look at the box of all structures alone, and one pixel around it, which is faster and enough
            for every rule but those about the background.
    """

    def __init__(
        self, labels: LabelMap, schema: LabelSchema, spacing: tuple[float, ...] | None, cropped: bool = True
    ) -> None:
        self.pixels = labels.size
        self.has_spacing = spacing is not None
        self.spacing = spacing or (1.0,) * labels.ndim
        self.schema = schema
        self._labels = labels[_box(labels > 0, margin=1)] if cropped else labels
        self.found: dict[tuple[str, str], Any] = {}

    @_once
    def mask(self, structure: str) -> Mask:
        """Where the structure is, in the box of everything that is segmented and one pixel around it, or in all."""
        return pixels_of(self._labels, self.schema.classes_of(structure))

    @_once
    def size(self, structure: str) -> int:
        """Pixels of the structure."""
        return int(np.count_nonzero(self.mask(structure)))

    def has(self, structure: str) -> bool:
        """Whether the structure is there."""
        return self.size(structure) > 0

    @_once
    def box(self, structure: str) -> tuple[slice, ...]:
        """Bounding box of the structure."""
        return _box(self.mask(structure))

    @_once
    def grown(self, structure: str) -> Mask:
        """The structure and the pixels across its faces."""
        return grow(self.mask(structure))

    @_once
    def holes(self, structure: str) -> Mask:
        """Pixels that the structure encloses."""
        return _holes(self.mask(structure), self.box(structure))

    @_once
    def parts(self, structure: str) -> npt.NDArray[np.int64]:
        """Sizes in pixels of the connected parts of the structure."""
        return part_sizes(self.mask(structure)[self.box(structure)])

    @property
    def pixel_size(self) -> float:
        """Area or volume of a pixel, in mm^2 or mm^3, or 1."""
        return float(np.prod(self.spacing))

    @property
    def size_unit(self) -> str:
        return f"mm^{len(self.spacing)}" if self.has_spacing else "px"


def _box(mask: Mask, margin: int = 0) -> tuple[slice, ...]:
    """The bounding box of what is there, and `margin` pixels around it; everything where there is nothing."""
    return bounding_box(mask, margin) or (slice(None),) * mask.ndim


def shifted(ndim: int, axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of all pixels but the first along an axis, and of all but the last: neighbours across a face."""
    everything = [slice(None)] * ndim
    ahead, behind = everything.copy(), everything.copy()
    ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
    return tuple(ahead), tuple(behind)


def grow(mask: Mask) -> Mask:
    """Dilation by one pixel across faces: several times as fast as SciPy's."""
    grown = mask.copy()
    for axis in range(mask.ndim):
        ahead, behind = shifted(mask.ndim, axis)
        grown[ahead] |= mask[behind]
        grown[behind] |= mask[ahead]
    return grown


def is_plainly_one_part(box: Mask) -> bool:
    """Whether a mask in its bounding box has one run in each row, which touches that of the row before.

    Then it is one part without holes, and to see that takes a fifth of the time that it takes to label it. Of any other
    mask, and of a volume, it says no.
    """
    if box.ndim != 2 or not box.any(axis=1).all():
        return False
    starts = np.count_nonzero(box[:, 1:] & ~box[:, :-1]) + np.count_nonzero(box[:, 0])
    return bool(starts == len(box) and (box[1:] & box[:-1]).any(axis=1).all())


def part_sizes(mask: Mask) -> npt.NDArray[np.int64]:
    """Pixels of each connected part, the smallest first."""
    if is_plainly_one_part(mask):
        return np.array([np.count_nonzero(mask)])
    return np.sort(np.bincount(ndimage.label(mask)[0].ravel())[1:])


def count_parts(sizes: npt.NDArray[np.int64], speck: float) -> int:
    """Parts that are more than specks: all but the smallest ones that make up a share `speck` of the pixels."""
    # Specks are weighed together: a mask of noise has nothing but specks.
    return int((np.cumsum(sizes) >= speck * sizes.sum()).sum())


def _holes(mask: Mask, box: tuple[slice, ...]) -> Mask:
    """Pixels that the mask encloses: parts of its complement that do not reach the border of its bounding box."""
    holes = np.zeros_like(mask)
    if is_plainly_one_part(mask[box]):
        return holes
    outside, count = ndimage.label(np.pad(~mask[box], 1, constant_values=True))
    enclosed = np.arange(count + 1) > 0
    enclosed[outside[(0,) * mask.ndim]] = False
    holes[box] = enclosed[outside][(slice(1, -1),) * mask.ndim]
    return holes


def centre(mask: Mask) -> tuple[float, ...]:
    """Centre of mass in pixels."""
    total = mask.sum()
    centre = []
    for axis, side in enumerate(mask.shape):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        centre.append(float(mask.sum(axis=others) @ np.arange(side) / total))
    return tuple(centre)
