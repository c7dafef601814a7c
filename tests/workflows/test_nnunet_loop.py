"""The loop on nnU-Nets: images, volumes slice by slice, and volumes in patches."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet)")
from support.choosing import keep_the_incumbent
from support.nnunet_models import dataset, draw, plans, read_labels, write_model

from medfm_rl import cli
from medfm_rl.adapters.loading import load_segmenter, recognise
from medfm_rl.data.files import hash_folder
from medfm_rl.data.layouts import find_cases
from medfm_rl.runs.finished import load_model
from medfm_rl.settings import AdaptConfig, DataSettings, NnUNetSettings, TorchSettings
from medfm_rl.settings.files import commented_config, dump_config, load_config
from medfm_rl.tiling import tile_boxes
from medfm_rl.workflows.adapt.choosing import choice
from medfm_rl.workflows.training_images import load_images, load_labelled

pytestmark = pytest.mark.nnunet
LABELS = {"background": 0, "vessel": 1}


def quiet(stage: str, done: int, total: int) -> None:
    pass


def write_data(folder: Path, shape: tuple[int, ...], patients: Sequence[str], offset: float, channels: int) -> Path:
    """Bright blobs, dark ones in the second channel; in the target all is brighter. Named as nnU-Net does it."""
    for index, patient in enumerate(patients):
        image = draw(shape, index + int(offset))
        mask = (image > np.percentile(image, 75)).astype(np.uint8)
        shown = {f"images/{patient}_x_{channel:04d}": (1 - 2 * channel) * image + offset for channel in range(channels)}
        for name, pixels in {**shown, f"labels/{patient}_x": mask}.items():
            path = folder / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            volume = sitk.GetImageFromArray(pixels)
            volume.SetSpacing((0.9, 0.8, 2.0)[: len(shape)])
            sitk.WriteImage(volume, str(path))
    return folder


def settings(model: Path, root: Path, **segmenter: Any) -> dict[str, Any]:
    network = {"channels": [4, 8], "residual_units": 0}
    return {
        "segmenter": {"kind": "nnunet", "folder": str(model), **segmenter},
        "source": {"path": str(root / "a"), "layout": "nnunet"},
        "target": {"path": str(root / "b"), "layout": "nnunet"},
        "evaluation": {"path": str(root / "b"), "layout": "nnunet"},
        "output": str(root / "run"),
        "fine_tuning": {"steps": 2, "batch_size": 2},
        "collect": {"source_images": 16, "target_images": 4, "actions_per_image": 2},
        "shape_prior": {"epochs": 1, "latent": 4},
        "reward": {"network": network, "ensemble": 1, "steps": 2, "validate_every": 2, "batch_size": 2},
        "ppo": {"updates": 2, "n_envs": 2, "n_epochs": 1, "eval_every": 1},
        "tracking": {"uri": None},
        "device": "cpu",
    }


KINDS = {
    "images": (2, [32, 32], [0.8, 0.8], (37, 40), 1),
    "images of two channels": (2, [32, 32], [0.8, 0.8], (37, 40), 2),
    "slices of volumes": (2, [32, 32], [0.8, 0.8], (4, 37, 40), 1),
    # No side that a UNet of the reward's depth could halve.
    "patches of volumes": (3, [12, 20, 20], [2.0, 0.8, 0.9], (13, 24, 26), 1),
}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_goes_in_and_an_adapted_folder_comes_out(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dimensions, patch, spacing, shape, channels = KINDS[kind]
    description = dataset(LABELS, channels=("T1", "T2")[:channels])
    model = write_model(tmp_path / "model", plans(dimensions, patch, spacing, channels), description, folds=(0, 1))
    write_data(tmp_path / "a", shape, ["p1", "p2", "p3", "p4", "p5"], 0, channels)
    write_data(tmp_path / "b", shape, ["q1", "q2", "q3", "q4", "q5"], 50, channels)
    before = hash_folder(model)
    # The held-out reward network learned nothing in two steps; what it would choose is not asked here.
    monkeypatch.setattr(choice, "select", keep_the_incumbent)
    (tmp_path / "adapt.yaml").write_text(yaml.safe_dump(settings(model, tmp_path, folds=[1], mirroring=False)))
    assert call(monkeypatch, "adapt", tmp_path / "adapt.yaml") == 0, capsys.readouterr().err
    assert call(monkeypatch, "export", tmp_path / "run", "--to", tmp_path / "out") == 0
    assert "(nnunet)" in capsys.readouterr().out
    assert hash_folder(tmp_path / "out") == hash_folder(tmp_path / "run" / "model")
    assert hash_folder(model) == before
    old, new = (
        torch.load(folder / "fold_1" / "checkpoint_final.pth", weights_only=False)["network_weights"]
        for folder in (model, tmp_path / "out")
    )
    assert sum(not torch.equal(value, new[name]) for name, value in old.items()) > len(old) / 2

    images = tmp_path / "b" / "images"
    assert call(monkeypatch, "predict", tmp_path / "run", images, tmp_path / "masks", "--layout", "nnunet") == 0
    # The settings of the run hold for its result: fold 1, no mirroring.
    adapted = load_model(tmp_path / "run", "cpu").segmenter
    for file in find_cases(DataSettings(path=tmp_path / "b", layout="nnunet")):
        written = read_labels(tmp_path / "masks" / "labels" / f"{file.case_id}.nii.gz")
        reward = read_labels(tmp_path / "masks" / "rewards" / f"{file.case_id}.nii.gz")
        assert np.array_equal(written, adapted.segment(file.read()))
        assert reward.shape == written.shape == shape
        assert 0 <= reward.min() < reward.max() <= 1
    assert (tmp_path / "run" / "report.html").exists()


def test_a_finished_run_is_resumed_with_its_folds(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", plans(2, [32, 32], [0.8, 0.8]), dataset(LABELS), folds=(0, 1))
    path = tmp_path / "adapt.yaml"
    path.write_text(yaml.safe_dump(settings(model, tmp_path, folds=[0, 1])))
    config = load_config(path, AdaptConfig)
    assert config.segmenter == NnUNetSettings(kind="nnunet", folder=model, folds=(0, 1))
    path.write_text(dump_config(config))
    assert load_config(path, AdaptConfig) == config


def test_the_commented_settings_of_an_nnunet_are_valid(tmp_path: Path) -> None:
    values = settings(tmp_path / "model", tmp_path)
    (tmp_path / "adapt.yaml").write_text(commented_config(AdaptConfig, values))
    assert load_config(tmp_path / "adapt.yaml", AdaptConfig) == AdaptConfig.model_validate(values)
    assert "mirroring: true" in (tmp_path / "adapt.yaml").read_text()


def test_slices_and_patches_reach_the_loop_with_their_masks(tmp_path: Path) -> None:
    write_data(tmp_path / "a", (4, 37, 40), ["p1", "p2"], 0, 1)
    files = find_cases(DataSettings(path=tmp_path / "a"))
    flat = load_segmenter(recognise(write_model(tmp_path / "flat", plans(2, [32, 32], [0.8, 0.9]), dataset(LABELS))))
    images = load_images(files, flat, quiet, "images")
    # Both sides are longer than the patch, so each slice has 4 tiles.
    assert images.images.shape == (2 * 4 * 4, 1, 32, 32)
    assert images.patient_ids == ("p1",) * 16 + ("p2",) * 16
    labelled, masks = load_labelled(files, flat, quiet, "images")
    assert torch.equal(labelled.images, images.images)
    bright, dark = labelled.images[:, 0][masks == 1], labelled.images[:, 0][masks == 0]
    assert float(bright.median()) > float(dark.quantile(0.9))


def test_the_boxes_of_a_volume_of_slices_leave_the_first_axis_out() -> None:
    boxes = tile_boxes((3, 5, 4), (4, 4))
    assert [box[0] for box in boxes] == [0, 0, 1, 1, 2, 2]
    assert boxes[:2] == [(0, slice(0, 4), slice(0, 4)), (0, slice(1, 5), slice(0, 4))]


def test_a_folder_is_recognised_by_its_files(tmp_path: Path) -> None:
    model = write_model(tmp_path / "set" / "model", plans(2, [32, 32], [0.8, 0.8]))
    assert recognise(model) == NnUNetSettings(kind="nnunet", folder=model)
    assert recognise(tmp_path / "set") == NnUNetSettings(kind="nnunet", folder=tmp_path / "set")
    (tmp_path / "other").mkdir()
    assert recognise(tmp_path / "other") == TorchSettings(folder=tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folds": [4]}, ["there is no fold 4", "folds that are there: 0"]),
        ({"checkpoint": "checkpoint_best.pth"}, ["checkpoint_best.pth: there is no such checkpoint"]),
        ({"folder": "/nothing"}, ["/nothing: there is no such folder"]),
        ({"kind": "nnunetv1"}, ["segmenter: kind must be one of torch, nnunet, totalsegmentator, monai-bundle"]),
        ({"folds": ["some"]}, ["segmenter.folds"]),
        ({"fold": 0}, ["segmenter.fold: there is no such field"]),
    ],
)
def test_a_mistake_is_told_before_a_folder_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    words: list[str],
) -> None:
    model = write_model(tmp_path / "model", plans(2, [32, 32], [0.8, 0.8]), dataset(LABELS))
    (tmp_path / "adapt.yaml").write_text(yaml.safe_dump(settings(model, tmp_path, **change)))
    assert call(monkeypatch, "adapt", tmp_path / "adapt.yaml") == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_inspect_says_what_a_model_is_and_whether_it_can_be_adapted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model", plans(2, [32, 32], [0.8, 0.8]), dataset(LABELS), folds=(0, 2))
    assert call(monkeypatch, "inspect", model) == 0
    shown = capsys.readouterr().out
    for words in ("nnunet", "background 0, vessel 1", "32 x 32", "0.8 x 0.8 mm", "0, 2", "It can be adapted."):
        assert words in shown
    plan = plans(2, [32, 32], [0.8, 0.8], previous_stage="3d_lowres")
    cascade = write_model(tmp_path / "cascade", plan, dataset(LABELS))
    assert call(monkeypatch, "inspect", cascade) == 2
    assert "It cannot be adapted" in capsys.readouterr().err
    content = json.loads((model / "dataset.json").read_text())
    assert content["labels"] == LABELS


def test_only_a_finished_run_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "export", tmp_path, "--to", tmp_path / "out") == 2
    assert "not a finished run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
