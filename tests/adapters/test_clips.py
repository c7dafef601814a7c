"""Masks of clips."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from medfm_rl.adapters import Sample
from medfm_rl.adapters.base import SegmentedFrame
from medfm_rl.adapters.clips import averaged_over_time
from medfm_rl.types import Geometry

SIDE, COUNT = 40, 5


def noise() -> np.ndarray:
    return 100 * ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(SIDE, SIDE)), 2)


def frame(index: int, image: np.ndarray, inside: np.ndarray) -> SegmentedFrame:
    """A frame that is sure of its mask."""
    shown = image[None].astype(np.float32)
    logits = torch.from_numpy(np.stack([~inside, inside]).astype(np.float32) * 40)
    plane = Geometry((1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    sample = Sample(torch.from_numpy(shown), f"c{index}", "p", image.shape, plane)
    return SegmentedFrame(index, sample, logits)


def probability(found: SegmentedFrame) -> Tensor:
    return found.logits.softmax(dim=0)[1]


def still(lost: int) -> list[SegmentedFrame]:
    """A clip that stands still, in which one frame lost the structure."""
    square = np.zeros((SIDE, SIDE), dtype=bool)
    square[10:30, 10:30] = True
    return [frame(index, noise(), square & (index != lost)) for index in range(COUNT)]


def test_a_frame_that_lost_a_structure_has_it_back_by_hand() -> None:
    """Of the middle frame's weights, 1 own and 1/2 + 1 + 1 + 1/2 of others, 3 of 4 say inside."""
    found = {each.index: each for each in averaged_over_time(still(lost=2), COUNT)}
    assert sorted(found) == list(range(COUNT))
    assert float(probability(found[2])[20, 20]) == pytest.approx(3 / 4, abs=1e-5)
    # The first has 1 own, 1 of the second and 1/2 of the third, which says outside.
    assert float(probability(found[0])[20, 20]) == pytest.approx(2 / 2.5, abs=1e-5)
    assert float(probability(found[2])[2, 2]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (2, 3, 4, 1, 0), (4, 2, 0, 3, 1)])
def test_frames_may_come_in_any_order(order: tuple[int, ...]) -> None:
    frames = still(lost=1)
    expected = {each.index: each.logits for each in averaged_over_time(frames, COUNT)}
    found = {each.index: each.logits for each in averaged_over_time([frames[index] for index in order], COUNT)}
    assert found.keys() == expected.keys()
    for index, logits in found.items():
        torch.testing.assert_close(logits, expected[index], rtol=0, atol=0)


def test_in_the_order_of_time_a_frame_comes_out_as_soon_as_its_neighbours_are_there() -> None:
    taken: list[int] = []

    def told() -> Iterator[SegmentedFrame]:
        for each in still(lost=2):
            taken.append(each.index)
            yield each

    first = next(averaged_over_time(told(), COUNT))
    assert (first.index, taken) == (0, [0, 1, 2])


def test_what_moves_is_averaged_where_it_was_and_not_where_it_lies() -> None:
    """A square that moves by two pixels a frame with the speckle around it: its edges stay where they are."""
    image = 100 * ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(SIDE, SIDE + 20)), 2)
    frames = []
    for index in range(COUNT):
        inside = np.zeros((SIDE, SIDE + 20), dtype=bool)
        inside[10:30, 24:40] = True
        window = slice(2 * index, 2 * index + SIDE)
        frames.append(frame(index, image[:, window], inside[:, window]))
    masks = [each.logits.argmax(dim=0) for each in sorted(averaged_over_time(frames, COUNT), key=lambda f: f.index)]
    where = [each.logits.argmax(dim=0) for each in frames]
    for found, true in zip(masks, where, strict=True):
        assert float((found == true).float().mean()) > 0.97


def test_a_clip_of_one_frame_is_left_as_it_is() -> None:
    (only,) = averaged_over_time([still(lost=9)[0]], 1)
    torch.testing.assert_close(only.logits.softmax(dim=0), still(lost=9)[0].logits.softmax(dim=0))
