"""What a run needs of memory and disk, and what is lowered where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medfm_rl.activations import Activations
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import AdaptConfig, DataSettings, PPOSettings, TorchSettings
from medfm_rl.workflows.adapt.forecast.expectation import Expectation, with_changes
from medfm_rl.workflows.adapt.forecast.fitting import (
    ORDER,
    disk_needed,
    fit_memory,
    memory_by_stage,
    memory_needed,
    require_disk,
)
from medfm_rl.workflows.adapt.forecast.footprint import Footprint, available_memory, free_disk, resident_memory
from medfm_rl.workflows.adapt.forecast.look_ahead import resumed, settings_of_run

GB = 10**9
VOLUMES = Footprint(
    resident=GB,
    policy=Activations(kept=6 * GB, recomputed=2 * GB),
    reward=Activations(kept=GB, recomputed=GB // 3),
    policy_weights=120_000_000,
    reward_weights=4_000_000,
    grid=(96, 160, 160),
    channels=1,
    classes=4,
    packed_image=(7_000_000, 3_000_000),
    packed_mask=30_000,
    patches=(70, 30, 200),
    on_gpu=False,
)


def settings(**changes: Any) -> AdaptConfig:
    values: dict[str, Any] = {
        "segmenter": TorchSettings(folder=Path("model")),
        "target": DataSettings(path=Path("target")),
        "source": DataSettings(path=Path("source")),
        "output": Path("run"),
    }
    return AdaptConfig.model_validate({**values, **changes})


def test_memory_does_not_depend_on_how_many_cases_there_are() -> None:
    more = replace(VOLUMES, patches=(7000, 3000, 20000))
    assert memory_by_stage(settings(), more) == memory_by_stage(settings(), VOLUMES)
    assert disk_needed(settings(), more) > disk_needed(settings(), VOLUMES)


def test_what_fits_is_left_as_it_is() -> None:
    needed = memory_needed(settings(), VOLUMES)
    free = int((needed - VOLUMES.resident) / 0.9) + 1
    assert fit_memory(settings(), VOLUMES, free) == (settings(), {})
    assert fit_memory(settings(), VOLUMES, None) == (settings(), {})


def test_files_of_actions_come_first_and_are_lowered_only_as_far_as_needed() -> None:
    """A 100 patches of 10 MB with the logits of 4 classes take 20 GB."""
    config, changes = fit_memory(settings(), VOLUMES, 16 * GB)
    assert list(changes) == ["collect.shard_images"]
    before, after = changes["collect.shard_images"]
    assert before == 100
    assert 2 < after < 100
    limit = VOLUMES.resident + 0.9 * 16 * GB
    assert memory_needed(config, VOLUMES) <= limit
    larger = settings(collect={"shard_images": after + 1})
    assert memory_needed(larger, VOLUMES) > limit
    assert with_changes(settings(), changes) == config


def test_activations_are_computed_again_before_batches_shrink() -> None:
    config, changes = fit_memory(settings(), VOLUMES, 8 * GB)
    assert list(changes)[:2] == ["collect.shard_images", "recompute"]
    assert changes["recompute"] == (0, 1)
    assert config.recompute is True
    assert memory_needed(config, VOLUMES) <= VOLUMES.resident + 0.9 * 8 * GB
    assert with_changes(settings(), changes) == config


def test_what_cannot_fit_is_refused_with_what_one_patch_needs() -> None:
    with pytest.raises(
        ConfigError,
        match=r"does not fit .* needs about [\d.]+ GB even with .*recompute: 1.* gradient of one patch of "
        r"96 x 160 x 160 alone keeps 2\.0 GB\. Take a machine",
    ):
        fit_memory(settings(), VOLUMES, 2 * GB)


def test_settings_are_never_raised_but_for_recomputing() -> None:
    small = settings(ppo=PPOSettings(n_envs=1), collect={"shard_images": 1})
    with pytest.raises(ConfigError, match=r"even with") as caught:
        fit_memory(small, VOLUMES, GB)
    assert "ppo.n_envs" not in str(caught.value)
    assert "shard_images" not in str(caught.value)


def test_images_of_the_usual_size_are_counted_as_whole_batches() -> None:
    """16 and 8 images of 112 x 112 have one graph."""
    flat = replace(VOLUMES, grid=(112, 112), policy=Activations(10_000_000, 4_000_000), policy_weights=0)
    assert memory_by_stage(settings(), flat)["fine-tuning"] >= GB + 24 * 10_000_000


def test_a_run_that_is_gone_on_with_has_the_settings_that_fitted(tmp_path: Path) -> None:
    config = settings(output=tmp_path / "run")
    expected = Expectation(shortened={"ppo.updates": (40, 20)}, fitted={"recompute": (0, 1), "ppo.n_envs": (16, 4)})
    expected.write(RunFolder(config.output).expected)
    found = settings_of_run(config)
    assert (found.recompute, found.ppo.n_envs, found.ppo.updates) == (True, 4, 20)
    assert resumed(config, None) == (found, expected)


def test_the_order_names_settings_that_there_are() -> None:
    config = settings()
    for name, _ in ORDER:
        section, _, inner = name.partition(".")
        assert hasattr(getattr(config, section), inner) if inner else hasattr(config, section)


def test_a_disk_that_is_too_small_is_named_with_what_the_run_writes() -> None:
    needed = disk_needed(settings(), VOLUMES)
    assert require_disk(settings(), VOLUMES, 2 * needed) == needed
    with pytest.raises(DataError, match=rf"run: the run will write about {needed / GB:.1f} GB .* make room"):
        require_disk(settings(), VOLUMES, needed)


def test_the_system_is_asked(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "not" / "there" / "yet") > 0
    free = available_memory(torch.device("cpu"))
    assert free is None or free > 0
    assert resident_memory() >= 0
