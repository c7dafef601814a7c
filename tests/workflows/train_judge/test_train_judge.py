"""A judge of masks without a segmenter, from training to scores."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from support.page_pictures import pictures_of

from medfm_rl import cli
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import ConfigError, DataError, ModelError
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.model import Targets
from medfm_rl.runs.finished import load_judge, load_run
from medfm_rl.settings import DataSettings, JudgeSettings, NetworkSettings, RewardSettings
from medfm_rl.types import Geometry, LabelSchema
from medfm_rl.workflows.deploy.score import OWN_MASKS, ScoreRequest, score
from medfm_rl.workflows.train_judge.deal import deal
from medfm_rl.workflows.train_judge.train import JudgeRequest, train_judge, with_truth
from medfm_rl.workflows.train_judge.trial import Trial

SCHEMA = LabelSchema.from_structures({"inner": 1, "outer": 2})
TINY = RewardSettings(
    network=NetworkSettings(channels=(4, 8), residual_units=0), steps=6, validate_every=3, fusion="mean", ensemble=2
)


def write_cases(folder: Path, shape: tuple[int, ...], patients: int) -> None:
    """Two nested balls, and a tool's masks of them: shifted by a random amount."""
    generator = np.random.default_rng(0)
    grid = Geometry((1.0,) * len(shape), (0.0,) * len(shape), tuple(np.eye(len(shape)).ravel()))
    for number in range(patients):
        centre = np.array(shape) / 2 + generator.normal(size=len(shape))
        distance = np.sqrt(sum((axis - middle) ** 2 for axis, middle in zip(np.indices(shape), centre, strict=True)))
        truth = np.where(distance < min(shape) / 5, 1, np.where(distance < min(shape) / 3, 2, 0)).astype(np.uint8)
        image = (truth + 0.3 * generator.normal(size=shape)).astype(np.float32)
        given = ndimage.shift(truth, generator.integers(-3, 4, size=len(shape)), order=0)
        name = f"p{number:02d}_a.nii.gz"
        write_image(folder / "images" / name, image, grid)
        write_labels(folder / "truth" / name, truth, grid, SCHEMA)
        write_labels(folder / "masks" / name, given, grid, SCHEMA)


def request_of(folder: Path, size: tuple[int, ...], **settings: object) -> JudgeRequest:
    files = with_truth(find_cases(DataSettings(path=folder / "images")), folder / "truth")
    chosen = JudgeSettings.model_validate({"size": size, "looks": 2, "actions": 3, "reward": TINY, **settings})
    masks = find_masks(folder / "masks", files)
    return JudgeRequest(files, masks, SCHEMA, targets=Targets(dice=0.6), settings=chosen, device="cpu")


@pytest.mark.parametrize(("shape", "size"), [((24, 20), (16, 16)), ((10, 14, 12), (8, 8, 8))])
def test_a_judge_of_a_tools_masks_scores_as_a_run_does(
    tmp_path: Path, shape: tuple[int, ...], size: tuple[int, ...]
) -> None:
    write_cases(tmp_path, shape, 16)
    request = request_of(tmp_path, size)
    trial = train_judge(request, tmp_path / "judge")
    assert (trial.patients, trial.masks) == (3, 3)
    assert trial.words[0].startswith("Tried on 3 masks of 3 patients")
    figures = json.loads((tmp_path / "judge" / "held_out.json").read_text())
    assert figures["error"] == trial.error
    assert "of 3 patients" in (tmp_path / "judge" / "report.html").read_text()
    assert len(pictures_of(tmp_path / "judge" / "report.html")) == 1
    judge = load_judge(tmp_path / "judge", "cpu")
    scoring = score(judge, request.files[:3], tmp_path / "scores", ScoreRequest(masks=request.masks))
    assert [report.case_id for report in scoring.batch.reports] == [file.case_id for file in request.files[:3]]
    assert all(report.mean.predicted_dice is not None for report in scoring.batch.reports)
    item = request.files[0].read_labelled(SCHEMA)
    perfect = QualityController.load(judge.path).assess(item.case, item.ground_truth)
    assert perfect.reward_map.shape == shape
    with pytest.raises(ModelError, match="give the masks"):
        score(judge, request.files[:1], tmp_path / "own", OWN_MASKS)
    with pytest.raises(ModelError, match="neither makes nor corrects"):
        load_run(judge.path, "cpu")


