"""A promptable segmenter through `adapt`: its decoder or low-rank parts learn, its boxes stay what they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.promptable_models import TinyPromptable, tiny_kind, write_tiny

from medfm_rl.adapters.kinds import KINDS
from medfm_rl.data.files import hash_folder
from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import ModelError
from medfm_rl.reward.dataset import ActionDataset
from medfm_rl.reward.network import RewardNet
from medfm_rl.runs.finished import load_model
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import AdaptConfig, DataSettings
from medfm_rl.workflows.adapt.final_report import report_run
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.deploy.predict import predict
from medfm_rl.workflows.export import apply_delta_file, export_delta
from medfm_rl.workflows.inspection import inspect_model

STRUCTURES = {"LV": 1, "MYO": 2, "LA": 3}
REWARD = {"network": {"channels": (4, 8), "residual_units": 0}, "steps": 4, "validate_every": 2, "ensemble": 1}


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture(autouse=True)
def _tiny_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, TinyPromptable.kind, tiny_kind())


@pytest.fixture(scope="module")
def segmenter(simulated_echo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose boxes are those of masks of both domains."""
    folder = tmp_path_factory.mktemp("promptable")
    for domain in ("a", "b"):
        shutil.copytree(simulated_echo / domain / "labels", folder / "masks", dirs_exist_ok=True)
    prompts = {"kind": "from_masks", "path": "../masks", "jitter": 2.0}
    return write_tiny(folder / "tiny", prompts, STRUCTURES)


def make_config(echo: Path, segmenter: Path, output: Path, train: str, **changes: Any) -> AdaptConfig:
    values: dict[str, Any] = {
        "segmenter": {"kind": "litemedsam", "folder": segmenter, "train": train, "lora": {"rank": 2}},
        "target": {"path": echo / "b"},
        "source": {"path": echo / "a"},
        "output": output,
        "iterations": 2,
        "fine_tuning": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2},
        "collect": {"source_images": 8, "target_images": 8, "actions_per_image": 3, "shard_images": 8},
        "shape_prior": {"epochs": 1, "latent": 4},
        "reward": REWARD,
        "ppo": {"updates": 4, "n_envs": 4, "n_epochs": 3, "eval_every": 2, "learning_rate": 1e-2},
        # The held_out is content with the last average, so that what the second iteration starts from has changed.
        "selection": {"confidence": 0.51, "margin": 0.0},
        "tracking": {"uri": None},
        "device": "cpu",
        **changes,
    }
    return AdaptConfig.model_validate(values)


@pytest.fixture(scope="module")
def finished(simulated_echo: Path, segmenter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, TinyPromptable.kind, tiny_kind())
        for train in ("decoder", "lora"):
            output = tmp_path_factory.mktemp(train) / "run"
            runs[train] = adapt(make_config(simulated_echo, segmenter, output, train), False, quiet)
    return runs


@pytest.mark.parametrize("train", ["decoder", "lora"])
def test_it_ends_in_the_tools_own_format(
    train: str, finished: dict[str, RunFolder], simulated_echo: Path, segmenter: Path, tmp_path: Path
) -> None:
    run = finished[train]
    before, after = TinyPromptable.load(segmenter).state_dict(), load_model(run.path, "cpu").segmenter.state_dict()
    assert {name: (value.shape, value.dtype) for name, value in after.items()} == {
        name: (value.shape, value.dtype) for name, value in before.items()
    }
    assert inspect_model(run.path, torch.device("cpu"), lambda *_: None).obstacles == ()
    files = find_cases(DataSettings(path=simulated_echo / "b"))[:1]
    assert predict(load_model(run.path, "cpu"), files, tmp_path, quiet) == []
    assert (tmp_path / "rewards" / f"{files[0].case_id}.nii.gz").exists()


@pytest.mark.parametrize("train", ["decoder", "lora"])
def test_only_what_was_asked_for_learns(train: str, finished: dict[str, RunFolder], segmenter: Path) -> None:
    source = TinyPromptable.load(segmenter).state_dict()
    for name in ("fine-tuning", "iteration-01/ppo/00004", "iteration-01/candidates/00004"):
        state = load_file(finished[train].path / name / "actor.safetensors")
        assert state.keys() == source.keys()
        changed = {key for key, value in state.items() if not torch.equal(value, source[key])}
        weights = {key for key, value in source.items() if key.endswith("weight") and value.ndim > 1}
        expected = {
            "decoder": {key for key in source if key.startswith("module.decoder.")},
            "lora": {key for key in weights if not key.startswith("module.quality_head.")},
        }
        assert changed == expected[train]


