from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from support.score_files import assessed_mask

from medfm_rl import cli
from medfm_rl.correction import CaseCorrector, Verification, Verifier
from medfm_rl.correction.acceptance import Acceptance, HarmTarget
from medfm_rl.data.files import hash_file, hash_folder, write_json
from medfm_rl.data.images import read_image, write_image, write_labels
from medfm_rl.data.labels import hash_labels, read_labels
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import ConfigError, DataError, ModelError
from medfm_rl.networks import hash_weights
from medfm_rl.quality.controller import Keep, QualityController
from medfm_rl.quality.reports import BatchReport, QualityReport
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.runs.finished import load_model, load_run
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import CorrectionSettings, DataSettings, NetworkSettings
from medfm_rl.workflows.calibrate.correction import calibrate_correction
from medfm_rl.workflows.deploy import correction_bench
from medfm_rl.workflows.deploy.correct import CorrectRequest, correct
from medfm_rl.workflows.deploy.correction_outputs import Corrections
from medfm_rl.workflows.deploy.predict import predict
from medfm_rl.workflows.deploy.score import ScoreRequest, score

# No machine is so busy that the time budget would decide.
SETTINGS = CorrectionSettings(steps=2, smoothness=1, learning_rate=5.0, seconds=600)


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture
def run(quality_run: Path, tmp_path: Path) -> Path:
    """The finished run with a verifier of its own."""
    folder = tmp_path / "run"
    shutil.copytree(quality_run, folder)
    torch.manual_seed(7)
    RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 4).save(folder / "reward" / "held-out")
    return folder