TRIED = Trial(
    patients=9,
    masks=30,
    failures=4,
    error=0.04,
    error_of_constant=0.08,
    spearman=0.7,
    failure_auroc=0.9,
    excess_aurc=0.01,
    coverage=0.9,
    accepted=10,
    accepted_failures=0,
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"spearman": None}, []),
        ({"failures": 0, "failure_auroc": None}, ["none of the 30 masks of the trial is a failure"]),
        ({"error": 0.08}, ["no better than one number for every mask would"]),
        ({"spearman": 0.0}, ["rank correlation 0.00"]),
        ({"error": 0.2, "spearman": -0.2}, ["off by 0.200", "rank correlation -0.20"]),
    ],
)
def test_a_judge_that_is_worth_nothing_is_doubted(changes: dict[str, float], said: list[str]) -> None:
    doubts = replace(TRIED, **changes).doubts
    assert len(doubts) == len(said)
    assert all(part in doubt and "do not accept by it" in doubt for part, doubt in zip(said, doubts, strict=True))


def test_an_interrupted_call_goes_on_and_other_settings_are_refused(tmp_path: Path) -> None:
    write_cases(tmp_path, (24, 20), 16)
    train_judge(request_of(tmp_path, (16, 16)), tmp_path / "judge")
    quality = (tmp_path / "judge" / "quality.json").read_bytes()
    weights = (tmp_path / "judge" / "reward" / "member-0" / "weights.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "judge" / "reward" / "member-0")
    (tmp_path / "judge" / "quality.json").unlink()
    train_judge(request_of(tmp_path, (16, 16)), tmp_path / "judge")
    assert (tmp_path / "judge" / "reward" / "member-0" / "weights.safetensors").read_bytes() == weights
    kept = [json.loads(text) for text in (quality, (tmp_path / "judge" / "quality.json").read_bytes())]
    assert kept[0]["structures"] == kept[1]["structures"]
    with pytest.raises(ConfigError, match="other settings"):
        train_judge(request_of(tmp_path, (16, 16), seed=1), tmp_path / "judge")
    with pytest.raises(ConfigError, match="not empty and holds no judge"):
        train_judge(request_of(tmp_path, (16, 16)), tmp_path / "images")


def test_what_cannot_make_a_judge_is_named(tmp_path: Path) -> None:
    write_cases(tmp_path, (24, 20), 16)
    request = request_of(tmp_path, (16, 16))
    with pytest.raises(DataError, match="14 labelled patients at least"):
        deal(request.files[:13], 0)
    with pytest.raises(ConfigError, match="has 3 axes"):
        train_judge(request_of(tmp_path, (8, 8, 8)), tmp_path / "three")
    shutil.copytree(tmp_path / "truth", tmp_path / "masks", dirs_exist_ok=True)
    with pytest.raises(DataError, match="are the truth itself"):
        train_judge(request_of(tmp_path, (16, 16)), tmp_path / "same")


def test_no_patient_is_in_two_parts(tmp_path: Path) -> None:
    write_cases(tmp_path, (24, 20), 20)
    parts = deal(request_of(tmp_path, (16, 16)).files, 0)
    own = [{file.patient_id for file in part} for part in (parts.learning, parts.calibrating, parts.trying)]
    assert [len(patients) for patients in own] == [8, 8, 4]
    assert len(set.union(*own)) == 20


def test_the_command_says_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cases(tmp_path, (24, 20), 14)
    arguments = ["--images", "images", "--masks", "masks", "--truth", "truth", "--out", "judge"]
    options = [
        "--structures",
        "inner=1,outer=2",
        "--size",
        "16,16",
        "--steps",
        "4",
        "--dice",
        "0.05",
        "--device",
        "cpu",
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["medfm-rl", "train-judge", *arguments, *options])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    assert stopped.value.code == 0, captured.err
    assert "Tried on" in captured.out
    assert "Judge: judge" in captured.out
    assert "judge: none of the 3 masks of the trial is a failure" in " ".join(captured.err.split())
    assert (
        '<p class="banner">None of the 3 masks of the trial is a failure'
        in (tmp_path / "judge" / "report.html").read_text()
    )


def test_a_folder_that_is_not_there_is_named_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--images", "images", "--masks", "masks", "--truth", "truth", "--out", "judge"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["medfm-rl", "train-judge", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "images: there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "judge").exists()
