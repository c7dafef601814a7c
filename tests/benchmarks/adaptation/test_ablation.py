from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.adaptation.ablation import reward_scores
from benchmarks.adaptation.ablation_report import (
    cell_file,
    describe,
    describe_knowledge,
    knowledge_file,
    knowledge_table,
    table,
)
from benchmarks.adaptation.cells import NONE, Scores
from benchmarks.adaptation.cells import cell_file as adaptation_cell
from benchmarks.adaptation.reward_gradient import follow_gradient
from benchmarks.adaptation.variants import VARIANTS, Variant, stages_up_to
from benchmarks.harness.budgets import merge
from medfm_rl.data.files import write_json
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.runs.folder import HELD_OUT_REWARD, RunFolder
from medfm_rl.settings import AdaptConfig, NetworkSettings, PPOSettings, RewardSettings
from medfm_rl.structures import exclusive


def test_every_variant_names_settings_that_there_are() -> None:
    for variant in VARIANTS.values():
        settings = merge({"segmenter": {"folder": "a"}, "target": {"path": "b"}, "output": "c"}, variant.changes)
        changed = AdaptConfig.model_validate(settings).model_dump()
        for section, changes in variant.changes.items():
            assert {name: changed[section][name] for name in changes} == changes


def test_a_variant_takes_over_what_precedes_its_change_and_nothing_else() -> None:
    run = RunFolder(Path("run"))
    assert stages_up_to(run, "nothing") == []
    assert stages_up_to(run, "collect") == [run.shape_prior, run.fine_tuned, run.actions]
    shared = stages_up_to(run, "reward")
    for network in (HELD_OUT_REWARD, "member-0"):
        assert any(folder in run.reward(0, network).parents for folder in shared)
    for later in (run.checkpoints(0), run.candidate(0, 1), run.selection(0), run.model, run.final_reward):
        assert not any(folder == later or folder in later.parents for folder in shared)


def test_the_control_raises_the_reward_and_leaves_the_networks_as_they_are() -> None:
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    reward = RewardEnsemble([RewardNet(NetworkSettings(channels=(4, 8)), num_classes=2)], RewardSettings())
    before = {name: value.clone() for name, value in reward.state_dict().items()}
    images, target = torch.randn(8, 1, 16, 16), torch.randn(8, 1, 16, 16)
    references = torch.ones(8, 16, 16, dtype=torch.uint8)
    settings = PPOSettings(updates=10, n_epochs=4, n_envs=4, learning_rate=1e-2, kl_coef=0.0)

    def worth() -> tuple[float, float]:
        with torch.no_grad():
            right = policy(images).softmax(dim=1)[:, 1].mean()
            return float(right), float(reward.relaxed_map(target, policy(target).softmax(dim=1)).mean())

    start = worth()
    follow_gradient(policy, reward, images, references, target, settings, seed=0)
    end = worth()
    assert end[0] > start[0] + 0.2
    assert end[1] > start[1]
    assert all(torch.equal(value, before[name]) for name, value in reward.state_dict().items())


def test_a_large_kl_weight_keeps_the_control_where_it_was() -> None:
    torch.manual_seed(0)
    images, references = torch.randn(4, 1, 16, 16), torch.ones(4, 16, 16, dtype=torch.uint8)
    reward = RewardEnsemble([RewardNet(NetworkSettings(channels=(4, 8)), num_classes=2)], RewardSettings())
    moved = []
    for weight in (0.0, 100.0):
        torch.manual_seed(1)
        policy = nn.Conv2d(1, 2, 1)
        start = policy.weight.detach().clone()
        settings = PPOSettings(updates=5, n_epochs=4, n_envs=4, learning_rate=1e-2, kl_coef=weight)
        follow_gradient(policy, reward, images, references, images, settings, seed=0)
        moved.append(float((policy.weight.detach() - start).abs().max()))
    assert moved[1] < 0.2 * moved[0]


class TestReport:
    def scores(self, *dice: float) -> dict[str, object]:
        ids = ["a_1", "b_1"]
        values = {"lung": list(dice), "mean": list(dice)}
        return Scores(tuple(ids), ("a", "b"), values, {"mean": [1.0, 1.0]}, (True, True), ()).to_json()

    def write(self, runs: Path) -> None:
        empty = {"environment": {"commit": "c"}}
        none = {"harm_rate": 0, "wall_seconds": 0, "selection": None, "source_held_out": self.scores(0.5, 0.5)}
        write_json(adaptation_cell(runs, "s", NONE, 0), {**none, **empty, "held_out": self.scores(0.8, 0.8)})
        policies = {"start": self.scores(0.9, 0.7), "last": self.scores(0.8, 0.8), "chosen": self.scores(0.9, 0.9)}
        write_json(cell_file(runs, "s", "default", 0), {**empty, "policies": policies})

    def test_gain_and_harm_are_against_no_adaptation(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        found = describe("s", tmp_path, [0, 1])
        policies = found["default"]["policies"]
        assert policies["start"]["gain"]["mean"] == pytest.approx(0)
        assert policies["start"]["harm_rate"] == 0.5
        assert policies["chosen"]["gain"]["mean"] == pytest.approx(0.1)
        assert policies["chosen"]["harm_rate"] == 0
        assert found["default"]["seeds"] == [0]

    def test_what_is_missing_shows(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        text = table("A shift", describe("s", tmp_path, [0]), quick=False)
        assert "| no fine-tuning | missing |" in text
        assert "| default | 1 | +0.0000 [" in text or "| default | 1 | -0.0000 [" in text


def test_variants_that_share_nothing_change_what_comes_first() -> None:
    for name, variant in VARIANTS.items():
        if variant.after == "nothing" and variant != Variant({}, "nothing"):
            assert set(variant.changes) == {"fine_tuning"}, name


def test_what_the_reward_knows_is_told_from_differences_to_the_start(tmp_path: Path) -> None:
    start = {"dice": [0.8, 0.8, 0.8], "held-out reward": [0.5, 0.5, 0.5]}
    right = {"dice": [0.9, 0.85, 0.8], "held-out reward": [0.7, 0.6, 0.5]}
    experts = {"dice": [1.0, 0.9, 0.8], "held-out reward": [0.3, 0.4, 0.5]}
    masks = {"start": start, "source model": right, "experts": experts}
    write_json(knowledge_file(tmp_path, "s", 0), {"masks": masks})
    found = describe_knowledge("s", tmp_path, [0, 1])
    assert found["start"]["held-out reward_follows"] is None
    assert found["source model"]["held-out reward_follows"] == pytest.approx(1)
    assert found["experts"]["held-out reward_follows"] == pytest.approx(-1)
    assert found["experts"]["held-out reward"] == pytest.approx(0.4)
    assert "| experts | 0.9000 | 0.4000 (-1.00) |" in knowledge_table(found)
    assert knowledge_table(describe_knowledge("other", tmp_path, [0])) == ""


def test_scores_of_single_masks_do_not_depend_on_their_batch() -> None:
    torch.manual_seed(0)
    network = RewardNet(NetworkSettings(channels=(4, 8)), num_classes=3).eval().requires_grad_(False)
    images, actions = torch.randn(20, 1, 16, 16), torch.randint(0, 3, (20, 16, 16))
    together = reward_scores(network, images, actions, exclusive(3))
    alone = [reward_scores(network, images[[row]], actions[[row]], exclusive(3))[0] for row in range(20)]
    assert together == pytest.approx(alone, abs=1e-5)
