from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medfm_rl.reward.consistency import agreement_over_time, vote_of_neighbours
from medfm_rl.structures import exclusive


def still_clip(count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Frames that stand still, and masks of a disc."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(40, 40)), 2).astype(np.float32)
    rows, columns = np.mgrid[:40, :40]
    mask = ((rows - 20) ** 2 + (columns - 20) ** 2 <= 100).astype(np.uint8)
    return np.repeat(100 * noise[None], count, axis=0), np.repeat(mask[None], count, axis=0)


def test_votes_are_shares_by_weight() -> None:
    frames, masks = still_clip(3)
    masks[2] = 0
    votes = vote_of_neighbours(frames[1], [(frames[0], masks[0], 1.0), (frames[2], masks[2], 0.5)], 2)
    assert votes[:, 20, 20].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert votes[:, 0, 0].tolist() == pytest.approx([1, 0])
    with pytest.raises(ValueError, match="nobody to vote"):
        vote_of_neighbours(frames[0], [], 2)


def test_the_frame_that_differs_agrees_least_and_a_clip_of_one_frame_has_nothing_against_it() -> None:
    frames, masks = still_clip()
    assert agreement_over_time(frames, masks, exclusive(2)) == pytest.approx(1)
    masks[2] = np.roll(masks[2], 8, axis=1)
    found = agreement_over_time(frames, masks, exclusive(2))[:, 0]
    assert found.argmin() == 2
    assert found[2] < 0.6
    assert agreement_over_time(frames[:1], masks[:1], exclusive(2)).tolist() == [[1.0]]
