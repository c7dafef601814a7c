from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medfm_rl.anatomy.discs import ejection_fraction, measure_discs
from medfm_rl.envs import RewardSource, SegmentationVecEnv
from medfm_rl.policies import DensePPO
from medfm_rl.reward.informed import InformedReward
from medfm_rl.reward.measurements import ReportedValues, SizeGoal, fraction_goals
from medfm_rl.settings import PPOHyperparameters


def half(images: Tensor, actions: Tensor) -> Tensor:
    """A floor that says nothing."""
    del images
    return torch.full(actions.shape, 0.5)


def square(side: int) -> Tensor:
    mask = torch.zeros(12, 12, dtype=torch.int64)
    mask[:side, :side] = 1
    return mask


def test_too_small_a_structure_is_to_grow_and_too_large_a_one_to_shrink() -> None:
    """16 of 20 pixels with an uncertainty of 4: one uncertainty short, h = 1/2, the structure's pixels 3/4."""
    goal = SizeGoal((1,), 20.0, 4.0)
    reward = InformedReward(half, [ReportedValues({7: [goal]}, share=1.0)])
    assert isinstance(reward, RewardSource)
    maps = reward.rewards(torch.zeros(1, 1, 12, 12), square(4)[None], [7])
    assert maps[0][square(4) == 1].unique().tolist() == [0.75]
    assert maps[0][square(4) == 0].unique().tolist() == [0.5]
    # 25 of 20: 5 / 4 too many, h = -5/8.
    maps = reward.rewards(torch.zeros(1, 1, 12, 12), square(5)[None], [7])
    assert maps[0][square(5) == 1].unique().tolist() == [0.5 - 5 / 16]


def test_an_image_without_a_report_has_the_floor_alone_and_others_half_of_it() -> None:
    def floor(images: Tensor, actions: Tensor) -> Tensor:
        del images
        return torch.full(actions.shape, 0.9)

    reward = InformedReward(floor, [ReportedValues({1: [SizeGoal((1,), 16.0, 4.0)]})])
    maps = reward.rewards(torch.zeros(2, 1, 12, 12), torch.stack([square(4)] * 2), [0, 1])
    assert maps[0].unique().tolist() == pytest.approx([0.9])
    # The size is as reported: 1/2 everywhere.
    assert maps[1].unique().tolist() == pytest.approx([0.7])


@settings(max_examples=40, deadline=None)
@given(st.floats(1, 500), st.floats(0.1, 100), st.integers(0, 12))
def test_rewards_lie_within_0_and_1(pixels: float, uncertainty: float, side: int) -> None:
    reward = InformedReward(half, [ReportedValues({0: [SizeGoal((1,), pixels, uncertainty)]})])
    maps = reward.rewards(torch.zeros(1, 1, 12, 12), square(side)[None], [0])
    assert 0 <= float(maps.min()) <= float(maps.max()) <= 1


def ventricle(rows: int, columns: int) -> Tensor:
    mask = torch.zeros(40, 40, dtype=torch.int64)
    mask[4 : 4 + rows, 10 : 10 + columns] = 1
    return mask


def test_a_fraction_that_is_too_low_wants_a_larger_diastole_and_a_smaller_systole() -> None:
    ed, es = ventricle(24, 12), ventricle(24, 10)
    discs = [measure_discs((mask == 1).numpy()) for mask in (ed, es)]
    assert discs[0] is not None
    assert discs[1] is not None
    fraction = ejection_fraction([discs[0]], [discs[1]])
    assert fraction == pytest.approx(100 * (1 - (10 / 12) ** 2), abs=1.0)
    goals = fraction_goals({"p_ED": ed, "p_ES": es}, (1,), fraction + 10, 5.0)
    # The way is shared: half of it, to first order, in half of the uncertainty.
    assert goals["p_ED"].shortfall(ed) == pytest.approx(2.0, rel=0.1)
    assert goals["p_ES"].shortfall(es) == pytest.approx(-2.0, rel=0.1)
    assert goals["p_ED"].shortfall(torch.zeros_like(ed)) == 0.0


def test_what_a_mask_is_worth_does_not_depend_on_those_rated_before() -> None:
    ed, es = ventricle(24, 12), ventricle(24, 10)
    goals = fraction_goals({"p_ED": ed, "p_ES": es}, (1,), 50.0, 5.0)
    before = goals["p_ED"].shortfall(ed)
    goals["p_ES"].shortfall(ventricle(24, 4))
    assert goals["p_ED"].shortfall(ed) == before


def test_two_frames_that_reach_their_goals_have_the_reported_fraction() -> None:
    """V ~ columns squared for equal lengths: 24 of them remain as 18, r = 9/16; r* = 1/4, so sqrt(r r*) = 3/8."""
    ed, es = ventricle(30, 24), ventricle(30, 18)
    goals = fraction_goals({"p_ED": ed, "p_ES": es}, (1,), 75.0, 5.0)
    assert goals["p_ED"].fraction == pytest.approx(62.5, abs=0.5)
    # ED to 18 / sqrt(3/8) = 29.4 columns, ES to 24 sqrt(3/8) = 14.7: together (14.7 / 29.4)^2 = 1/4.
    assert goals["p_ED"].shortfall(ventricle(30, 29)) > 0 > goals["p_ED"].shortfall(ventricle(30, 30))
    assert goals["p_ES"].shortfall(ventricle(30, 15)) < 0 < goals["p_ES"].shortfall(ventricle(30, 14))


def test_a_fraction_needs_two_frames_with_a_ventricle() -> None:
    mask = ventricle(24, 12)
    with pytest.raises(ValueError, match="needs two frames, got 3"):
        fraction_goals({"a": mask, "b": mask, "c": mask}, (1,), 50.0, None)
    assert fraction_goals({"a": mask, "b": torch.zeros_like(mask)}, (1,), 50.0, None) == {}


class Grey(torch.nn.Module):
    """Class 1 above a threshold that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(images), 2 * (images - self.threshold)], dim=1)


def test_ppo_brings_an_area_to_the_reported_one_without_seeing_a_contour() -> None:
    """A ramp of grey: above the threshold 0 lie 128 of 256 pixels; the report says 192, where it is -.5."""
    ramp = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16).repeat(8, 1, 1, 1)
    reports = ReportedValues({row: [SizeGoal((1,), 192.0, 20.0)] for row in range(8)})
    reward = InformedReward(half, [reports])
    env = SegmentationVecEnv(ramp.numpy().astype(np.float32), reward, 2, n_envs=8)
    policy = Grey()
    chosen = PPOHyperparameters(learning_rate=0.03, kl_coef=0.0, exploration="independent")
    DensePPO(env, policy, chosen, seed=0, device="cpu").learn(8 * 60)
    area = int((policy(ramp[:1]).argmax(dim=1) == 1).sum())
    assert abs(area - 192) < 20
