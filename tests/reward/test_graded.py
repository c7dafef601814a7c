from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.envs import RewardSource, SegmentationVecEnv
from medfm_rl.errors import DataError
from medfm_rl.policies import DensePPO
from medfm_rl.reward.graded import GradedReward, RuleReward
from medfm_rl.settings import PPOHyperparameters
from medfm_rl.types import GridAxes, LabelSchema

LV = LabelSchema.from_structures({"LV": 1})
RULES = """
rules:
  - {kind: present, structure: LV, source: "the plane shows it"}
  - {kind: components, structure: LV, most: 1, source: "one piece"}
"""


def two_rules(folder: Path, text: str = RULES) -> Anatomy:
    path = folder / "two.yaml"
    path.write_text(text)
    return load_anatomy(str(path), LV)


def mask_of(*squares: int) -> Tensor:
    """A 3 x 3 square at each of these columns."""
    mask = torch.zeros(12, 12, dtype=torch.int64)
    for column in squares:
        mask[2:5, column : column + 3] = 1
    return mask


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


def test_rules_that_are_met_are_counted(tmp_path: Path) -> None:
    """One piece meets both rules; two pieces break one of two."""
    reward = RuleReward(two_rules(tmp_path), {})
    assert isinstance(reward, RewardSource)
    maps = reward.rewards(torch.zeros(2, 1, 12, 12), torch.stack([mask_of(1), mask_of(1, 7)]), [0, 1])
    assert [each.unique().tolist() for each in maps] == [[1.0], [0.5]]


def test_rules_stand_beside_a_floor(tmp_path: Path) -> None:
    """A quarter of 1/2 and three quarters of .8."""
    reward = RuleReward(two_rules(tmp_path), {}, lambda images, actions: torch.full(actions.shape, 0.8), share=0.25)
    maps = reward.rewards(torch.zeros(1, 1, 12, 12), mask_of(1, 7)[None], [0])
    assert maps.unique().tolist() == pytest.approx([0.725])


def test_rules_are_checked_along_the_axes_of_the_image(tmp_path: Path) -> None:
    """An area is the same however it lies; what is handed to the rules is turned."""
    seen = []

    class Watching(Anatomy):
        def check(self, labels, spacing=None):  # type: ignore[no-untyped-def]
            seen.append(labels.copy())
            return super().check(labels, spacing)

    plain = two_rules(tmp_path)
    reward = RuleReward(Watching(plain.name, plain.profile, plain.schema), {3: GridAxes((1, 0), (False, False))})
    reward.rewards(torch.zeros(2, 1, 12, 12), torch.stack([mask_of(6)] * 2), [3, 4])
    assert np.array_equal(seen[0], mask_of(6).numpy().T)
    assert np.array_equal(seen[1], mask_of(6).numpy())


def test_a_limit_in_mm_cannot_be_checked_and_says_so(tmp_path: Path) -> None:
    text = 'rules: [{kind: size, structure: LV, least: 5, most: 9, measured_in: mm, source: "measured"}]'
    reward = RuleReward(two_rules(tmp_path, text), {})
    with pytest.raises(DataError, match="mm"):
        reward.rewards(torch.zeros(1, 1, 12, 12), mask_of(1)[None], [0])


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