def test_a_change_by_low_rank_parts_has_that_rank(finished: dict[str, RunFolder], segmenter: Path) -> None:
    source = TinyPromptable.load(segmenter).state_dict()
    state = load_file(finished["lora"].path / "fine-tuning" / "actor.safetensors")
    key = "module.decoder.0.weight"
    assert torch.linalg.matrix_rank((state[key] - source[key]).flatten(1).double(), rtol=1e-5) == 2


def test_actions_are_collected_on_images_whose_boxes_are_those_of_the_case(
    finished: dict[str, RunFolder], simulated_echo: Path, segmenter: Path
) -> None:
    adapter = TinyPromptable.load(segmenter)
    boxes = {
        file.case_id: adapter.preprocess(file.read()).image[1:]
        for domain in ("a", "b")
        for file in find_cases(DataSettings(path=simulated_echo / domain))
    }
    records = ActionDataset(finished["decoder"].actions).records()
    assert {origin.reference.is_ground_truth for origin in records.origins} == {True, False}
    for image, origin in zip(records.images_of(range(len(records))), records.origins, strict=True):
        # D_R keeps half precision.
        torch.testing.assert_close(image[1:], boxes[origin.case_id], atol=1e-3, rtol=0.0)


def test_reward_networks_take_the_grey_values_alone(finished: dict[str, RunFolder]) -> None:
    assert RewardNet.load(finished["decoder"].final_reward / "member-0").in_channels == 1


def test_a_run_with_low_rank_parts_resumes_to_the_result_of_an_uninterrupted_one(
    finished: dict[str, RunFolder], simulated_echo: Path, segmenter: Path, tmp_path: Path
) -> None:
    config = make_config(simulated_echo, segmenter, tmp_path / "run", "lora")

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.startswith("PPO 2") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(config, False, interrupt)
    run = adapt(config, True, quiet)
    for name in ("iteration-00", "iteration-01", "reward"):
        assert hash_folder(run.path / name) == hash_folder(finished["lora"].path / name)
    ours, theirs = (load_model(path, "cpu").segmenter.state_dict() for path in (run.path, finished["lora"].path))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_source_free_with_a_report(simulated_echo: Path, segmenter: Path, tmp_path: Path) -> None:
    lenient = tmp_path / "lenient.yaml"
    lenient.write_text("rules: [{kind: present, structure: background}]")
    config = make_config(
        simulated_echo,
        segmenter,
        tmp_path / "run",
        "lora",
        source=None,
        iterations=1,
        anatomy=str(lenient),
        evaluation={"path": simulated_echo / "b"},
        collect={"target_images": 40, "actions_per_image": 3},
        selection={"target_fraction": 0.3},
    )
    run = adapt(config, False, quiet)
    assert report_run(run, config, quiet) is not None
    assert run.report.exists()


def test_its_changes_alone_make_the_adapted_segmenter_of_the_one_that_was_adapted(
    finished: dict[str, RunFolder], segmenter: Path, tmp_path: Path
) -> None:
    run, delta = RunFolder(tmp_path / "run"), tmp_path / "delta.safetensors"
    shutil.copytree(finished["lora"].path, run.path)
    # Whatever so short a run has chosen, here it is the last checkpoint.
    policy = TinyPromptable.load(segmenter)
    policy.load_state_dict(load_file(run.path / "iteration-01/ppo/00004/actor.safetensors"))
    shutil.rmtree(run.model)
    policy.export(run.model)
    export_delta(run.path, delta)
    written = apply_delta_file(segmenter, delta, tmp_path / "restored")
    restored, adapted, source = (
        load_model(path, "cpu").segmenter.state_dict() for path in (written.folder, run.path, segmenter)
    )
    assert restored.keys() == adapted.keys()
    for name, value in restored.items():
        torch.testing.assert_close(value, adapted[name], rtol=0, atol=1e-6)
    assert not torch.equal(source["module.decoder.0.weight"], restored["module.decoder.0.weight"])
    with pytest.raises(ModelError, match="of other weights"):
        apply_delta_file(run.model, delta, tmp_path / "again")
    assert not (tmp_path / "again").exists()
