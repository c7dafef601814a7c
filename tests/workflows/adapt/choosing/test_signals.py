from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tiny_runs import TINY
from torch import Tensor, nn

from medfm_rl.reward.collection import ImageSet
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.settings import NetworkSettings
from medfm_rl.structures import exclusive
from medfm_rl.workflows.adapt.choosing.signals import (
    REWARD,
    RULES,
    SHAPES,
    VIEWS,
    RatedMasks,
    Raters,
    mean_dice,
    paired_rewards,
)

CPU = torch.device("cpu")


class Threshold(nn.Module):
    """Class 1 where the image is positive; a dropout that evaluation must switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(torch.cat([-images, images], dim=1))


class Judge(RewardNet):
    """Calls background right with 0.5 and the structure with 0.9."""

    def reward_map(self, images: Tensor, actions: Tensor) -> Tensor:
        return torch.where(actions == 1, 0.9, 0.5)


class Knowing(RewardNet):
    """Knows the truth, which is where the image is positive: 0.9 for what is right, 0.1 for what is wrong."""

    def reward_map(self, images: Tensor, actions: Tensor) -> Tensor:
        return torch.where(actions == (images[:, 0] > 0).long(), 0.9, 0.1)


class Hallucinating(Threshold):
    """As the threshold, with a false pixel in the corner of slices without the structure."""

    def forward(self, images: Tensor) -> Tensor:
        shown = images.clone()
        shown[(images > 0).flatten(1).any(dim=1).logical_not(), 0, 0, 0] = 1
        return super().forward(shown)


class Identity(ShapePrior):
    """Calls every mask plausible as it is."""

    def project(self, actions: Tensor) -> Tensor:
        return actions.to(torch.uint8)


class Emptying(ShapePrior):
    """Makes every mask empty."""

    def project(self, actions: Tensor) -> Tensor:
        return torch.zeros_like(actions, dtype=torch.uint8)


def shown(images: Tensor) -> ImageSet:
    names = tuple(map(str, range(len(images))))
    return ImageSet(images, names, names)


def raters(held_out: RewardNet, prior: type[ShapePrior] = Identity, size: int = 16) -> Raters:
    return Raters(
        lambda mask, axes: bool((mask == 1).any()), prior(2, (size, size), 4), held_out, exclusive(2), None, CPU
    )


def test_rewards_by_hand() -> None:
    """One pixel in the middle of 9 x 9 has a region of 7 x 7: (0.9 + 48 * 0.5) / 49. No pixel: 0."""
    images = -torch.ones(20, 1, 9, 9)
    images[:19, 0, 4, 4] = 1
    rated = raters(Judge(TINY, 2)).rate(Threshold().train(), shown(images))
    scores = paired_rewards(rated, rated, exclusive(2), CPU)[1]
    assert scores.shape == (20,)
    assert scores[:19] == pytest.approx((0.9 + 48 * 0.5) / 49)
    assert scores[19] == 0


def test_masks_of_nothing_on_slices_without_the_structure_are_preferred_to_false_islands() -> None:
    """5 of 10 slices are empty. The corner has a region of 4 x 4: (15 * 0.9 + 0.1) / 16 with the island there."""
    images = -torch.ones(10, 1, 9, 9)
    images[5:, 0, 4, 4] = 1
    right, false = (raters(Knowing(TINY, 2)).rate(made(), shown(images)) for made in (Threshold, Hallucinating))
    before, after = paired_rewards(right, false, exclusive(2), CPU)
    assert before == pytest.approx(0.9)
    assert after == pytest.approx([(15 * 0.9 + 0.1) / 16] * 5 + [0.9] * 5)


def test_a_rating_does_not_depend_on_the_other_images() -> None:
    """20 images are more than one batch. The looks are drawn in the order of the images, and do."""
    torch.manual_seed(0)
    images = torch.randn(20, 1, 16, 16)
    held_out = RewardNet(NetworkSettings(channels=(4, 8), residual_units=0, norm="batch"), 2).eval()
    together = raters(held_out).rate(Threshold(), shown(images))
    for row in (0, 17):
        alone = raters(held_out).rate(Threshold(), shown(images[row : row + 1]))
        assert torch.allclose(together.maps[row], alone.maps[0], atol=1e-6)
        assert torch.equal(together.actions[row], alone.actions[0])
        assert together.valid[row] == alone.valid[0]


def test_every_policy_sees_the_same_looks() -> None:
    """So that agreement under them differs by the policy alone."""
    torch.manual_seed(0)
    images = torch.randn(4, 1, 16, 16)
    first, second = (raters(Judge(TINY, 2)).rate(Threshold(), shown(images)) for _ in range(2))
    assert np.array_equal(first.agreement, second.agreement)
    assert (first.agreement > 0).all()
    assert (first.agreement <= 1).all()


def test_agreement_under_looks_is_complete_where_the_mask_does_not_depend_on_the_image() -> None:
    class Blind(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = torch.zeros(len(images), 2, *images.shape[2:])
            logits[:, 1, :4] = 1
            return logits

    rated = raters(Judge(TINY, 2)).rate(Blind(), shown(torch.randn(3, 1, 16, 16)))
    assert rated.agreement == pytest.approx(1.0)


def test_rules_and_shapes_are_what_they_say() -> None:
    images = -torch.ones(2, 1, 16, 16)
    images[1, 0, 4:8, 4:8] = 1
    rated = raters(Judge(TINY, 2), Emptying).rate(Threshold(), shown(images))
    assert rated.valid.tolist() == [0.0, 1.0]
    # Empty both: 1. A square and nothing: 0.
    assert rated.plausibility.tolist() == [1.0, 0.0]


def test_a_comparison_has_every_signal_for_both() -> None:
    def rated(value: float) -> RatedMasks:
        actions = torch.ones(3, 8, 8, dtype=torch.uint8)
        return RatedMasks(actions, torch.full((3, 8, 8), value), *(np.full(3, value) for _ in range(3)))

    found = raters(Judge(TINY, 2)).compare(rated(0.25), rated(0.75))
    assert set(found) == {RULES, VIEWS, SHAPES, REWARD}
    for before, after in found.values():
        assert before == pytest.approx(0.25)
        assert after == pytest.approx(0.75)


def test_mean_dice_by_hand() -> None:
    """Two classes: 4 of 8 pixels in common with 8 and 8 is .5, and a structure that both lack is 1."""
    mask, other = torch.zeros(2, 1, 4, 8, dtype=torch.uint8)
    mask[0, 0], other[0, 0] = 1, 0
    other[0, 1, :4] = 0
    mask[0, 0, :4] = 1
    other[0, 0, :4] = 1
    other[0, 1, :4] = 1
    assert mean_dice(mask, other, exclusive(3)) == pytest.approx([(0.5 + 1) / 2])
