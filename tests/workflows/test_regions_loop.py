"""The loop on a region-based nnU-Net: structures that nest, from settings to an exported folder."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet)")
from support.choosing import keep_the_incumbent
from support.nnunet_models import draw, plans, read_labels, region_dataset, write_model

from medfm_rl import cli
from medfm_rl.data.layouts import find_cases
from medfm_rl.metrics.overlap import dice
from medfm_rl.quality.model import QualityModel
from medfm_rl.runs.finished import load_model
from medfm_rl.settings import DataSettings
from medfm_rl.structures import exclusive
from medfm_rl.workflows.adapt.choosing import choice

pytestmark = pytest.mark.nnunet
NAMES = ("whole", "core", "enhancing")


def write_data(folder: Path, patients: Sequence[str], offset: float) -> Path:
    """The brighter, the deeper within: label 1 around 2, and 3 in it, as files of such tasks have them."""
    for index, patient in enumerate(patients):
        image = draw((37, 40), index + int(offset))
        mask = np.digitize(image, np.percentile(image, [60, 75, 90])).astype(np.uint8)
        for name, pixels in {f"images/{patient}_x_0000": image + offset, f"labels/{patient}_x": mask}.items():
            path = folder / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = sitk.GetImageFromArray(pixels)
            picture.SetSpacing((0.9, 0.8))
            sitk.WriteImage(picture, str(path))
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


def test_nested_regions_are_adapted_scored_corrected_evaluated_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model", plans(2, [32, 32], [0.8, 0.8]), region_dataset())
    write_data(tmp_path / "a", [f"p{index}" for index in range(6)], 0)
    write_data(tmp_path / "b", [f"q{index}" for index in range(5)], 50)
    tiny = {"channels": [4, 8], "residual_units": 0}
    settings = {
        "segmenter": {"kind": "nnunet", "folder": str(model), "mirroring": False},
        "source": {"path": str(tmp_path / "a"), "layout": "nnunet"},
        "target": {"path": str(tmp_path / "b"), "layout": "nnunet"},
        "output": str(tmp_path / "run"),
        "fine_tuning": {"steps": 2, "batch_size": 2},
        "collect": {"source_images": 16, "target_images": 4, "actions_per_image": 2},
        "shape_prior": {"epochs": 1, "latent": 4},
        "reward": {"network": tiny, "ensemble": 1, "steps": 2, "validate_every": 2, "batch_size": 2},
        "ppo": {"updates": 2, "n_envs": 2, "n_epochs": 1, "eval_every": 1},
        "tracking": {"uri": None},
        "device": "cpu",
    }
    (tmp_path / "adapt.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(choice, "select", keep_the_incumbent)
    run, images = tmp_path / "run", tmp_path / "b" / "images"

    assert call(monkeypatch, "adapt", tmp_path / "adapt.yaml") == 0, capsys.readouterr().err
    write_data(tmp_path / "c", [f"r{index}" for index in range(9)], 70)
    labelled = ("--labelled", tmp_path / "c", "--layout", "nnunet")
    assert call(monkeypatch, "calibrate", run, *labelled) == 0, capsys.readouterr().err
    quality = QualityModel.read(run / "quality.json")
    assert (quality.label_schema.structures, quality.label_schema.num_classes) == (NAMES, 8)

    own = ("--model", run, "--layout", "nnunet")
    assert call(monkeypatch, "score", run, "--images", images, "--out", tmp_path / "s", *own) == 0
    assert {row["structure"] for row in rows_of(tmp_path / "s" / "scores.csv")} == {*NAMES, "mean"}
    written = json.loads((tmp_path / "s" / "labels" / "dataset.json").read_text())
    assert written["labels"] == {"background": 0, "whole": 1, "whole+core": 2, "whole+core+enhancing": 3}
    # The masks that it wrote, given as those of somebody else, get the same scores.
    given = ("--masks", tmp_path / "s" / "labels", "--layout", "nnunet")
    assert call(monkeypatch, "score", run, "--images", images, "--out", tmp_path / "again", *given) == 0
    first, second = (rows_of(tmp_path / name / "scores.csv") for name in ("s", "again"))
    assert [row["structure"] for row in first] == [row["structure"] for row in second]
    for name in ("predicted_dice", "mean_reward"):
        one, two = ([float(row[name] or "nan") for row in rows] for rows in (first, second))
        assert one == pytest.approx(two, abs=1e-5, nan_ok=True)

    assert call(monkeypatch, "evaluate", run, tmp_path / "b", "--out", tmp_path / "e", "--layout", "nnunet") == 0
    adapted = load_model(run, "cpu").segmenter
    scores = {(row["case_id"], row["structure"]): float(row["dice"]) for row in rows_of(tmp_path / "e" / "scores.csv")}
    for file in find_cases(DataSettings(path=tmp_path / "b", layout="nnunet")):
        mask = adapted.segment(file.read())
        integers = read_labels(tmp_path / "s" / "labels" / f"{file.case_id}.nii.gz")
        assert np.array_equal(integers, adapted.schema.to_ids(mask))
        truth = read_labels(tmp_path / "b" / "labels" / f"{file.case_id}.nii.gz")
        for least, name in enumerate(NAMES, 1):
            of_region = dice((integers >= least).astype(np.uint8), (truth >= least).astype(np.uint8), exclusive(2))
            assert scores[file.case_id, name] == pytest.approx(float(of_region[0]), abs=1e-6)

    correct = ("correct", run, "--images", images, "--out", tmp_path / "c", "--layout", "nnunet")
    assert call(monkeypatch, *correct) == 0, capsys.readouterr().err
    assert call(monkeypatch, "export", run, "--to", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == region_dataset()
