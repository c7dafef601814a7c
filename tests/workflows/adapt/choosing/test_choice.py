from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_runs import TINY, tiny_config

from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import DataError
from medfm_rl.settings import (
    AdaptConfig,
    CollectSettings,
    DataSettings,
    PPOSettings,
    RewardSettings,
    SelectionSettings,
)
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.training_images import load_images


def run_config(echo: Path, model: Path, output: Path, **changes: object) -> AdaptConfig:
    values: dict[str, object] = {
        "iterations": 1,
        "collect": CollectSettings(source_images=12, target_images=8, actions_per_image=2),
        "reward": RewardSettings(network=TINY, ensemble=1, steps=2, validate_every=2),
        "ppo": PPOSettings(updates=3, n_envs=2, n_epochs=1, eval_every=2),
    }
    return tiny_config(echo, model, output, **{**values, **changes})


def test_images_are_read_without_opening_a_mask(simulated_echo: Path, source_model: Path, tmp_path: Path) -> None:
    """Masks that no reader takes are beside every image."""
    from medfm_rl.adapters import TorchModuleAdapter

    (tmp_path / "labels").mkdir()
    (tmp_path / "images").symlink_to(simulated_echo / "b" / "images")
    for path in (tmp_path / "images").iterdir():
        (tmp_path / "labels" / path.name).write_bytes(b"not an image")
    files = find_cases(DataSettings(path=tmp_path))
    adapter = TorchModuleAdapter.load(source_model)
    images = load_images(files, adapter, lambda stage, done, total: None, "target")
    assert len(images) == 24
    with pytest.raises(DataError):
        files[0].read_labelled(adapter.schema)


@pytest.mark.parametrize(("updates", "eval_every", "expected"), [(3, 2, [2, 3]), (1, 5, [1])])
def test_the_last_update_competes_too(
    simulated_echo: Path,
    source_model: Path,
    tmp_path: Path,
    updates: int,
    eval_every: int,
    expected: list[int],
) -> None:
    ppo = PPOSettings(updates=updates, n_envs=2, n_epochs=1, eval_every=eval_every)
    # The untrained model makes no mask that a strict profile would call valid.
    lenient = tmp_path / "lenient.yaml"
    lenient.write_text("rules: [{kind: present, structure: background}]")
    config = run_config(simulated_echo, source_model, tmp_path / "run", ppo=ppo, anatomy=str(lenient))
    run = adapt(config, False, lambda stage, done, total: None)
    names = [candidate["name"] for candidate in json.loads(run.selection(0).read_text())["candidates"]]
    assert names == ["source", "fine-tuning", *(f"iteration-00/candidates/{step:05d}" for step in expected)]


def test_too_few_patients_to_select_on_are_told_before_anything_runs(
    simulated_echo: Path, source_model: Path, tmp_path: Path
) -> None:
    """6 patients and a share of 0.1 leave one: the bootstrap over patients needs two."""
    config = run_config(
        simulated_echo, source_model, tmp_path / "run", selection=SelectionSettings(target_fraction=0.1)
    )
    with pytest.raises(DataError, match=r"6 patients.*selection\.target_fraction 0\.1.*raise the fraction"):
        adapt(config, False, lambda stage, done, total: None)
    assert not config.output.exists()
