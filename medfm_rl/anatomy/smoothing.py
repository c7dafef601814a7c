"""Rules over time carried out on the masks of a clip: contours that jump are smoothed along time.

As N. Painchaud et al. (IEEE Trans. Med. Imaging 41(10), 2022) correct clips that break such rules, but contours are
averaged here as signed distances, and not as attributes of a learned shape: that needs nothing that was trained.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medfm_rl.anatomy.cleaning import clean_up
from medfm_rl.anatomy.clips import measure_clip
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.structures import bounding_box
from medfm_rl.types import LabelMap

SPREADS: Final = (0.5, 1.0, 1.5)
"""Standard deviations in frames that are tried, the least smoothing first."""
_REACH = 0.1
"""Share of the longer side of what is segmented beyond which a distance says no more."""
_LEAST_REACH = 3.0


def smooth_over_time(
    masks: LabelMap, anatomy: Anatomy, ventricle: str, spacing: tuple[float, float] | None
) -> LabelMap:
    """Smooths the contours of a clip along time, as little as makes it meet the rules over time.

    Each smoothed frame is cleaned up by the rules of the anatomy. A clip that meets the rules over time stays as it is,
    and so does one that would not meet them smoothed either: whoever looks at it is to see why it does not.

    Args:
        masks: Class indices `(T, H, W)`.
        anatomy: Rules of the image, and the structures.
        ventricle: The structure whose beat it is.
        spacing: Size of a pixel in mm, (y, x); None where unknown.
    """
    kept = masks
    for spread in SPREADS:
        if measure_clip(kept, anatomy.schema, ventricle, spacing).valid:
            return kept
        smoothed = _smoothed(masks, spread)
        kept = np.stack([clean_up(mask, anatomy) for mask in smoothed])
    return kept if measure_clip(kept, anatomy.schema, ventricle, spacing).valid else masks


def _smoothed(masks: LabelMap, spread: float) -> LabelMap:
    """Each pixel gets the class within whose contour it lies farthest, or outside of which it lies least, on average.

    Averaged are signed distances, by a Gaussian along time. They say no more beyond a reach: a frame that lacks a
    structure would else take it from its neighbours.
    """
    box = bounding_box(np.asarray(masks.any(axis=0)), margin=1)
    if box is None:
        return masks
    inner = masks[(slice(None), *box)]
    reach = max(_LEAST_REACH, _REACH * max(inner.shape[1:]))
    best = np.full(inner.shape, -np.inf, np.float32)
    found = np.zeros_like(inner)
    for index in np.unique(inner):
        distances = np.stack([_signed_distance(mask == index, reach) for mask in inner])
        distances = ndimage.gaussian_filter1d(distances, spread, axis=0, mode="nearest")
        nearer = distances > best
        found[nearer], best[nearer] = index, distances[nearer]
    smoothed = masks.copy()
    smoothed[(slice(None), *box)] = found
    return smoothed


def _signed_distance(inside: npt.NDArray[np.bool_], reach: float) -> npt.NDArray[np.float32]:
    """Distance in pixels of each pixel `(H, W)` to the contour of a mask, above 0 inside; at most `reach`."""
    if not inside.any():
        return np.full(inside.shape, -reach, np.float32)
    if inside.all():
        return np.full(inside.shape, reach, np.float32)
    within, beyond = (ndimage.distance_transform_edt(part) for part in (inside, ~inside))
    distance: npt.NDArray[np.float32] = np.clip(within - beyond, -reach, reach).astype(np.float32)
    return distance
