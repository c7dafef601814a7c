"""The loop on masks of nnU-Net with the label `ignore`: such pixels teach nothing and count in no score."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet)")
from support.choosing import keep_the_incumbent
from support.nnunet_models import dataset, draw, plans, read_labels, write_model

from medfm_rl import cli
from medfm_rl.data.layouts import find_cases
from medfm_rl.metrics.overlap import dice
from medfm_rl.reward.dataset import ActionDataset
from medfm_rl.runs.finished import load_model
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import DataSettings
from medfm_rl.structures import exclusive
from medfm_rl.workflows.adapt.choosing import choice

pytestmark = pytest.mark.nnunet
LABELS = {"background": 0, "vessel": 1, "ignore": 2}
TINY = {"channels": [4, 8], "residual_units": 0}


def write_data(folder: Path, patients: Sequence[str], offset: float) -> Path:
    """Bright blobs; of the right third of every image nothing is said."""
    for index, patient in enumerate(patients):
        image = draw((37, 40), index + int(offset))
        mask = (image > np.percentile(image, 75)).astype(np.uint8)
        mask[:, 27:] = 2
        for name, pixels in {f"imagesTr/{patient}_0000": image + offset, f"labelsTr/{patient}": mask}.items():
            path = folder / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = sitk.GetImageFromArray(pixels)
            picture.SetSpacing((0.9, 0.8))
            sitk.WriteImage(picture, str(path))
    (folder / "dataset.json").write_text(json.dumps(dataset(LABELS)))
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def expected_scores(data: Path, adapter: Any) -> dict[str, float]:
    found = {}
    for file in find_cases(DataSettings(path=data)):
        mask = adapter.segment(file.read())
        truth = read_labels(data / "labelsTr" / f"{file.case_id}.nii.gz")
        found[file.case_id] = float(dice(mask[:, :27], truth[:, :27], exclusive(2))[0])
    return found


def test_a_source_and_an_evaluation_with_ignored_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model", plans(2, [32, 32], [0.8, 0.8]), dataset(LABELS))
    write_data(tmp_path / "a", [f"p{index}" for index in range(6)], 0)
    write_data(tmp_path / "b", [f"q{index}" for index in range(5)], 50)
    settings = {
        "segmenter": {"kind": "nnunet", "folder": str(model)},
        "source": {"path": str(tmp_path / "a")},
        "target": {"path": str(tmp_path / "b")},
        "evaluation": {"path": str(tmp_path / "b")},
        "output": str(tmp_path / "run"),
        "fine_tuning": {"steps": 2, "batch_size": 2},
        "collect": {"source_images": 8, "target_images": 4, "actions_per_image": 2},
        "shape_prior": {"epochs": 1, "latent": 4},
        "reward": {"network": TINY, "ensemble": 1, "steps": 2, "validate_every": 2, "batch_size": 2},
        "ppo": {"updates": 2, "n_envs": 2, "n_epochs": 1, "eval_every": 1},
        "tracking": {"uri": None},
        "device": "cpu",
    }
    (tmp_path / "adapt.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(choice, "select", keep_the_incumbent)
    assert call(monkeypatch, "adapt", tmp_path / "adapt.yaml") == 0, capsys.readouterr().err
    run = RunFolder(tmp_path / "run")
    records = ActionDataset(run.actions).records(0).with_ground_truth()
    certainty = records.certainty_of(range(len(records)))
    # Patches cover the image, and about a third of it is not said.
    assert set(certainty.unique().tolist()) == {0.0, 1.0}
    assert 0.1 < float((certainty == 0).float().mean()) < 0.6
    assert max(records.highest_labels()) == 1

    adapted = load_model(tmp_path / "run", "cpu").segmenter
    expected = expected_scores(tmp_path / "b", adapted)
    assert call(monkeypatch, "evaluate", tmp_path / "run", tmp_path / "b", "--out", tmp_path / "e") == 0
    found = {row["case_id"]: float(row["dice"]) for row in rows_of(tmp_path / "e" / "scores.csv")}
    assert found == pytest.approx(expected, abs=1e-6)

    capsys.readouterr()
    write_data(tmp_path / "c", [f"r{index}" for index in range(9)], 70)
    assert call(monkeypatch, "calibrate", tmp_path / "run", "--labelled", tmp_path / "c") == 2
    assert "label `ignore` (2), of which nothing is said" in " ".join(capsys.readouterr().err.split())


def test_a_segmenter_learns_from_masks_with_ignored_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path / "a", [f"p{index}" for index in range(6)], 0)
    settings = {
        "data": {"path": str(tmp_path / "a")},
        "output": str(tmp_path / "source"),
        "network": TINY,
        "preprocessing": {"size": [32, 32]},
        "training": {"epochs": 2, "batch_size": 4},
        "device": "cpu",
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    assert call(monkeypatch, "train-source", tmp_path / "train.yaml") == 0
    adapter = load_model(tmp_path / "source", "cpu").segmenter
    assert adapter.schema.structures == ("vessel",)
    expected = expected_scores(tmp_path / "a", adapter)
    assert call(monkeypatch, "evaluate", tmp_path / "source", tmp_path / "a", "--out", tmp_path / "e") == 0
    found = {row["case_id"]: float(row["dice"]) for row in rows_of(tmp_path / "e" / "scores.csv")}
    assert found == pytest.approx({**found, **expected}, abs=1e-6)
