from __future__ import annotations

import numpy as np
from support.clip_files import ventricles

from medfm_rl.anatomy.clips import measure_clip
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


def overlap(one: LabelMap, other: LabelMap) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_a_clip_that_meets_the_rules_stays_as_it_is() -> None:
    masks = beating()
    assert is_valid(masks)
    assert smooth_over_time(masks, ANATOMY, "LV", SPACING) is masks


def test_a_frame_that_jumps_comes_back_to_its_neighbours_and_the_clip_meets_the_rules() -> None:
    right = beating()
    masks = cut(right, 7, rows=12)
    assert not is_valid(masks)
    found = smooth_over_time(masks, ANATOMY, "LV", SPACING)
    assert is_valid(found)
    assert overlap(found[7], right[7]) > overlap(masks[7], right[7]) + 0.03
    # Four standard deviations of the least smoothing away nothing changes.
    assert np.array_equal(found[[0, 14, 20]], masks[[0, 14, 20]])


def test_a_frame_without_the_structure_gets_it_from_its_neighbours() -> None:
    right = beating()
    masks = right.copy()
    masks[7] = 0
    found = smooth_over_time(masks, ANATOMY, "LV", SPACING)
    assert is_valid(found)
    assert overlap(found[7], right[7]) > 0.7


def test_a_clip_that_smoothing_does_not_mend_shows_what_is_wrong_with_it() -> None:
    """A ventricle that is in another place in every second frame is no jump of a frame."""
    masks = beating()
    masks[::2] = np.roll(masks[::2], 24, axis=2)
    assert not is_valid(masks)
    assert smooth_over_time(masks, ANATOMY, "LV", SPACING) is masks
