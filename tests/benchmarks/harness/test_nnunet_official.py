from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet)")
from benchmarks.harness import nnunet_official
from benchmarks.harness.nnunet_official import NnUNetRecipe, Training, train
from benchmarks.harness.packs import VENTRICLE_SCHEMA

pytestmark = pytest.mark.nnunet

RECIPE = NnUNetRecipe("3d_fullres", VENTRICLE_SCHEMA, "MRI", ".nii.gz", batch=2, width=4)
TRAINING = Training(921, "ACDC", epochs=2, iterations=2)


class BegunError(Exception):
    """Training would have begun."""


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*arguments: object) -> None:
        raise BegunError

    monkeypatch.setattr(nnunet_official, "_prepare", begin)
    monkeypatch.setattr(nnunet_official, "files_of", lambda _: [])
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_n_proc_DA"):
        # So that what the training sets is taken back.
        monkeypatch.setenv(name, os.environ.get(name, ""))


def checkpoint(folder: Path, training: Training, configuration: str = "3d_fullres") -> Path:
    model = folder / "nnUNet_results" / training.name / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    path = model / f"fold_{training.fold}" / "checkpoint_final.pth"
    path.parent.mkdir(parents=True)
    torch.save({"network_weights": {"weight": torch.zeros(4)}}, path)
    return path


@pytest.mark.parametrize("fold", ["0", "all"])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_trained_model_is_not_trained_again(tmp_path: Path, fold: str, configuration: str) -> None:
    training = replace(TRAINING, fold=fold)
    path = checkpoint(tmp_path, training, configuration)
    recipe = replace(RECIPE, configuration=configuration)
    assert train(recipe, training, tmp_path / "data", tmp_path) == path.parents[1]
    assert os.environ["nnUNet_results"] == str(tmp_path / "nnUNet_results")  # noqa: SIM112 - its name


def test_a_checkpoint_that_a_kill_cut_short_is_no_model(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, TRAINING)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BegunError):
        train(RECIPE, TRAINING, tmp_path / "data", tmp_path)
