from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medfm_rl.reward.score import compared_scores, dilate, paired_scores, structure_scores
from medfm_rl.structures import exclusive, overlapping


def test_the_region_of_a_structure_is_itself_and_three_pixels_around() -> None:
    """One pixel at (5, 6): the square of rows 2-8. The map is 0.2 in three of its 7 rows and 0.9 in four."""
    action = torch.zeros(1, 12, 14, dtype=torch.uint8)
    action[0, 5, 6] = 1
    reward_map = torch.full((1, 12, 14), 0.9)
    reward_map[0, :5] = 0.2
    assert float(structure_scores(reward_map, action, exclusive(2))) == pytest.approx((3 * 0.2 + 4 * 0.9) / 7)
    # One pixel beyond the margin counts for nothing, one within it for 1 / 49.
    outside, inside = reward_map.clone(), reward_map.clone()
    outside[0, 5, 10] = 0.0
    inside[0, 5, 9] = 0.0
    assert float(structure_scores(outside, action, exclusive(2))) == pytest.approx((3 * 0.2 + 4 * 0.9) / 7)
    assert float(structure_scores(inside, action, exclusive(2))) == pytest.approx((3 * 0.2 + 4 * 0.9) / 7 - 0.9 / 49)


def test_the_region_ends_at_the_edge_of_the_image() -> None:
    """A pixel in the corner: 4 x 4 pixels are within the margin, one of them wrong."""
    action = torch.zeros(1, 10, 10, dtype=torch.uint8)
    action[0, 0, 0] = 1
    reward_map = torch.ones(1, 10, 10)
    reward_map[0, 0, 0] = 0.0
    assert float(structure_scores(reward_map, action, exclusive(2))) == pytest.approx(15 / 16)


def test_a_structure_that_the_action_lacks_scores_zero_and_no_nan() -> None:
    action = torch.zeros(2, 8, 8, dtype=torch.uint8)
    action[1, 2:6, 2:6] = 2
    scores = structure_scores(torch.ones(2, 8, 8), action, exclusive(4))
    assert scores.tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_the_background_does_not_drown_a_bad_structure() -> None:
    action = torch.zeros(1, 64, 64, dtype=torch.uint8)
    action[0, 30:34, 30:34] = 1
    reward_map = torch.ones(1, 64, 64)
    reward_map[0, 27:37, 27:37] = 0.1
    assert float(reward_map.mean()) > 0.97
    assert float(structure_scores(reward_map, action, exclusive(2))) == pytest.approx(0.1)


@settings(deadline=None, max_examples=25)
@given(shape=st.sampled_from([(9, 13), (16, 8), (6, 9, 8)]), classes=st.integers(2, 5), seed=st.integers(0, 1000))
def test_scores_are_means_over_dilated_structures(shape: tuple[int, ...], classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Sparse, so that regions differ from the whole image.
    actions = np.where(rng.random((3, *shape)) < 0.02, rng.integers(0, classes, (3, *shape)), 0).astype(np.uint8)
    maps = rng.random((3, *shape)).astype(np.float32)
    expected = np.zeros((3, classes - 1))
    for row in range(3):
        for label in range(1, classes):
            region = ndimage.binary_dilation(actions[row] == label, np.ones((7,) * len(shape)))
            expected[row, label - 1] = maps[row][region].mean() if region.any() else 0.0
    scores = structure_scores(torch.from_numpy(maps), torch.from_numpy(actions), exclusive(classes))
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5)


def test_two_actions_are_compared_on_the_same_pixels() -> None:
    """A false island, right nowhere: the action without it is right there, though it has no region of its own."""
    without, with_it = torch.zeros(1, 9, 20, dtype=torch.uint8), torch.zeros(1, 9, 20, dtype=torch.uint8)
    with_it[0, 4, 10] = 1
    good, bad = torch.ones(1, 9, 20), torch.ones(1, 9, 20)
    bad[0, 4, 10] = 0.0
    old, new = paired_scores((bad, with_it), (good, without), exclusive(3))
    assert float(old[0, 0]) == pytest.approx(48 / 49)
    assert float(new[0, 0]) == 1.0
    # Neither has the second structure.
    assert float(old[0, 1]) == float(new[0, 1]) == 0.0


def test_a_structure_that_only_one_action_has_is_judged_in_its_region_for_both() -> None:
    """Both have class 1, each in its own place; the second alone has class 2, and nobody class 3.

    By hand: class 1 scores 1 for the first, and for the second, whose region of 4 x 4 in the corner has one wrong
    pixel, 15 / 16. Around the island of class 2 the first is right in all 49 pixels and the second in 48.
    """
    first, second = torch.zeros(1, 20, 20, dtype=torch.uint8), torch.zeros(1, 20, 20, dtype=torch.uint8)
    first[0, 0, 19] = second[0, 0, 0] = 1
    second[0, 12, 10] = 2
    good, bad = torch.ones(1, 20, 20), torch.ones(1, 20, 20)
    bad[0, 0, 0] = bad[0, 12, 10] = 0.0
    old, new = compared_scores((good, first), (bad, second), exclusive(4))
    assert float(old) == 1.0
    assert float(new) == pytest.approx((15 / 16 + 48 / 49) / 2)
    # The other way round is the same, and where neither has anything nothing is said.
    new, old = compared_scores((bad, second), (good, first), exclusive(4))
    assert (float(old), float(new)) == (1.0, pytest.approx((15 / 16 + 48 / 49) / 2))
    nothing = torch.zeros_like(first)
    assert [float(score) for score in compared_scores((good, nothing), (bad, nothing), exclusive(4))] == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(12, 12), (9, 10, 8)])
def test_comparing_changes_nothing_where_both_actions_have_every_structure(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 5, *shape, generator=generator)
    actions = torch.randint(0, 4, (2, 5, *shape), generator=generator)
    for found, one, action in zip(
        compared_scores((maps[0], actions[0]), (maps[1], actions[1]), exclusive(4)), maps, actions, strict=True
    ):
        assert torch.equal(found, structure_scores(one, action, exclusive(4)).mean(dim=1))


@pytest.mark.parametrize("reach", [1, 2, 3, 6, 13, 30])
@pytest.mark.parametrize("shape", [(9, 14), (4, 5, 7), (1, 6)])
def test_masks_grow_as_far_along_every_axis(shape: tuple[int, ...], reach: int) -> None:
    masks = torch.from_numpy(np.random.default_rng(0).random((2, 3, *shape)) < 0.05)
    pool = torch.nn.functional.max_pool2d if len(shape) == 2 else torch.nn.functional.max_pool3d
    expected = pool(masks.float(), kernel_size=2 * reach + 1, stride=1, padding=reach)
    assert torch.equal(dilate(masks.float(), reach), expected)
    assert torch.equal(dilate(masks, reach), expected.bool())


def test_scores_of_regions_are_those_of_each_region_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 12, 12, generator=generator)
    actions = torch.randint(4, (2, 12, 12), generator=generator)
    actions[1][actions[1] == 2] = 0
    scores = structure_scores(maps, actions, overlapping(2))
    for bit in range(2):
        assert torch.equal(scores[:, bit], structure_scores(maps, actions >> bit & 1, exclusive(2))[:, 0])
