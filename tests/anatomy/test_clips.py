from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm_rl.anatomy.clips import Beat, find_beat, jitter_of, measure_clip
from medfm_rl.anatomy.ejection import biplane, single_plane
from medfm_rl.types import LabelSchema

SCHEMA = LabelSchema(("background", "LV", "MYO"), (0, 1, 2))
SIZE = (96, 96)


def ellipse(half_length: float, half_width: float, centre: tuple[float, float] = (48.0, 48.0)) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    inside: np.ndarray = ((rows - centre[0]) / half_length) ** 2 + ((columns - centre[1]) / half_width) ** 2 <= 1
    return inside


def beating(count: int = 24, beats: float = 1.0, wall: float = 6.0) -> np.ndarray:
    """Masks `(T, H, W)`: an ellipse of 36 x 18 that becomes 30 x 12 at mid-beat, within a wall."""
    masks = np.zeros((count, *SIZE), np.uint8)
    for index in range(count):
        shrunk = (1 - np.cos(2 * np.pi * beats * index / count)) / 2
        length, width = 36 - 6 * shrunk, 18 - 6 * shrunk
        masks[index][ellipse(length + wall, width + wall)] = 2
        masks[index][ellipse(length, width)] = 1
    return masks


def test_a_smooth_beat_is_valid_and_its_volumes_are_those_of_ellipsoids() -> None:
    found = measure_clip(beating(), SCHEMA, "LV", (0.5, 0.5))
    assert found.valid, [str(rule) for rule in found.rules if not rule.passed]
    assert found.beat == Beat(0, 12, 1)
    ejected = single_plane(found)
    assert ejected is not None
    assert ejected.unit == "ml"
    # 4/3 pi a b b in pixels of 0.5 mm.
    assert ejected.edv == pytest.approx(4 / 3 * np.pi * 36 * 18**2 * 0.125 / 1000, rel=0.03)
    assert ejected.esv == pytest.approx(4 / 3 * np.pi * 30 * 12**2 * 0.125 / 1000, rel=0.03)
    assert ejected.ef == pytest.approx(100 * (1 - 30 * 12**2 / (36 * 18**2)), abs=1.5)


def test_without_spacing_volumes_are_ratios_and_the_fraction_is_the_same() -> None:
    known, unknown = (single_plane(measure_clip(beating(), SCHEMA, "LV", spacing)) for spacing in ((0.5, 0.5), None))
    assert known is not None
    assert unknown is not None
    assert (unknown.edv, unknown.unit) == (1.0, "of EDV")
    assert unknown.ef == pytest.approx(known.ef)
    assert unknown.esv == pytest.approx(known.esv / known.edv)


def test_pixels_that_are_not_square_make_no_difference() -> None:
    square = single_plane(measure_clip(beating(), SCHEMA, "LV", (0.5, 0.5)))
    flat = single_plane(measure_clip(beating()[:, ::2], SCHEMA, "LV", (1.0, 0.5)))
    assert square is not None
    assert flat is not None
    assert flat.edv == pytest.approx(square.edv, rel=0.04)
    assert flat.ef == pytest.approx(square.ef, abs=3)


def test_two_equal_views_give_the_volume_of_one_and_unlike_ones_that_of_ellipses() -> None:
    one = measure_clip(beating(), SCHEMA, "LV", (0.5, 0.5))
    half = measure_clip(beating(), SCHEMA, "LV", (0.25, 0.25))
    alone, both, mixed = single_plane(one), biplane(one, one), biplane(one, half)
    assert alone is not None
    assert both is not None
    assert mixed is not None
    assert both.edv == pytest.approx(alone.edv)
    # Half the diameters in one view, and the length of the longer.
    assert mixed.edv == pytest.approx(alone.edv / 2)
    assert mixed.method == "biplane"


@settings(max_examples=30, deadline=None)
@given(beats=st.integers(1, 4), per_beat=st.integers(10, 30), shift=st.integers(0, 29))
def test_end_diastole_and_end_systole_are_half_a_beat_apart_wherever_the_clip_begins(
    beats: int, per_beat: int, shift: int
) -> None:
    times = np.arange(beats * per_beat + 1) + shift
    beat, problem = find_beat(1000 + 300 * np.cos(2 * np.pi * times / per_beat))
    assert problem is None
    assert beat is not None
    assert abs(abs(beat.es - beat.ed) - per_beat / 2) <= per_beat / 2 - 1
    areas = 1000 + 300 * np.cos(2 * np.pi * times / per_beat)
    assert areas[beat.ed] >= areas.max() - 60
    assert areas[beat.es] <= areas.min() + 30


