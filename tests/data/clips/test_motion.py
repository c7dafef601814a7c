from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medfm_rl.data.clips.motion import carry, find_motion, neighbours_of


def textured(size: tuple[int, int]) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=size)
    smooth: np.ndarray = ndimage.gaussian_filter(noise, 4).astype(np.float32)
    return 100 * smooth / smooth.std()


@pytest.mark.parametrize("size", [(64, 80), (240, 320)])
def test_a_shift_is_found_on_small_and_on_large_frames(size: tuple[int, int]) -> None:
    step = max(1, max(size) // 80)
    frame = ndimage.zoom(textured((size[0] // step, size[1] // step)), step, order=1)
    other = np.roll(frame, (2 * step, -step), (0, 1))
    found = find_motion(frame, other)
    assert found.shape == (2, *frame.shape)
    inner = (slice(None), slice(15 * step, -15 * step), slice(15 * step, -15 * step))
    assert np.median(found[inner][0]) == pytest.approx(2 * step, abs=0.4 * step)
    assert np.median(found[inner][1]) == pytest.approx(-step, abs=0.4 * step)


def test_a_mask_is_carried_to_where_the_tissue_was() -> None:
    frame = textured((64, 80))
    mask = np.zeros((64, 80), np.uint8)
    mask[20:40, 30:50] = 2
    moved = np.roll(mask, (3, 0), (0, 1))
    carried = carry(moved, find_motion(frame, np.roll(frame, (3, 0), (0, 1))))
    overlap = 2 * ((carried == 2) & (mask == 2)).sum() / ((carried == 2).sum() + (mask == 2).sum())
    still = 2 * ((moved == 2) & (mask == 2)).sum() / (2 * (mask == 2).sum())
    assert overlap > 0.95 > still
    assert carried.dtype == np.uint8


def test_motion_does_not_depend_on_the_units_of_the_frames_and_nothing_moves_in_a_flat_one() -> None:
    frame = textured((48, 48))
    other = np.roll(frame, 1, 0)
    np.testing.assert_allclose(find_motion(frame, other), find_motion(frame / 500, other / 500), atol=0.05)
    assert not find_motion(np.zeros((16, 20), np.float32), frame[:16, :20]).any()
    with pytest.raises(ValueError, match="sizes"):
        find_motion(frame, frame[:20])


def test_neighbours_count_less_the_farther_they_are_and_end_with_the_clip() -> None:
    assert neighbours_of(2, 5) == [(0, 0.5), (1, 1.0), (3, 1.0), (4, 0.5)]
    assert neighbours_of(0, 5) == [(1, 1.0), (2, 0.5)]
    assert neighbours_of(0, 1) == []
