from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, special

from medfm_rl.anatomy.clips import measure_clip
from medfm_rl.anatomy.ejection import interval_of_draws, single_plane
from medfm_rl.anatomy.uncertainty import draw_clip, interval_of, membership
from medfm_rl.types import LabelSchema

LV = LabelSchema(("background", "LV"), (0, 1))
COUNT = 8


def beating() -> np.ndarray:
    """Masks `(T, H, W)` of an ellipse that shrinks to a half and grows again."""
    rows, columns = np.mgrid[:64, :64]
    widths = 9 + 5 * np.cos(2 * np.pi * np.arange(COUNT) / COUNT)
    return np.stack([(((rows - 32) / 24) ** 2 + ((columns - 32) / width) ** 2 <= 1) for width in widths]).astype(
        np.uint8
    )


def rewards(masks: np.ndarray, blur: float) -> np.ndarray:
    """Probabilities of a contour that is off by a normal error of `blur` pixels."""
    distance = [
        np.where(mask, ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask))
        for mask in masks == 1
    ]
    found: np.ndarray = special.ndtr((np.stack(distance) - 0.5) / blur).astype(np.float32)
    return found


def test_where_every_pixel_is_certain_nothing_is_open() -> None:
    masks = beating()
    anatomy = measure_clip(masks, LV, "LV", (0.5, 0.5))
    draws = draw_clip(masks, np.ones(masks.shape, np.float32), LV, anatomy, (0.5, 0.5), np.random.default_rng(0), 20)
    areas = anatomy.area_curve("LV")
    np.testing.assert_array_equal(draws.areas["LV"], np.stack([areas, areas], axis=1))
    found, ejected = interval_of_draws([anatomy], [draws]), single_plane(anatomy)
    assert found is not None
    assert ejected is not None
    assert found.edv == pytest.approx((ejected.edv, ejected.edv))
    assert found.ef == pytest.approx((ejected.ef, ejected.ef))
    assert found.draws == 20


def test_the_interval_of_an_area_is_between_that_of_independent_pixels_and_that_of_a_contour_that_moves_as_one() -> (
    None
):
    masks = beating()
    anatomy = measure_clip(masks, LV, "LV", None)
    blur = 1.5
    maps = rewards(masks, blur)
    low, high = draw_clip(masks, maps, LV, anatomy, None, np.random.default_rng(0)).areas["LV"][0]
    inside = np.where(masks[0] == 1, maps[0], 1 - maps[0])
    independent = 2 * 1.645 * np.sqrt((inside * (1 - inside)).sum())
    as_one = [(inside > level).sum() for level in (0.95, 0.05)]
    assert low < masks[0].sum() < high
    assert 1.5 * independent < high - low < as_one[1] - as_one[0]
    # As often as its probability says: the mean area is the sum of the probabilities.
    assert (low + high) / 2 == pytest.approx(inside.sum(), rel=0.03)


def test_less_certain_rewards_leave_more_open_also_of_the_ejection_fraction() -> None:
    masks = beating()
    anatomy = measure_clip(masks, LV, "LV", (0.5, 0.5))
    ejected = single_plane(anatomy)
    assert ejected is not None
    widths = []
    for blur in (0.5, 2.0):
        draws = draw_clip(masks, rewards(masks, blur), LV, anatomy, (0.5, 0.5), np.random.default_rng(0), 60)
        found = interval_of_draws([anatomy], [draws])
        assert found is not None
        assert found.edv is not None
        assert found.ef[0] < ejected.ef < found.ef[1]
        widths.append((found.edv[1] - found.edv[0], found.ef[1] - found.ef[0]))
    assert all(more > 2 * less for less, more in zip(*widths, strict=True))


def test_without_a_pixel_size_the_volume_at_end_diastole_is_the_unit_and_has_no_interval() -> None:
    masks = beating()
    anatomy = measure_clip(masks, LV, "LV", None)
    draws = draw_clip(masks, rewards(masks, 1.0), LV, anatomy, None, np.random.default_rng(0), 20)
    found = interval_of_draws([anatomy], [draws])
    assert found is not None
    assert found.edv is None
    assert 0 < found.esv[0] < found.esv[1]


def test_without_a_beat_areas_have_intervals_and_an_ejection_fraction_has_none() -> None:
    masks = np.repeat(beating()[:1], 4, axis=0)
    anatomy = measure_clip(masks, LV, "LV", None)
    draws = draw_clip(masks, rewards(masks, 1.0), LV, anatomy, None, np.random.default_rng(0), 20)
    assert (draws.areas["LV"][:, 0] < draws.areas["LV"][:, 1]).all()
    assert interval_of_draws([anatomy], [draws]) is None


def test_a_wrong_pixel_should_have_been_of_the_class_that_lies_nearest() -> None:
    mask = np.array([[1, 1, 0, 0, 0, 2, 2]], np.uint8)
    found = membership(mask, np.full(mask.shape, 0.6, np.float32), (1,), 3, reach=2)
    # The third pixel has the 1 next to it, the fourth is as far from 1 as from 2, the fifth has the 2.
    assert found[0].tolist() == pytest.approx([0.6, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0])
    # A class that is nowhere within reach is no alternative.
    assert membership(mask, np.full(mask.shape, 0.6, np.float32), (2,), 3, reach=1)[0, 2] == 0


def test_an_interval_leaves_out_as_many_above_as_below() -> None:
    assert interval_of(np.arange(101)) == pytest.approx((5, 95))
