from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medfm_rl.envs import RewardSource, SegmentationVecEnv
from medfm_rl.policies import DensePPO
from medfm_rl.reward.graded import GradedReward
from medfm_rl.settings import PPOHyperparameters


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4))
def test_every_pixel_gets_the_quality_of_the_whole(qualities: list[float]) -> None:
    reward = GradedReward(lambda action, row: qualities[row])
    assert isinstance(reward, RewardSource)
    rows = list(range(len(qualities)))[::-1]
    maps = reward.rewards(torch.zeros(len(rows), 1, 5, 6), torch.zeros(len(rows), 5, 6, dtype=torch.int64), rows)
    assert maps.shape == (len(rows), 5, 6)
    assert [each.unique().tolist() for each in maps] == [[quality] for quality in qualities[::-1]]


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_a_quality_that_is_no_share_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match=r"row 7 is .*must lie in \[0, 1\]"):
        GradedReward(lambda action, row: value).rewards(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4).long(), [7])


class Grey(torch.nn.Module):
    """Class 1 above a threshold that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(images), 20 * (images - self.threshold)], dim=1)


def test_ppo_learns_from_one_number_for_each_mask() -> None:
    """A ramp of grey, cut at 0 at first; the grader, who alone knows that the structure ends at -.5, tells Dice."""
    ramp = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16).repeat(16, 1, 1, 1)
    truth = ramp[0, 0] > -0.5

    def dice(action: Tensor, row: int) -> float:
        del row
        mask = action == 1
        return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))

    env = SegmentationVecEnv(ramp.numpy().astype(np.float32), GradedReward(dice), 2, n_envs=16)
    policy = Grey()
    before = dice(policy(ramp[:1]).argmax(dim=1)[0], 0)
    chosen = PPOHyperparameters(learning_rate=0.01, kl_coef=0.0, exploration="correlated")
    DensePPO(env, policy, chosen, seed=0, device="cpu").learn(16 * 30)
    after = dice(policy(ramp[:1]).argmax(dim=1)[0], 0)
    assert before == pytest.approx(2 * 128 / (128 + 192), abs=0.01)
    assert after > 0.95
