"""Folders that hospitals have, through the command line: no case costs another, and nothing is left out in silence."""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from medfm_rl import cli
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.settings import NetworkSettings, PreprocessingSettings
from medfm_rl.types import LabelSchema

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`medfm-rl ARGUMENTS` in this process: exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code = stopped.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter folder with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("random") / "segmenter"
    TorchModuleAdapter.build_unet(
        NetworkSettings(channels=(4, 8), residual_units=0),
        LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3}),
        PreprocessingSettings(size=(32, 32)),
    ).export(folder)
    return folder


def frames(echo: Path, root: Path, count: int = 4) -> list[str]:
    """Copies frames with their masks; returns their names."""
    names = sorted(path.name for path in (echo / "images").iterdir())[: 2 * count : 2]
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
        for name in names:
            shutil.copy(echo / part / name, root / part / name)
    return [name.removesuffix(".nii.gz") for name in names]


def masks_of(out: Path) -> set[str]:
    return {path.name.removesuffix(".nii.gz") for path in (out / "labels").iterdir()}


def test_predict_writes_every_frame_whatever_its_name_and_names_what_it_leaves_out(
    run: Run, segmenter: Path, simulated_echo: Path, tmp_path: Path
) -> None:
    """Reports 15, 19, 30 and 37: Latin-1 bytes, 254 bytes, markup and an empty file among good ones."""
    names = frames(simulated_echo / "a", tmp_path)
    images = tmp_path / "images"
    strange = [b"M\xfcller_1", b"1.2.840." + b"1234567890." * 21 + b"12345678", b"case [bold]#1 %s {x} & <b>'q' $a_{$"]
    for name in strange:
        shutil.copy(images / f"{names[0]}.nii.gz", images / os.fsdecode(name + b".nii.gz"))
    assert len(strange[1] + b".nii.gz") == 254
    (images / "Größe_2.nii.gz").write_bytes(b"")
    code, out, err = run("predict", segmenter, images, tmp_path / "out", "--device", "cpu")
    assert code == 2
    (problem,) = (line for line in err.splitlines() if line.startswith("Left out: "))
    assert problem.endswith("Größe_2.nii.gz: the file is empty")
    assert ".nii.gz" in out
    written = masks_of(tmp_path / "out")
    assert written >= {*names, "M%FCller_1", os.fsdecode(strange[2])}
    assert len(written) == len(names) + 3
    again = run("predict", segmenter, images, tmp_path / "out", "--device", "cpu")
    assert again[0] == 2
    assert masks_of(tmp_path / "out") == written


def test_evaluate_scores_the_others_and_says_how_many_patients(
    run: Run, segmenter: Path, simulated_echo: Path, tmp_path: Path
) -> None:
    """Report 04 as a kind: a mask that was interpolated, one that is missing, an image that is damaged."""
    whole, harmed = tmp_path / "whole", tmp_path / "harmed"
    names = frames(simulated_echo / "a", whole, 6)
    shutil.copytree(whole, harmed)
    for part in ("images", "labels"):
        for name in names[:3]:
            (whole / part / f"{name}.nii.gz").unlink()
    mask = sitk.ReadImage(str(harmed / "labels" / f"{names[0]}.nii.gz"))
    half = sitk.GetImageFromArray(sitk.GetArrayFromImage(mask).astype(np.float32) + 0.5)
    half.CopyInformation(mask)
    sitk.WriteImage(half, str(harmed / "labels" / f"{names[0]}.nii.gz"))
    (harmed / "labels" / f"{names[1]}.nii.gz").unlink()
    (harmed / "images" / f"{names[2]}.nii.gz").write_bytes(b"broken")
    assert run("evaluate", segmenter, whole, "--out", tmp_path / "a", "--device", "cpu")[0] == 0
    code, out, err = run("evaluate", segmenter, harmed, "--out", tmp_path / "b", "--device", "cpu")
    assert code == 2
    assert err.count("Left out: ") == 3
    first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in "ab")
    assert second["models"] == first["models"]
    assert sorted(second["problems"]) == names[:3]
    patients = len({name.split("_")[0] for name in names[3:]})
    assert second["patients"] == patients
    assert f"3 cases; patients found: {patients} (" in out


def test_models_are_compared_by_their_paths_and_a_second_call_has_a_folder_of_its_own(
    run: Run, segmenter: Path, simulated_echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = frames(simulated_echo / "a", tmp_path / "data", 6)
    (tmp_path / "data" / "images" / f"{names[0]}.nii.gz").write_bytes(b"broken")
    other = tmp_path / "other"
    shutil.copytree(segmenter, other)
    monkeypatch.chdir(tmp_path)
    for place in ("evaluation", "evaluation-2"):
        code, out, err = run("evaluate", segmenter, "data", "--against", "other", "--device", "cpu")
        assert code == 2
        assert f"Scores: {place}/scores.csv" in out
        assert "HD95 other" in out
        assert "adapted" not in out + err
        assert f"evaluating {segmenter}: 5 of 5" in err
    summary = json.loads((tmp_path / "evaluation-2" / "summary.json").read_text())
    assert list(summary["problems"]) == [names[0]]
    assert {row["cases"] for rows in summary["models"].values() for row in rows} == {5}


def test_score_refers_what_it_cannot_assess_and_says_why_a_batch_is_untested(
    run: Run, quality_run: Path, simulated_echo: Path, tmp_path: Path
) -> None:
    """Accents are composed in an image and decomposed in its mask; the masks are in integers of their own."""
    names = frames(simulated_echo / "a", tmp_path)
    for part, form in (("images", "NFC"), ("labels", "NFD")):
        path = tmp_path / part / f"{names[0]}.nii.gz"
        path.rename(path.with_name(unicodedata.normalize(form, "Müller_José.nii.gz")))
    (tmp_path / "images" / f"{names[1]}.nii.gz").write_bytes(b"broken")
    for path in (tmp_path / "labels").iterdir():
        mask = sitk.ReadImage(str(path))
        other = sitk.GetImageFromArray(np.array([0, 30, 20, 10], np.uint8)[sitk.GetArrayFromImage(mask)])
        other.CopyInformation(mask)
        sitk.WriteImage(other, str(path))
    description = {"labels": {"background": 0, "la": 10, "MYO": 20, "LV": 30}}
    (tmp_path / "labels" / "dataset.json").write_text(json.dumps(description))
    command = ("score", quality_run, "--images", tmp_path / "images", "--masks", tmp_path / "labels")
    code, out, err = run(*command, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2
    assert "1 of 4 cases could not be" in err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert sorted(case["case_id"] for case in scores["cases"]) == sorted(["Müller_José", *names[2:]])
    assert list(scores["problems"]) == [names[1]]
    assert "Batch: untested" in out
    assert "patients found: " in out
    assert "--patient-pattern" in out


def test_simulate_vendor_leaves_out_what_is_no_frame_and_keeps_the_meaning_of_the_masks(
    run: Run, segmenter: Path, simulated_echo: Path, tmp_path: Path
) -> None:
    names = frames(simulated_echo / "a", tmp_path / "in")
    (tmp_path / "in" / "images" / f"{names[0]}.nii.gz").write_bytes(b"broken")
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "LA": 1, "MYO": 2, "LV": 3}}))
    code, out, err = run("simulate-vendor", tmp_path / "in", tmp_path / "out", "--workers", 1)
    assert code == 2
    assert "Simulated data: " in out
    assert err.count("Left out: ") == 1
    assert masks_of(tmp_path / "out") == set(names[1:])
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "LA": 1, "MYO": 2, "LV": 3}