@pytest.fixture
def images(quality_run: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted((quality_run.parent / "data" / "images").iterdir())[:4]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def drawn_pictures() -> None:
    """For tests that look at the pictures."""


@pytest.fixture(autouse=True)
def blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw a picture takes more time than to correct its case."""
    if "drawn_pictures" not in request.fixturenames:
        monkeypatch.setattr(correction_bench, "correction_figure", lambda *_: Figure(figsize=(1, 1)))


@pytest.fixture
def agreeing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier of an untrained run says nothing of use: here it says yes."""
    verdict = Verification(True, ("yes",), 0.1, {"LV": 0.1, "MYO": 0.1, "LA": 0.1}, 0.2, (), (), 16)
    monkeypatch.setattr(Verifier, "compare", lambda *_: verdict)


def run_correct(
    run: Path,
    images: Path,
    out: Path,
    scores: Path | None = None,
    propose_only: bool = False,
    every: bool = True,
    masks: Path | None = None,
) -> Corrections:
    files = find_cases(DataSettings(path=images))
    given = None if masks is None else find_masks(masks, files)
    return correct(
        load_run(run, "cpu"),
        files,
        out,
        CorrectRequest(SETTINGS, scores=scores, every=every, propose_only=propose_only, masks=given),
        quiet,
    )


def write_scores(
    path: Path, run: Path, verdicts: dict[str, str], state: str = "holds", masks: dict[str, str] | None = None
) -> None:
    """A `scores.json` of masks of the run's segmenter, or of masks with these hashes."""
    cases = [
        assessed_mask(name, name, verdict, "" if masks is None else masks[name]) for name, verdict in verdicts.items()
    ]
    segmenter = hash_weights(load_model(run, "cpu").segmenter) if masks is None else None
    quality = hash_file(RunFolder(run).quality)
    write_json(
        path,
        {"cases": cases, "problems": {}, "batch_state": state, "quality": quality, "segmenter": segmenter},
    )


def one_of_each_patient(quality_run: Path, count: int) -> list[CaseFile]:
    files = find_cases(DataSettings(path=quality_run.parent / "data"))
    return list({file.patient_id: file for file in files}.values())[:count]


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "audit.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("agreeing", "drawn_pictures")
def test_correcting_leaves_masks_pictures_tables_and_a_log_and_the_model_as_it_was(
    run: Path, images: Path, tmp_path: Path
) -> None:
    out, model = tmp_path / "out", hash_folder(run)
    found = run_correct(run, images, out)
    assert hash_folder(run) == model
    assert found.count("corrected") > 0
    assert found.count("corrected") + found.count("referred") == 4
    segmenter = load_model(run, "cpu").segmenter
    with (out / "corrections.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((out / "corrections.json").read_text(encoding="utf-8"))
    assert [row["case"] for row in rows] == [item["case"] for item in content["cases"]]
    for file, row in zip(find_cases(DataSettings(path=images)), rows, strict=True):
        case = file.read()
        labels, geometry = read_image(out / "labels" / f"{file.case_id}.nii.gz")
        assert geometry.matches(case.geometry)
        same = np.array_equal(labels[0], segmenter.schema.to_ids(segmenter.segment(case)))
        assert same == (row["decision"] == "referred")
        picture = (out / "pictures" / f"{file.case_id}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
    assert all(len(item["reward_gains"]) >= 1 and item["seconds"] > 0 for item in content["cases"])
    assert [line["case"] for line in log_of(out)] == [row["case"] for row in rows]


@pytest.mark.usefixtures("agreeing")
def test_proposals_stand_beside_masks_that_stay(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run_correct(run, images, out, propose_only=True)
    assert found.count("proposed") > 0
    assert found.count("corrected") == 0
    segmenter = load_model(run, "cpu").segmenter
    for file in find_cases(DataSettings(path=images)):
        labels, _ = read_image(out / "labels" / f"{file.case_id}.nii.gz")
        np.testing.assert_array_equal(labels[0], segmenter.schema.to_ids(segmenter.segment(file.read())))
    proposals = list((out / "proposals").iterdir())
    assert len(proposals) == found.count("proposed")
    # A later call that may change masks leaves no proposals of the earlier one.
    assert run_correct(run, images, out).count("corrected") == len(proposals)
    assert list((out / "proposals").iterdir()) == []


def test_a_judge_that_does_not_agree_leaves_every_mask(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Verification(False, ("no",), -0.1, {"LV": -0.1, "MYO": -0.1, "LA": -0.1}, 0.2, (), (), 16)
    monkeypatch.setattr(Verifier, "compare", lambda *_: refused)
    found = run_correct(run, images, tmp_path / "out")
    assert found.count("referred") == 4
    segmenter = load_model(run, "cpu").segmenter
    for file in find_cases(DataSettings(path=images)):
        labels, _ = read_image(tmp_path / "out" / "labels" / f"{file.case_id}.nii.gz")
        np.testing.assert_array_equal(labels[0], segmenter.schema.to_ids(segmenter.segment(file.read())))


def test_an_interrupted_call_goes_on_where_it_was(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out", []
    correct = CaseCorrector.correct

    def watched(self: CaseCorrector, case, sample=None, original=None):
        seen.append(case.case_id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return correct(self, case)

    monkeypatch.setattr(CaseCorrector, "correct", watched)
    with pytest.raises(KeyboardInterrupt):
        run_correct(run, images, out)
    assert not (out / "corrections.csv").exists()
    assert len(log_of(out)) == 2
    found = run_correct(run, images, out)
    assert len(found.records) == 4
    assert seen[3:] == [seen[2], *(record["case"] for record in found.records[3:])]
    assert len(log_of(out)) == 4


@pytest.mark.parametrize(
    "where",
    ["medfm_rl.correction.CaseCorrector.correct", "medfm_rl.workflows.deploy.correction_bench.tiled_reward_map"],
)
def test_a_case_that_does_not_fit_into_the_memory_is_named_and_the_rest_is_handled(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """While it is corrected, and while the reward maps of its picture are made."""
    names = [file.case_id for file in find_cases(DataSettings(path=images))]
    module, _, attribute = where.rpartition(".")
    owner = CaseCorrector if module.endswith("CaseCorrector") else sys.modules[module]
    real, calls = getattr(owner, attribute), []

    def too_large(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, **options)

    monkeypatch.setattr(owner, attribute, too_large)
    found = run_correct(run, images, tmp_path / "out")
    assert found.problems == {names[0]: f"case {names[0]}: too large for the memory of cpu"}
    assert [record["case"] for record in found.records] == names[1:]


def test_one_bad_file_in_many_is_referred_and_the_rest_is_handled(run: Path, images: Path, tmp_path: Path) -> None:
    bad = sorted(images.iterdir())[1]
    bad.write_bytes(b"no image")
    found = run_correct(run, images, tmp_path / "out")
    assert len(found.records) == 3
    assert len(found.problems) == 1
    assert bad.name in next(iter(found.problems.values()))
    assert "cannot be read" in (tmp_path / "out" / "corrections.csv").read_text(encoding="utf-8")


def test_only_cases_with_the_verdict_correct_are_taken(run: Path, images: Path, tmp_path: Path) -> None:
    names = [file.case_id for file in find_cases(DataSettings(path=images))]
    verdicts = dict(zip(names, ("accept", "correct", "refer", "correct"), strict=True))
    scores = tmp_path / "scores.json"
    write_scores(scores, run, verdicts)
    found = run_correct(run, images, tmp_path / "out", scores, every=False)
    assert [record["case"] for record in found.records] == [names[1], names[3]]
    assert found.untouched == 2
    write_scores(scores, run, {name: verdicts[name] for name in names[:2]})
    with pytest.raises(DataError, match="has no score of 2 images"):
        run_correct(run, images, tmp_path / "out", scores, every=False)
    scores.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"not a scores\.json"):
        run_correct(run, images, tmp_path / "out", scores, every=False)


@pytest.mark.usefixtures("agreeing")
def test_where_the_batch_is_unlike_the_calibration_corrections_are_proposed_only(
    run: Path, images: Path, tmp_path: Path
) -> None:
    names = [file.case_id for file in find_cases(DataSettings(path=images))]
    scores, segmenter = tmp_path / "scores.json", load_model(run, "cpu").segmenter
    for state, decision in (("suspended", "proposed"), ("weighted", "corrected")):
        write_scores(scores, run, dict.fromkeys(names, "correct"), state)
        out = tmp_path / state
        found = run_correct(run, images, out, scores, every=False)
        assert found.count(decision) > 0
        assert found.count("proposed" if decision == "corrected" else "corrected") == 0
        assert found.promise.startswith("every mask stays") == (state == "suspended")
        changed = 0
        for file in find_cases(DataSettings(path=images)):
            labels, _ = read_image(out / "labels" / f"{file.case_id}.nii.gz")
            changed += not np.array_equal(labels[0], segmenter.schema.to_ids(segmenter.segment(file.read())))
        assert (changed == 0) == (state == "suspended")


@pytest.fixture
def masks(run: Path, images: Path, tmp_path: Path) -> Path:
    """Masks of the images that the run's segmenter would not make: LV everywhere but at the border."""
    folder, schema = tmp_path / "masks", load_model(run, "cpu").segmenter.schema
    for file in find_cases(DataSettings(path=images)):
        case = file.read()
        labels = np.zeros(case.shape, dtype=np.uint8)
        labels[2:-2, 2:-2] = 1
        write_labels(folder / f"{file.case_id}.nii.gz", labels, case.geometry, schema)
    return folder


def test_what_is_not_corrected_is_the_mask_that_was_given(
    run: Path, images: Path, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Verification(False, ("no",), -0.1, {"LV": -0.1, "MYO": -0.1, "LA": -0.1}, 0.2, (), (), 16)
    monkeypatch.setattr(Verifier, "compare", lambda *_: refused)
    found = run_correct(run, images, tmp_path / "out", masks=masks)
    assert found.count("referred") == 4
    for path in masks.iterdir():
        np.testing.assert_array_equal(read_image(tmp_path / "out" / "labels" / path.name)[0], read_image(path)[0])
    # Another mask is another case.
    case, geometry = read_image(next(masks.iterdir()))
    other = np.zeros(case.shape[1:], dtype=np.uint8)
    other[4:-4, 4:-4] = 1
    write_labels(next(masks.iterdir()), other, geometry, load_model(run, "cpu").segmenter.schema)
    run_correct(run, images, tmp_path / "out", masks=masks)
    assert len(log_of(tmp_path / "out")) == 5


@pytest.mark.usefixtures("agreeing")
def test_masks_of_another_tool_are_scored_and_corrected(
    run: Path, images: Path, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_cases(DataSettings(path=images))
    monkeypatch.setattr("medfm_rl.quality.verdicts._verdict", lambda *_: ("correct", "rules", ["because"]))
    score(load_run(run, "cpu"), files, tmp_path / "scores", ScoreRequest(masks=find_masks(masks, files)), quiet)
    scores = tmp_path / "scores" / "scores.json"
    with pytest.raises(DataError, match=r"is of masks that came as files, and not the segmenter of .*--masks"):
        run_correct(run, images, tmp_path / "out", scores, every=False)
    found = run_correct(run, images, tmp_path / "out", scores, every=False, masks=masks)
    assert found.count("corrected") == 4
    assert found.promise.startswith("no error rate is promised")
    changed = min(masks.iterdir())
    labels, geometry = read_image(changed)
    labels[0, :5] = 0
    write_labels(changed, labels[0].astype(np.uint8), geometry, load_model(run, "cpu").segmenter.schema)
    found = run_correct(run, images, tmp_path / "again", scores, every=False, masks=masks)
    assert found.count("corrected") == 3
    assert "is not the mask that was scored; score it again" in next(iter(found.problems.values()))
    together = run_correct(run, images, tmp_path / "together", every=False, masks=masks)
    assert together.count("corrected") == 4


@pytest.mark.usefixtures("agreeing")
def test_masks_with_the_integers_of_another_tool_are_corrected_as_the_masks_that_they_are(
    run: Path, images: Path, masks: Path, tmp_path: Path
) -> None:
    (tmp_path / "others").mkdir()
    for path in masks.iterdir():
        labels, geometry = read_image(path)
        other = np.array([0, 255, 100, 7], dtype=np.uint8)[labels[0].astype(np.uint8)]
        write_image(tmp_path / "others" / path.name, other, geometry)
    files = find_cases(DataSettings(path=images))
    expected = run_correct(run, images, tmp_path / "expected", masks=masks)
    found = correct(
        load_run(run, "cpu"),
        files,
        tmp_path / "out",
        CorrectRequest(
            SETTINGS, every=True, masks=find_masks(tmp_path / "others", files), labels="LV=255,MYO=100,LA=7"
        ),
        quiet,
    )
    assert found.count("corrected") == expected.count("corrected") == 4
    # What is written has the integers of the run.
    for path in masks.iterdir():
        written = [read_image(tmp_path / out / "labels" / path.name)[0] for out in ("out", "expected")]
        np.testing.assert_array_equal(*written)


def test_a_mask_of_another_tool_needs_a_larger_gain(
    run: Path, images: Path, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def compare(verifier: Verifier, *_: object) -> Verification:
        asked.append(verifier.settings.margin)
        return Verification(False, ("no",), 0.0, {}, 0.0, (), (), 16)

    monkeypatch.setattr(Verifier, "compare", compare)
    run_correct(run, images, tmp_path / "own")
    assert set(asked) == {SETTINGS.margin}
    asked.clear()
    run_correct(run, images, tmp_path / "given", masks=masks)
    assert set(asked) == {SETTINGS.margin_given}
    assert SETTINGS.margin < SETTINGS.margin_given


def test_scores_of_another_segmenter_are_refused(run: Path, images: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    write_scores(scores, run, {file.case_id: "correct" for file in find_cases(DataSettings(path=images))})
    content = json.loads(scores.read_text(encoding="utf-8"))
    write_json(scores, {**content, "segmenter": "0" * 64})
    with pytest.raises(DataError, match="is of masks that another segmenter made"):
        run_correct(run, images, tmp_path / "out", scores, every=False)


def test_without_scores_the_cases_are_scored_first(run: Path, images: Path, tmp_path: Path) -> None:
    found = run_correct(run, images, tmp_path / "out", every=False)
    content = json.loads((tmp_path / "out" / "scores" / "scores.json").read_text(encoding="utf-8"))
    marked = [case["case_id"] for case in content["cases"] if case["verdict"] == "correct"]
    assert [record["case"] for record in found.records] == marked
    assert found.untouched == 4 - len(marked)


def test_the_command_says_what_it_did_and_names_a_wrong_option(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["medfm-rl", "correct", run, "--images", images, "--out", tmp_path / "out", "--all", "--budget"]
    for budget, code in (("0.1", 0), ("-1", 2)):
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in (*arguments, budget)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == code
    shown = capsys.readouterr()
    assert "referred with the original mask, 0 not taken" in shown.out
    assert "Error: --budget -1.0: Input should be greater than 0" in shown.err


def test_the_command_corrects_masks_of_another_tool(
    run: Path, images: Path, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ["medfm-rl", "correct", run, "--images", images, "--masks", masks, "--out", out, "--all"]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in (*arguments, "--method", "none")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    for path in masks.iterdir():
        np.testing.assert_array_equal(read_image(out / "labels" / path.name)[0], read_image(path)[0])


@pytest.mark.usefixtures("agreeing")
def test_a_margin_from_labelled_cases_is_used_where_it_fits(
    run: Path, images: Path, quality_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(run)
    assert run_correct(run, images, tmp_path / "before").promise.startswith("no error rate is promised: the run has no")
    files = one_of_each_patient(quality_run, 7)
    found = calibrate_correction(load_run(folder.path, "cpu"), files, HarmTarget(alpha=0.45), SETTINGS, progress=quiet)
    assert (found.cases, found.patients) == (21, 7)
    assert 0 < found.proposals <= 7
    assert Acceptance.read(folder.correction) == found
    found.model_copy(update={"margin": None, "reason": "too few"}).write(folder.correction)
    assert run_correct(run, images, tmp_path / "out").promise == "no error rate is promised: too few"
    found.model_copy(update={"margin": 0.25, "reason": "few do harm"}).write(folder.correction)
    assert run_correct(run, images, tmp_path / "out").promise == "promised for cases like these: few do harm"
    content = json.loads((tmp_path / "out" / "corrections.json").read_text(encoding="utf-8"))
    assert content["settings"]["margin"] == 0.25
    assert content["promise"].endswith("few do harm")
    # Other rules: the promise is not of these corrections.
    folder.quality.unlink()
    assert "of other networks, rules or settings" in run_correct(run, images, tmp_path / "other").promise


@pytest.mark.usefixtures("agreeing")
def test_too_few_patients_for_any_margin_are_refused_before_the_first_correction(
    run: Path, quality_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(1 - .45)^n <= .1 / 5 needs n = 7."""
    handled: list[str] = []
    correct = CaseCorrector.correct

    def watched(self: CaseCorrector, case, sample=None, original=None):
        handled.append(case.case_id)
        return correct(self, case, sample, original)

    monkeypatch.setattr(CaseCorrector, "correct", watched)
    target = HarmTarget(alpha=0.45)
    with pytest.raises(DataError, match="there are 6 patients, and a margin needs a correction of at least 7"):
        calibrate_correction(
            load_run(run, "cpu"), one_of_each_patient(quality_run, 6), target, SETTINGS, progress=quiet
        )
    assert handled == []
    assert not RunFolder(run).correction.exists()
    calibrate_correction(load_run(run, "cpu"), one_of_each_patient(quality_run, 7), target, SETTINGS, progress=quiet)
    assert len(handled) == 21


@pytest.mark.usefixtures("agreeing")
def test_what_the_time_budget_cut_does_not_count_in_a_calibration(run: Path, quality_run: Path) -> None:
    settings = SETTINGS.model_copy(update={"seconds": 1e-6})
    files = one_of_each_patient(quality_run, 7)
    found = calibrate_correction(load_run(run, "cpu"), files, HarmTarget(alpha=0.45), settings, progress=quiet)
    assert (found.proposals, found.margin) == (0, None)
    assert found.reason.endswith("; 21 of 21 cases do not count, for their time budget ended early")


def test_calibrating_needs_a_finished_run(quality_run: Path, tmp_path: Path) -> None:
    files = find_cases(DataSettings(path=quality_run.parent / "data"))[:2]
    with pytest.raises(ModelError, match="not a finished run"):
        calibrate_correction(load_run(tmp_path, "cpu"), files, HarmTarget(), SETTINGS, progress=quiet)


@pytest.mark.parametrize("method", ["none", "tta", "memo", "components", "shape-prior"])
def test_a_method_is_chosen_by_its_name(method: str, run: Path, images: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ShapePrior(4, (32, 32), 4).save(run / "shape_prior")
    settings = SETTINGS.model_copy(update={"method": method})
    files = find_cases(DataSettings(path=images))[:1]
    found = correct(load_run(run, "cpu"), files, tmp_path / "out", CorrectRequest(settings, every=True), quiet)
    assert len(found.records) == 1
    assert found.records[0]["reward_gains"] == []


@pytest.mark.parametrize(
    ("method", "missing"), [("intent", "no batch normalisation"), ("tent", "no normalisation with a scale")]
)
def test_a_method_that_the_segmenter_does_not_allow_is_refused(
    method: str, missing: str, run: Path, images: Path, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"method": method})
    with pytest.raises(ModelError, match=missing):
        correct(
            load_run(run, "cpu"),
            find_cases(DataSettings(path=images)),
            tmp_path,
            CorrectRequest(settings, every=True),
            quiet,
        )


@pytest.mark.usefixtures("agreeing")
def test_predicting_with_correction_leaves_a_mask_of_every_case(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [file.case_id for file in find_cases(DataSettings(path=images))]
    (images / sorted(path.name for path in images.iterdir())[0]).write_bytes(b"no image")
    verdicts = dict(zip(names, ["refer", "accept", "correct", "correct"], strict=True))
    settle = QualityController.settle

    def settled(self: QualityController, reports: list[QualityReport], keep: Keep = tuple) -> BatchReport:
        batch = settle(self, reports, keep)
        actions = {"accept": "use", "correct": "correct", "refer": "refer"}
        marked = tuple(
            replace(report, verdict=verdicts[report.case_id], action=actions[verdicts[report.case_id]])
            for report in batch.reports
        )
        return replace(batch, reports=marked)

    monkeypatch.setattr(QualityController, "settle", settled)
    out = tmp_path / "out"
    arguments = ["medfm-rl", "predict", run, images, out, "--correct", "--method", "tta"]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert "1 not taken" in shown.out
    assert f"Could not be handled: {images}" in shown.err.replace("\n", "")
    content = json.loads((out / "corrections.json").read_text(encoding="utf-8"))
    assert [item["case"] for item in content["cases"]] == names[2:]
    assert sorted(path.name for path in (out / "labels").iterdir()) == [f"{name}.nii.gz" for name in names[1:]]
    for name in names[1:]:
        masks = [read_image(folder / f"{name}.nii.gz")[0] for folder in (out / "labels", out / "scores" / "labels")]
        decision = next((item["decision"] for item in content["cases"] if item["case"] == name), "untouched")
        assert np.array_equal(*masks) == (decision != "corrected")
    assert "corrected" in {item["decision"] for item in content["cases"]}


def test_predicting_with_correction_leaves_masks_that_another_model_made_alone(
    run: Path, images: Path, tmp_path: Path
) -> None:
    files, out, settings = find_cases(DataSettings(path=images)), tmp_path / "out", CorrectionSettings(method="none")
    predict(load_model(run, "cpu"), files, out, quiet)
    before = hash_folder(out)
    with pytest.raises(DataError, match="no record says what made it; give another output folder"):
        correct(load_run(run, "cpu"), files, out, CorrectRequest(settings), quiet)
    assert hash_folder(out) == before
    corrected = tmp_path / "corrected"
    for _ in range(2):
        assert correct(load_run(run, "cpu"), files, corrected, CorrectRequest(settings), quiet).problems == {}
    other = tmp_path / "other"
    shutil.copytree(run, other)
    with (other / "model" / "segmenter.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    before = hash_folder(corrected)
    with pytest.raises(DataError, match="another model made it"):
        correct(load_run(other, "cpu"), files, corrected, CorrectRequest(settings), quiet)
    assert hash_folder(corrected) == before


def test_a_corrected_mask_that_a_person_changed_is_not_lost(run: Path, images: Path, tmp_path: Path) -> None:
    files, out, settings = find_cases(DataSettings(path=images)), tmp_path / "out", CorrectionSettings(method="none")
    masks = [out / "labels" / f"{file.case_id}.nii.gz" for file in files]
    correct(load_run(run, "cpu"), files, out, CorrectRequest(settings, every=True), quiet)
    edited = masks[1].read_bytes()
    masks[0].write_bytes(edited)
    for asked in (settings, settings.model_copy(update={"seconds": 5.0})):
        found = correct(load_run(run, "cpu"), files, out, CorrectRequest(asked, every=True), quiet)
        assert found.problems.keys() == {files[0].case_id}
        assert f"{masks[0]}: was changed after it was written" in found.problems[files[0].case_id]
        assert masks[0].read_bytes() == edited


@pytest.fixture
def agrees_if_it_has_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier has no other objection."""
    monkeypatch.setattr(Verifier, "_objections", lambda *_: ())


@pytest.mark.usefixtures("agrees_if_it_has_time")
def test_what_the_time_budget_cut_is_told_everywhere_and_not_taken_for_a_result(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def call(budget: str) -> tuple[str, list[dict[str, Any]], list[dict[str, str]]]:
        arguments = ["correct", run, "--images", images, "--out", out, "--all", "--budget", budget]
        monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 0
        with (out / "corrections.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return capsys.readouterr().out, json.loads((out / "corrections.json").read_text())["cases"], rows

    for repeated in (1, 2):
        shown, cases, rows = call("1e-6")
        assert "0 corrected" in shown
        assert "The time budget ended early for 4 cases" in shown
        assert {row["stopped"] for row in rows} == {"time"}
        # Whatever the time, one view is looked at.
        assert {row["views"] for row in rows} == {"1"}
        verified = [case for case in cases if case["verification"] is not None]
        assert verified
        assert all(case["verification"]["views"] == 1 for case in verified)
        assert all("time: the verifier could look at 1 of 16 views" in case["reasons"][0] for case in verified)
        assert sorted(row["verifier_views"] for row in rows) == [""] * (4 - len(verified)) + ["1"] * len(verified)
        lines = log_of(out)
        assert len(lines) == 4 * repeated
        assert all(line["views"] == 1 for line in lines)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "The time budget ended early for 4 cases" in page
    assert page.count("1 views for the proposal") == 4
    for repeated in (1, 2):
        shown, cases, rows = call("600")
        assert "time budget" not in shown
        assert "0 corrected" not in shown
        assert {row["views"] for row in rows} == {"16"}
        assert {row["verifier_views"] for row in rows if row["decision"] == "corrected"} == {"16"}
        assert len(log_of(out)) == 12, f"call {repeated}"
    assert "time budget" not in (out / "report.html").read_text(encoding="utf-8")


def test_scores_by_another_quality_model_are_refused(run: Path, images: Path, tmp_path: Path) -> None:
    """Verdicts, and whether a batch is suspended, are those of one quality model."""
    files, other = find_cases(DataSettings(path=images)), tmp_path / "other"
    score(load_run(run, "cpu"), files, tmp_path / "scores", progress=quiet)
    scores = tmp_path / "scores" / "scores.json"
    assert json.loads(scores.read_text())["quality"] == hash_file(run / "quality.json")
    run_correct(run, images, tmp_path / "out", scores, every=False)
    # The same segmenter, so that the masks are the same: only who verified them differs.
    shutil.copytree(run, other)
    with (other / "quality.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"scores\.json: was not made with .*other/quality\.json as it is now"):
        run_correct(other, images, tmp_path / "refused", scores, every=False)
    assert not (tmp_path / "refused").exists()
    (other / "quality.json").unlink()
    with pytest.raises(DataError, match="was not made with"):
        run_correct(other, images, tmp_path / "refused", scores, every=False)


def test_every_case_and_scores_do_not_go_together(run: Path, images: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    write_scores(scores, run, {file.case_id: "correct" for file in find_cases(DataSettings(path=images))}, "suspended")
    with pytest.raises(ConfigError, match="--all takes every case and asks no scores"):
        run_correct(run, images, tmp_path / "out", scores, every=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("agreeing")
def test_a_mask_of_every_case_that_has_one_is_left_whoever_made_it(
    run: Path, images: Path, masks: Path, tmp_path: Path
) -> None:
    files = find_cases(DataSettings(path=images))
    names, schema = [file.case_id for file in files], load_model(run, "cpu").segmenter.schema
    verdicts = dict(zip(names, ("accept", "correct", "refer", "correct"), strict=True))
    own, scores = tmp_path / "own", tmp_path / "scores.json"
    for file in files:
        case = file.read()
        write_labels(
            own / f"{file.case_id}.nii.gz", load_model(run, "cpu").segmenter.segment(case), case.geometry, schema
        )
    for originals, given in ((own, None), (masks, masks)):
        hashes = {
            file.case_id: hash_labels(
                read_labels(originals / f"{file.case_id}.nii.gz", schema, file.read().shape, file.read().geometry)
            )
            for file in files
        }
        write_scores(scores, run, verdicts, masks=None if given is None else hashes)
        out = tmp_path / f"out-{originals.name}"
        for _ in range(2):
            found = run_correct(run, images, out, scores, every=False, masks=given)
            assert (found.count("corrected"), found.untouched, found.problems) == (2, 2, {})
        assert sorted(path.name for path in (out / "labels").iterdir()) == [f"{name}.nii.gz" for name in names]
        for name in names:
            left, before = (read_image(folder / f"{name}.nii.gz")[0] for folder in (out / "labels", originals))
            assert np.array_equal(left, before) == (verdicts[name] != "correct")
        lines = {str(line["case"]): line for line in log_of(out)}
        assert [lines[name]["decision"] for name in names] == ["kept", "corrected", "kept", "corrected"]
        assert len(log_of(out)) == 4, "the second call has made nothing anew"


@pytest.mark.usefixtures("agreeing")
def test_the_audit_log_has_hashes_of_what_was_written(run: Path, images: Path, tmp_path: Path) -> None:
    schema = load_model(run, "cpu").segmenter.schema
    for propose_only in (False, True):
        out = tmp_path / str(propose_only)
        run_correct(run, images, out, propose_only=propose_only)
        lines = {str(line["case"]): line for line in log_of(out)}
        for file in find_cases(DataSettings(path=images)):
            case, line = file.read(), lines[file.case_id]
            label = out / "labels" / f"{file.case_id}.nii.gz"
            assert line["mask"] == hash_labels(read_labels(label, schema, case.shape, case.geometry))
            assert line["outputs"][f"labels/{file.case_id}.nii.gz"] == hash_file(label)
            assert (f"proposals/{file.case_id}.nii.gz" in line["outputs"]) == (line["decision"] == "proposed")


def test_cases_that_cannot_be_handled_are_counted_apart_and_end_with_code_2(
    run: Path,
    images: Path,
    masks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [file.case_id for file in find_cases(DataSettings(path=images))]
    (masks / f"{names[0]}.nii.gz").unlink()
    (images / f"{names[1]}.nii.gz").write_bytes(b"no image")
    score_first = ["score", run, "--images", images, "--masks", masks, "--out", tmp_path / "scores"]
    common = ["correct", run, "--images", images, "--masks", masks, "--method", "none"]
    scored = ["--scores", tmp_path / "scores" / "scores.json"]
    for arguments in (score_first, [*common, "--all"], common, [*common, *scored]):
        out = tmp_path / f"out-{len(arguments)}"
        to = [] if arguments is score_first else ["--out", out]
        monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, [*arguments, *to])])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        shown = capsys.readouterr()
        if arguments is score_first:
            continue
        assert stopped.value.code == 2
        assert "2 could not be handled" in shown.out
        assert shown.err.count("Could not be handled: ") == 2
        with (out / "corrections.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["case"] for row in rows if row["decision"] == "not handled"] == names[:2]
        referred = sum(row["decision"] == "referred" for row in rows)
        assert f"{referred} referred with the original mask, {2 - referred} not taken" in shown.out
        assert sorted(path.name for path in (out / "labels").iterdir()) == [f"{name}.nii.gz" for name in names[2:]]
        assert [line["case"] for line in log_of(out) if line["decision"] == "not handled"] == names[:2]


def test_masks_that_something_else_made_are_not_written_over(
    run: Path, images: Path, masks: Path, tmp_path: Path
) -> None:
    """The masks that are to be corrected may lie where the output goes."""
    out = tmp_path / "out"
    shutil.copytree(masks, out / "labels")
    before = hash_folder(out)
    with pytest.raises(DataError, match="no record says what made it"):
        run_correct(run, images, out, masks=out / "labels")
    assert hash_folder(out) == before


@pytest.mark.parametrize("option", [("--method", "tta"), ("--budget", "3")])
def test_options_of_correction_are_refused_where_nothing_is_corrected(
    option: tuple[str, str],
    run: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["predict", run, images, tmp_path / "out", *option]
    monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    said = f"{option[0]}: masks are assessed and corrected with --correct alone; give it too"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--correct", "--clean-up"),
            "--clean-up: --correct looks at the masks as the segmenter makes them, one by one",
        ),
        (("--correct", "--over-time"), "--over-time: --correct looks at the masks as the segmenter makes them"),
        (("--anatomy", "generic"), "--anatomy: names the rules that masks are cleaned up by; give --clean-up too"),
    ],
)
def test_what_is_done_to_masks_that_are_not_corrected_is_refused_beside_correction(
    options: tuple[str, ...],
    said: str,
    run: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, ("predict", run, images, tmp_path / "out", *options))])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("agreeing", "drawn_pictures")
def test_the_page_has_every_case_worst_first_and_what_is_promised(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bad = sorted(images.iterdir())[0]
    bad.write_bytes(b"no image")
    found = run_correct(run, images, out)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "no error rate is promised" in page
    assert bad.name in page
    assert "SIMULATED DATA" not in page
    shown = re.findall(r"<figcaption><strong>([^<]+)</strong> <span class=\"(\w+)\">", page)
    decisions = {record["case"]: record for record in found.records}
    assert {name for name, _ in shown} == decisions.keys()
    order = ["referred", "proposed", "corrected"]
    keys = [
        (order.index(decision), decisions[name]["reward_after" if decision == "corrected" else "reward_before"])
        for name, decision in shown
    ]
    assert keys == sorted(keys)
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
    for record in found.records:
        assert 0 <= record["reward_before"] <= 1
        assert (record["reward_after"] != record["reward_before"]) == (record["verification"] is not None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate-correction", "run", "--labelled", "data", "--alpha", "0.9"], "--alpha 0.9: Input should be less"),
        (
            ["correct", "run", "--images", "data", "--out", "out", "--optimise", "norm"],
            "--objective and --optimise are for --method optimise",
        ),
    ],
)
def test_a_wrong_option_is_named(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["medfm-rl", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_says_what_a_margin_promises(
    run: Path, quality_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = tmp_path / "labelled"
    for part in ("images", "labels"):
        (labelled / part).mkdir(parents=True)
        for file in one_of_each_patient(quality_run, 7):
            shutil.copy(quality_run.parent / "data" / part / f"{file.case_id}.nii.gz", labelled / part)
    arguments = ["medfm-rl", "calibrate-correction", run, "--labelled", labelled, "--method", "none", "--alpha", "0.45"]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert "Margin: none; at most 45% of the accepted corrections lose more than 1 Dice" in capsys.readouterr().out
    assert RunFolder(run).correction.exists()
