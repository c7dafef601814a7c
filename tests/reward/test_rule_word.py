"""Rules as a reward: of whom they speak, what they say, and that PPO learns from them alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.policies import DensePPO
from medfm_rl.reward.informed import InformedReward
from medfm_rl.reward.rule_word import RuleWord
from medfm_rl.settings import PPOHyperparameters
from medfm_rl.types import GridAxes, LabelSchema

SCHEMA = LabelSchema.from_structures({"disc": 1})
SAME = GridAxes.same(2)


@pytest.fixture
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> Anatomy:
    path = tmp_path_factory.mktemp("rules") / "whole.yaml"
    path.write_text(
        "rules:\n"
        "  - {kind: components, structure: disc, most: 1, source: one piece}\n"
        "  - {kind: holes, structure: disc, most: 0, source: without a hole}\n"
    )
    return load_anatomy(str(path), SCHEMA)


def disc(holes: int = 0, parts: int = 1) -> Tensor:
    """An action `(16, 16)` with so many holes, of so many parts."""
    action = torch.zeros(16, 16, dtype=torch.int64)
    action[4:12, 4:12] = 1
    action[7, 6 : 6 + 2 * holes : 2] = 0
    action[1, 1 : 1 + 2 * (parts - 1) : 2] = 1
    return action


@pytest.mark.parametrize(("action", "met"), [(disc(), 1.0), (disc(1), 0.5), (disc(0, 2), 0.5), (disc(1, 2), 0.0)])
def test_its_word_is_the_share_of_the_rules_that_are_met(anatomy: Anatomy, action: Tensor, met: float) -> None:
    said = RuleWord(anatomy, {3: SAME}, 0.5).says(action, 3)
    assert said is not None
    assert said.shape == action.shape
    assert torch.equal(said, torch.full(action.shape, met))


def test_of_other_images_it_says_nothing(anatomy: Anatomy) -> None:
    assert RuleWord(anatomy, {3: SAME}, 0.5).says(disc(1), 2) is None


def test_rules_that_name_axes_are_asked_in_the_image_that_they_speak_of() -> None:
    """The ventricle has to lie above the atrium in the image; the network sees it upside down."""
    schema = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})
    anatomy = load_anatomy("echo_apical", schema)
    upright = np.zeros((64, 64), np.uint8)
    upright[8:36, 20:44] = 2
    upright[12:36, 24:40] = 1
    upright[36:52, 24:40] = 3
    turned = torch.from_numpy(upright[::-1].copy()).long()
    word = RuleWord(anatomy, {0: SAME, 1: GridAxes((0, 1), (True, False))}, 1.0)
    as_it_is, upside_down = word.says(turned, 0), word.says(turned, 1)
    assert as_it_is is not None
    assert upside_down is not None
    whole = np.mean([result.passed for result in anatomy.check(upright)])
    assert float(upside_down[0, 0]) == pytest.approx(whole)
    assert float(as_it_is[0, 0]) < whole


class Drawn(nn.Module):
    """Says the same of every image, and is nearly sure of it but for a hole."""

    def __init__(self) -> None:
        super().__init__()
        foreground = torch.where(disc() == 1, 4.0, -4.0)
        foreground[7, 7] = -0.5
        self.logits = nn.Parameter(torch.stack([torch.zeros(16, 16), foreground]))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1, -1, -1)


def floor(images: Tensor, actions: Tensor) -> Tensor:
    """Knows nothing."""
    return torch.zeros(actions.shape)


@pytest.mark.parametrize("speaks", [True, False])
def test_a_policy_fills_a_hole_where_rules_speak_and_not_where_they_do_not(anatomy: Anatomy, speaks: bool) -> None:
    spoken_of: Mapping[int, GridAxes] = dict.fromkeys(range(16), SAME) if speaks else {}
    reward = InformedReward(floor, [RuleWord(anatomy, spoken_of, 1.0)])
    env = SegmentationVecEnv(np.zeros((16, 1, 16, 16), np.float32), reward, num_classes=2, n_envs=16, seed=0)
    policy = Drawn()
    settings = PPOHyperparameters(learning_rate=0.05, kl_coef=0.0, exploration="independent")
    DensePPO(env, policy, settings, seed=0, device="cpu").learn(16 * 20)
    mask = policy(torch.zeros(1, 1, 16, 16)).argmax(dim=1)[0].numpy()
    assert anatomy.is_valid(mask) == speaks
    assert int(mask[7, 7]) == int(speaks)
