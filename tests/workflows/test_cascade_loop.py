"""The loop on the second stage of an nnU-Net cascade: from settings to an exported folder that holds the first."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet)")
from support.choosing import keep_the_incumbent
from support.nnunet_models import dataset, draw, read_labels, write_cascade

from medfm_rl import cli
from medfm_rl.adapters import NnUNetAdapter
from medfm_rl.data.layouts import find_cases
from medfm_rl.runs.inputs import load_inputs
from medfm_rl.settings import DataSettings
from medfm_rl.workflows.adapt.choosing import choice

pytestmark = pytest.mark.nnunet
LABELS = {"background": 0, "vessel": 1}


def write_data(folder: Path, patients: tuple[str, ...], offset: float) -> Path:
    for index, patient in enumerate(patients):
        image = draw((9, 26, 24), index + int(offset))
        mask = (image > np.percentile(image, 75)).astype(np.uint8)
        for name, pixels in {f"images/{patient}_x_0000": image + offset, f"labels/{patient}_x": mask}.items():
            path = folder / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            volume = sitk.GetImageFromArray(pixels)
            volume.SetSpacing((1.0, 1.0, 2.0))
            sitk.WriteImage(volume, str(path))
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_a_second_stage_goes_in_and_an_adapted_one_comes_out_with_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    second = write_cascade(tmp_path / "results", dataset(LABELS))
    write_data(tmp_path / "a", ("p1", "p2", "p3", "p4"), 0)
    write_data(tmp_path / "b", ("q1", "q2", "q3", "q4", "q5"), 50)
    settings = {
        "segmenter": {"kind": "nnunet", "folder": str(second), "mirroring": False},
        "source": {"path": str(tmp_path / "a"), "layout": "nnunet"},
        "target": {"path": str(tmp_path / "b"), "layout": "nnunet"},
        "output": str(tmp_path / "run"),
        "fine_tuning": {"steps": 2, "batch_size": 2},
        "collect": {"source_images": 8, "target_images": 4, "actions_per_image": 2},
        "shape_prior": {"epochs": 1, "latent": 4},
        "reward": {
            "network": {"channels": [4, 8], "residual_units": 0},
            "ensemble": 1,
            "steps": 2,
            "validate_every": 2,
            "batch_size": 2,
        },
        "ppo": {"updates": 2, "n_envs": 2, "n_epochs": 1, "eval_every": 1},
        "tracking": {"uri": None},
        "device": "cpu",
    }
    (tmp_path / "adapt.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(choice, "select", keep_the_incumbent)
    assert call(monkeypatch, "inspect", second) == 0
    assert "previous stage" in capsys.readouterr().out
    assert call(monkeypatch, "adapt", tmp_path / "adapt.yaml") == 0, capsys.readouterr().err
    first = second.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres")
    place = load_inputs(tmp_path / "run" / "inputs.json")["segmenter.previous_stage.folder"]
    assert place.path == str(first)
    assert "fold_0/checkpoint_final.pth" in place.files

    # The run brings its own first stage along.
    shutil.move(tmp_path / "results", tmp_path / "gone")
    assert call(monkeypatch, "export", tmp_path / "run", "--to", tmp_path / "out") == 0
    images = tmp_path / "b" / "images"
    assert call(monkeypatch, "predict", tmp_path / "run", images, tmp_path / "masks", "--layout", "nnunet") == 0
    exported = NnUNetAdapter(tmp_path / "out", mirroring=False)
    old, new = (
        torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
        for folder in (tmp_path / "gone" / second.name, tmp_path / "out")
    )
    assert sum(not torch.equal(value, new[name]) for name, value in old.items()) > len(old) / 2
    for file in find_cases(DataSettings(path=tmp_path / "b", layout="nnunet")):
        written = read_labels(tmp_path / "masks" / "labels" / f"{file.case_id}.nii.gz")
        assert np.array_equal(written, exported.segment(file.read()))
