from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness.budgets import adapt_budget, merge, trial_budget
from benchmarks.harness.laboratory import TRIAL, adapt_config
from benchmarks.segmenters import litemedsam_camus, short_axis
from medfm_rl.settings import AdaptConfig


def config(changes: object) -> AdaptConfig:
    return adapt_config({"folder": "model"}, Path("target"), Path("source"), Path("out"), "generic", changes)  # type: ignore[arg-type]


def test_changes_are_merged_section_by_section() -> None:
    base = {"iterations": 1, "ppo": {"updates": 2, "n_envs": 4}}
    assert merge(base, {"ppo": {"updates": 3}, "reward": {"steps": 5}}) == {
        "iterations": 1,
        "ppo": {"updates": 3, "n_envs": 4},
        "reward": {"steps": 5},
    }
    assert base["ppo"] == {"updates": 2, "n_envs": 4}


def test_a_budget_says_the_settings_of_its_stages_and_leaves_the_rest_as_it_is() -> None:
    budget = adapt_budget((7, 5), (9, 3), (11, 2), (4, 6, 2), {"collect": {"shard_images": 8}})
    found, default = config(budget), config({})
    assert (found.fine_tuning.steps, found.fine_tuning.batch_size, found.fine_tuning.target_batch_size) == (7, 5, 2)
    assert (found.collect.source_images, found.collect.target_images, found.collect.shard_images) == (9, 3, 8)
    assert (found.reward.steps, found.reward.batch_size) == (11, 2)
    assert (found.ppo.updates, found.ppo.n_envs, found.ppo.eval_every) == (4, 6, 2)
    assert found.shape_prior == default.shape_prior
    assert found.ppo.kl_coef == default.ppo.kl_coef


@pytest.mark.parametrize(
    "budget",
    [
        trial_budget(),
        TRIAL.adapt,
        litemedsam_camus.SIZE.adapt,
        litemedsam_camus.LARGE.adapt,
        short_axis.SIZE.adapt,
    ],
)
def test_every_budget_is_one_of_adapt(budget: dict[str, object]) -> None:
    assert config(budget).ppo.updates < config({}).ppo.updates


def test_without_a_source_there_is_none_in_the_settings() -> None:
    found = adapt_config({"folder": "model"}, Path("target"), None, Path("out"), "lungs", {"seed": 3})
    assert found.source is None
    assert (found.seed, found.anatomy, found.tracking.uri) == (3, "lungs", None)
