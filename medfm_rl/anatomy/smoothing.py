"""Rules over time carried out on the masks of a clip: contours that jump are smoothed along time.

N. Painchaud et al. (IEEE Trans. Med. Imaging 41(10), 2022) correct clips that break such rules by smoothing attributes
of a learned shape along time. Here contours are averaged as signed distances, which needs nothing that was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medfm_rl.anatomy.cleaning import clean_up
from medfm_rl.anatomy.clips import ClipAnatomy, measure_clip
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.anatomy.temporal_rules import ABSENCE
from medfm_rl.structures import bounding_box
from medfm_rl.types import FloatArray, LabelMap

SPREADS: Final = (0.5, 1.0, 1.5)
"""Standard deviations in frames that are tried, the least smoothing first."""
_FRAMES_OF_A_BEAT = 16
"""Frames of a beat that there are to be for each frame of spread. Smoothing makes the ventricle larger at end-systole:
drawn beats of 24 frames lose 1.1 points of ejection fraction by a spread of 1.5, those of 8 frames would lose 10."""
_TRUNCATED = 3.0
"""Standard deviations beyond which a frame has no weight."""
_REACH = 0.1
"""Share of the longer side of what is segmented beyond which a distance says no more: else a frame that has a part far
away, or lacks a structure, would outweigh all others."""
_LEAST_REACH = 3.0


def smooth_over_time(
    masks: LabelMap, anatomy: Anatomy, ventricle: str, spacing: tuple[float, float] | None
) -> LabelMap:
    """Smooths the contours of a clip along time, as little as makes it meet the rules over time of the literature.

    Each smoothed frame is cleaned up by the rules of the anatomy. A clip that meets the rules over time stays as it is,
    and so does one that would not meet them smoothed either, or in which a frame would then break a rule of the image
    that it meets now: whoever looks at it is to see why. So does a clip with frames that lack the ventricle, for that
    is a failure and no jump.

    Args:
        masks: Class indices `(T, H, W)`, cleaned up.
        anatomy: Rules of the image, and the structures.
        ventricle: The structure whose beat it is.
        spacing: Size of a pixel in mm, (y, x); None where unknown. Distances are in pixels all the same.

    Returns:
        `(T, H, W)`; the same array where nothing was smoothed.
    """
    found = measure_clip(masks, anatomy.schema, ventricle, spacing)
    box = bounding_box(np.asarray(masks.any(axis=0)), margin=1)
    if found.valid or box is None or any(rule.measure == ABSENCE for rule in found.rules):
        return masks
    spreads = _allowed(found)
    if not spreads:
        return masks
    place = (slice(None), *box)
    for tried in _smoothed(masks[place], spreads, anatomy.schema.num_classes):
        clip = masks.copy()
        clip[place] = tried
        for frame in clip:
            frame[:] = clean_up(frame, anatomy)
        if measure_clip(clip, anatomy.schema, ventricle, spacing).valid:
            lost = (
                anatomy.is_valid(before, spacing) and not anatomy.is_valid(after, spacing)
                for before, after in zip(masks, clip, strict=True)
            )
            return masks if any(lost) else clip
    return masks


def _allowed(found: ClipAnatomy) -> tuple[float, ...]:
    """The spreads that leave the beat of a clip as it is."""
    if found.beat is None:
        return SPREADS
    # A clip that only fills or only empties shows a part of a beat: all of it is taken as one.
    most = len(found.frames) / max(1, found.beat.beats) / _FRAMES_OF_A_BEAT
    return tuple(spread for spread in SPREADS if spread <= most)


def _smoothed(masks: LabelMap, spreads: Sequence[float], num_classes: int) -> npt.NDArray[np.uint8]:
    """Each pixel gets the class that it lies farthest within, or least outside of, on average; `(spreads, T, H, W)`.

    Distances of the frames that have a weight are in memory, and no more.
    """
    count = len(masks)
    radius = round(_TRUNCATED * max(spreads))
    offsets = np.arange(-radius, radius + 1)
    weights = [np.exp(-0.5 * (offsets / spread) ** 2) for spread in spreads]
    reach = max(_LEAST_REACH, _REACH * max(masks.shape[1:]))
    held: dict[int, FloatArray] = {}
    found = np.empty((len(spreads), *masks.shape), np.uint8)
    for index in range(count):
        # Beyond its ends a clip stands still.
        near = [min(max(0, index + int(offset)), count - 1) for offset in offsets]
        held = {other: held[other] if other in held else _distances(masks[other], reach, num_classes) for other in near}
        for place, own in enumerate(weights):
            mean = np.zeros_like(held[index])
            for other, weight in zip(near, own, strict=True):
                mean += np.float32(weight) * held[other]
            found[place, index] = mean.argmax(axis=0)
    return found


def _distances(mask: LabelMap, reach: float, num_classes: int) -> FloatArray:
    """Distance in pixels of each pixel to the contour of each class, above 0 inside, at most `reach`; `(K, H, W)`."""
    found = np.empty((num_classes, *mask.shape), np.float32)
    for index, distance in enumerate(found):
        inside = mask == index
        if inside.all() or not inside.any():
            distance[:] = reach if inside.any() else -reach
            continue
        distance[:] = ndimage.distance_transform_edt(inside)
        distance -= ndimage.distance_transform_edt(~inside)
    return found.clip(-reach, reach)