def test_a_single_frame_that_stands_out_is_neither_end_diastole_nor_end_systole() -> None:
    areas = 1000 + 300 * np.cos(2 * np.pi * np.arange(24) / 24)
    areas[7], areas[17] = 1900, 200
    beat, _ = find_beat(areas)
    assert beat is not None
    assert beat.ed in (0, 1, 23)
    assert beat.es in (11, 12, 13)


def test_what_is_no_beat_gives_none_and_says_why() -> None:
    for areas, why in (
        (np.full(20, 900.0), "changes by 0 %"),
        (np.array([900.0, 0.0, 800.0, 900.0]), "missing in 1 of 4 frames"),
        (np.array([900.0, 800.0]), "2 frames are no beat"),
    ):
        beat, problem = find_beat(areas)
        assert beat is None
        assert problem is not None
        assert why in problem


@pytest.mark.parametrize("count", [3, 4, 5, 6, 10, 40])
@pytest.mark.parametrize("forwards", [True, False])
def test_a_half_sequence_from_end_diastole_to_end_systole_is_whole(count: int, forwards: bool) -> None:
    areas = 1000 + 300 * np.cos(np.pi * np.arange(count) / (count - 1))
    beat, _ = find_beat(areas if forwards else areas[::-1])
    assert beat is not None
    assert beat.cut_off is None


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_a_clip_that_ends_before_end_systole_says_so(share: float) -> None:
    areas = 1000 + 300 * np.cos(np.pi * share * np.arange(12) / 11)
    beat, _ = find_beat(areas)
    assert beat is not None
    assert beat.cut_off is not None
    assert "end-systole is the last frame" in beat.cut_off
    beat, _ = find_beat(areas[::-1])
    assert beat is not None
    assert "end-systole is the first frame" in str(beat.cut_off)
    beat, _ = find_beat(2000 - areas)
    assert beat is not None
    assert "end-diastole is the last frame" in str(beat.cut_off)


def test_a_frame_that_jumps_is_named_by_the_rules() -> None:
    masks = beating()
    masks[5] = 0
    masks[5][ellipse(20, 10, (60.0, 48.0))] = 1
    masks[5][ellipse(22, 12, (60.0, 48.0)) & (masks[5] == 0)] = 2
    found = measure_clip(masks, SCHEMA, "LV", (0.5, 0.5))
    assert not found.valid
    broken = {rule.rule: rule.frame for rule in found.rules if not rule.passed and rule.structure == "LV"}
    assert broken["jump of the area"] == 5
    assert broken["jump of the centre down"] == 5
    assert found.jitter is not None
    smooth = measure_clip(beating(), SCHEMA, "LV", (0.5, 0.5)).jitter
    assert smooth is not None
    assert found.jitter > 3 * smooth


def test_a_ventricle_that_is_missing_breaks_a_rule_and_gives_no_fraction() -> None:
    masks = beating()
    masks[7][masks[7] == 1] = 0
    found = measure_clip(masks, SCHEMA, "LV", None)
    assert [(rule.rule, rule.frame) for rule in found.rules if not rule.passed] == [("absence", 7)]
    assert single_plane(found) is None
    assert found.no_beat is not None


def test_jitter_by_hand() -> None:
    # Second differences 2, -2 about a mean of 10.
    assert jitter_of(np.array([10.0, 10.0, 12.0, 12.0]) - 1) == pytest.approx(2 / 10)
    assert jitter_of(np.arange(5.0) + 1) == 0
    assert jitter_of(np.ones(2)) is None


def test_distance_to_neighbours_is_judged_in_mm_alone() -> None:
    masks = beating()
    masks[5] = np.roll(masks[5], 10, axis=1)
    known, unknown = (measure_clip(masks, SCHEMA, "LV", spacing) for spacing in ((1.0, 1.0), None))
    ours, theirs = (
        [rule for rule in found.rules if rule.rule == "distance to neighbours"] for found in (known, unknown)
    )
    assert [rule.passed for rule in ours] == [False, False]
    assert {rule.frame for rule in ours} == {5}
    assert [rule.passed for rule in theirs] == [True, True]
    assert {rule.unit for rule in theirs} == {"px"}


def test_the_width_of_the_base_does_not_hang_on_a_corner() -> None:
    """Two rows more at one corner, as of a base that is not at right angles to the axis, leave the width as it is."""
    flat = np.zeros((1, 60, 60), np.uint8)
    flat[0, 10:50, 20:40] = 1
    slanted = flat.copy()
    slanted[0, 50:52, 20:24] = 1
    widths = []
    for masks in (flat, slanted):
        width = measure_clip(masks, SCHEMA, "LV", None).frames[0].base_width
        assert width is not None
        widths.append(width)
    assert widths[0] == pytest.approx(20, abs=0.1)
    assert widths[1] == pytest.approx(20, abs=0.8)
