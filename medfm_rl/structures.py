"""Structures as sets of classes: one class each where they exclude each other, and several where they overlap.

R regions that overlap are 2^R exclusive classes, one for each set of regions that a pixel can lie in. The index of a
class is a bit mask, in which bit r stands for region r; class 0, no region, is the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Structures = tuple[tuple[int, ...], ...]
"""The classes of each structure; all classes but 0, the background, are of some structure."""

MOST_REGIONS: Final = 5
"""Regions that may overlap: there are 2 ** 5 = 32 classes of them, and logits for each."""
JOINS: Final = "+"
"""Stands between the regions in the name of a class."""


def exclusive(num_classes: int) -> Structures:
    """Structures that exclude each other, one class each, from the number of classes with the background."""
    return tuple((index,) for index in range(1, num_classes))


def overlapping(regions: int) -> Structures:
    """Regions that may overlap: each is all classes that have its bit."""
    return tuple(tuple(index for index in range(2**regions) if index >> bit & 1) for bit in range(regions))


def count_classes(structures: Structures) -> int:
    """K: the classes of all structures, and the background."""
    return 1 + max(max(classes) for classes in structures)


def subset_names(regions: Sequence[str], background: str) -> tuple[str, ...]:
    """Names of the classes of overlapping regions, such as `WT+TC` for a pixel that lies in both."""
    named = [
        JOINS.join(name for bit, name in enumerate(regions) if index >> bit & 1) for index in range(2 ** len(regions))
    ]
    return (background, *named[1:])


def regions_in(class_names: Sequence[str]) -> tuple[str, ...]:
    """The overlapping regions whose classes have these names; none where they are names of other classes."""
    count = len(class_names).bit_length() - 1
    if count < 2 or len(class_names) != 2**count:
        return ()
    regions = tuple(class_names[2**bit] for bit in range(count))
    return regions if subset_names(regions, class_names[0]) == tuple(class_names) else ()


def pixels_of(labels: npt.NDArray[Any], classes: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Where a label map of class indices has one of some classes, bool of the same shape."""
    found: npt.NDArray[np.bool_] = labels == classes[0]
    for index in classes[1:]:
        found |= labels == index
    return found


def bounding_box(mask: npt.NDArray[np.bool_], margin: int | Sequence[int] = 0) -> tuple[slice, ...] | None:
    """The box of what is there, several times as fast as SciPy's `find_objects`.

    Args:
        mask: `(*S)` bool.
        margin: Pixels to take along around it, as far as the mask goes; one number, or one for each axis.

    Returns:
        A slice for each axis; None where nothing is there.
    """
    margins = [margin] * mask.ndim if isinstance(margin, int) else margin
    box = []
    for axis, (side, around) in enumerate(zip(mask.shape, margins, strict=True)):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        if len(filled) == 0:
            return None
        box.append(slice(max(0, int(filled[0]) - around), min(side, int(filled[-1]) + 1 + around)))
    return tuple(box)
