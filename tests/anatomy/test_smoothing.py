from __future__ import annotations

import numpy as np
from scipy import ndimage
from support.clip_files import ventricles

from medfm_rl.anatomy.clips import measure_clip
from medfm_rl.anatomy.ejection import single_plane
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.anatomy.smoothing import smooth_over_time
from medfm_rl.types import LabelMap, LabelSchema

LV = LabelSchema(("background", "LV"), (0, 1))
ANATOMY = load_anatomy("generic", LV)
SPACING = (1.0, 1.0)


def beating() -> LabelMap:
    return ventricles(24).astype(np.uint8)


def cut(masks: LabelMap, place: int, rows: int) -> LabelMap:
    """The same, but for a frame whose ventricle lacks its lowest rows."""
    found = masks.copy()
    found[place, np.flatnonzero(masks[place].any(axis=1))[-rows:]] = 0
    return found


def is_valid(masks: LabelMap) -> bool:
    return measure_clip(masks, LV, "LV", SPACING).valid


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_a_clip_that_meets_the_rules_stays_as_it_is() -> None:
    masks = beating()
    assert is_valid(masks)
    assert smooth_over_time(masks, ANATOMY, "LV", SPACING) is masks


def test_a_clip_with_a_frame_that_jumps_meets_the_rules_and_frames_far_away_stay() -> None:
    right = beating()
    masks = cut(right, 7, rows=12)
    assert not is_valid(masks)
    found = smooth_over_time(masks, ANATOMY, "LV", SPACING)
    assert is_valid(found)
    assert overlap(found[7], right[7]) > overlap(masks[7], right[7]) + 0.03
    # The ventricle is 18 to 36 pixels long.
    assert overlap(found[20], masks[20]) > 0.95


def test_a_beat_of_few_frames_is_not_flattened() -> None:
    """Of eight frames a beat, four from end-diastole to end-systole, the least smoothing alone is allowed."""
    masks = cut(np.tile(ventricles(8).astype(np.uint8), (3, 1, 1)), 10, rows=12)
    found = smooth_over_time(masks, ANATOMY, "LV", SPACING)
    ejected = [single_plane(measure_clip(clip, LV, "LV", SPACING)) for clip in (masks, found)]
    assert ejected[0] is not None
    assert ejected[1] is not None
    assert abs(ejected[0].ef - ejected[1].ef) < 1.5


def test_a_frame_without_the_ventricle_stays_without_it() -> None:
    masks = beating()
    masks[7] = 0
    assert smooth_over_time(masks, ANATOMY, "LV", SPACING) is masks


def test_every_structure_is_drawn_and_pixels_need_not_be_square() -> None:
    inner = ventricles(24)
    schema = LabelSchema(("background", "MYO", "LV"), (0, 1, 2))
    masks = np.stack([ndimage.binary_dilation(frame, iterations=4) for frame in inner]).astype(np.uint8)
    masks[inner] = 2
    right = masks.copy()
    masks[7, :, 34:] = 0
    anatomy = load_anatomy("generic", schema)
    found = smooth_over_time(masks, anatomy, "LV", (0.7, 0.5))
    assert measure_clip(found, schema, "LV", (0.7, 0.5)).valid
    for index in (1, 2):
        wall, cut_wall, drawn_wall = (clip[7] == index for clip in (right, masks, found))
        assert overlap(drawn_wall, wall) > overlap(cut_wall, wall)


def test_a_clip_that_cannot_be_mended_shows_what_is_wrong_with_it() -> None:
    """A ventricle that is in another place in every second frame is no jump of a frame."""
    masks = beating()
    masks[::2] = np.roll(masks[::2], 24, axis=2)
    assert not is_valid(masks)
    assert smooth_over_time(masks, ANATOMY, "LV", SPACING) is masks


def test_a_clip_that_only_fills_is_smoothed_too() -> None:
    """From end-systole to end-diastole, and never back: there is no whole beat in it."""
    masks = ventricles(48).astype(np.uint8)[24:]
    assert smooth_over_time(masks, ANATOMY, "LV", SPACING) is masks
    jumping = cut(masks, 12, rows=4)
    assert not is_valid(jumping)
    assert is_valid(smooth_over_time(jumping, ANATOMY, "LV", SPACING))
