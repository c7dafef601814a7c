from __future__ import annotations

import copy
import csv
import io
import json
import re
import shutil
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from matplotlib.image import imread
from support.reward_reports import report_on
from support.score_files import assessed_mask
from torch import Tensor

from medfm_rl.adapters import Sample, TorchModuleAdapter
from medfm_rl.data.files import hash_file, hash_path, write_json
from medfm_rl.data.images import read_image, write_image, write_labels
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import DataError, ModelError
from medfm_rl.metrics.scores import MEAN
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.model import QualityModel, Targets
from medfm_rl.quality.reports import QualityReport
from medfm_rl.quality.submission import Submission
from medfm_rl.reports.scores import PageCase, thumbnail, write_page
from medfm_rl.runs.finished import load_model, load_run
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.models import ModelInMemory
from medfm_rl.runs.scores import Scores
from medfm_rl.settings import CLINIC, RESEARCH, AdaptConfig, DataSettings
from medfm_rl.settings.files import load_config
from medfm_rl.types import Geometry, LabelledCase, LabelSchema
from medfm_rl.workflows.calibrate.from_source import write_default_quality
from medfm_rl.workflows.calibrate.quality import CalibrateRequest, calibrate
from medfm_rl.workflows.deploy.predict import predict
from medfm_rl.workflows.deploy.score import ScoreRequest, score


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture
def images(quality_run: Path, tmp_path: Path) -> Path:
    """Six cases of the calibration data, in folders of their own."""
    folder = tmp_path / "data"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
        for path in sorted((quality_run.parent / "data" / part).iterdir())[:6]:
            shutil.copy(path, folder / part)
    return folder


def run_score(quality_run: Path, images: Path, out: Path, masks: Path | None = None, **options):
    files = find_cases(DataSettings(path=images / "images"))
    found = find_masks(masks or images / "labels", files)
    return score(load_run(quality_run, "cpu"), files, out, ScoreRequest(masks=found, **options), quiet)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scoring_leaves_tables_maps_a_page_and_a_log(quality_run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scoring = run_score(quality_run, images, out)
    rows = rows_of(out)
    assert len(rows) == 6 * 4
    assert {row["structure"] for row in rows} == {"LV", "MYO", "LA", "mean"}
    content = json.loads((out / "scores.json").read_text())
    assert len(content["cases"]) == 6
    assert {"measured", "least", "most", "unit", "source", "passed"} <= content["cases"][0]["rules"][0].keys()
    assert [item["status"] for item in content["promises"]]
    assert content["policy"] == RESEARCH.model_dump(mode="json")
    case = scoring.batch.reports[0]
    image, geometry = read_image(next((images / "images").glob(f"{case.case_id}.*")))
    pixels, found = read_image(out / "rewards" / f"{case.case_id}.nii.gz")
    assert pixels.shape == image.shape
    assert found.matches(geometry)
    controller = QualityController.load(quality_run)
    labelled = find_cases(DataSettings(path=images))[0].read_labelled(controller.schema)
    alone = controller.assess(labelled.case, labelled.ground_truth)
    np.testing.assert_allclose(pixels[0], alone.reward_map, atol=1e-6)
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == 6
    assert "http" not in page
    assert "SIMULATED" not in page
    log = [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]
    assert [line["case"] for line in log] == [report.case_id for report in scoring.batch.reports]
    assert all(line["verdict"] and line["inputs"]["mask"] for line in log)


def test_what_was_scored_is_kept_and_what_changed_is_not(
    quality_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out", []
    submit = QualityController.submit

    def watched(self: QualityController, case, labels):
        seen.append(case.case_id)
        return submit(self, case, labels)

    monkeypatch.setattr(QualityController, "submit", watched)
    first = run_score(quality_run, images, out)
    assert len(seen) == 6
    (out / "cases" / "score" / f"{seen[0]}.json").unlink()
    (out / "cases" / "score" / f"{seen[1]}.json").write_text("{")
    mask = next((images / "labels").glob(f"{seen[2]}.*"))
    shutil.copy(next((images / "labels").glob(f"{seen[3]}.*")), mask)
    again = run_score(quality_run, images, out)
    assert seen[6:] == seen[:3]
    assert again.batch.reports[5].scores == first.batch.reports[5].scores
    # The log is added to, never rewritten.
    assert len((out / "audit.jsonl").read_text().splitlines()) == 12


def test_patients_come_from_the_call_and_not_from_what_was_scored_before(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    """A first call without a pattern takes all for one patient, and the advice is to give one."""
    out = tmp_path / "out"
    files = find_cases(DataSettings(path=images / "images"))
    found = find_masks(images / "labels", files)
    as_one = [replace(file, patient_id="all") for file in files]
    assert score(load_run(quality_run, "cpu"), as_one, out, ScoreRequest(masks=found), quiet).batch.patients == 1
    apart = [replace(file, patient_id=f"p{number}") for number, file in enumerate(files)]
    again = score(load_run(quality_run, "cpu"), apart, out, ScoreRequest(masks=found), quiet)
    assert again.batch.patients == 6
    assert again.batch.state != "untested"
    assert [case["patient_id"] for case in json.loads((out / "scores.json").read_text())["cases"]] == [
        file.patient_id for file in apart
    ]


def test_a_call_that_is_cut_short_leaves_no_tables_of_the_one_before(
    quality_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_score(quality_run, images, out)

    def killed(self: QualityController, submissions: Sequence[Submission]) -> list[QualityReport]:
        raise KeyboardInterrupt

    monkeypatch.setattr(QualityController, "assess_batch", killed)
    first, *others = sorted((images / "labels").iterdir())
    for path in others:
        shutil.copy(first, path)
    with pytest.raises(KeyboardInterrupt):
        run_score(quality_run, images, out)
    assert not [path.name for path in out.iterdir() if path.name in ("scores.csv", "scores.json", "report.html")]
    assert (out / "audit.jsonl").exists()


def test_one_bad_file_in_many_is_referred_and_the_rest_is_scored(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    names = sorted(path.name for path in (images / "images").iterdir())
    (images / "images" / names[0]).write_bytes(b"no image")
    (images / "labels" / names[1]).unlink()
    stranger = sitk.ReadImage(str(images / "labels" / names[2])) * 0 + 77
    sitk.WriteImage(stranger, str(images / "labels" / names[2]))
    small = sitk.GetImageFromArray(np.ones((5, 5), np.uint8))
    sitk.WriteImage(small, str(images / "labels" / names[3]))
    out = tmp_path / "out"
    scoring = run_score(quality_run, images, out)
    assert len(scoring.batch.reports) == 2
    assert len(scoring.problems) == 4
    problems = " ".join(scoring.problems.values())
    for message in ("cannot be read", "there is no mask of that name", "label 77", "the mask has size (5, 5)"):
        assert message in problems
    assert scoring.count("refer") >= 4
    referred = [row for row in rows_of(out) if row["structure"] == ""]
    assert [row["verdict"] for row in referred] == ["refer"] * 4
    # What is known of a case that could not be assessed is kept: who it is, which files, and what was in them.
    assert [row["patient_id"] for row in referred] == [row["case_id"].split("_")[0] for row in referred]
    causes = ["input_unusable", "mask_missing", "mask_unusable", "mask_unusable"]
    assert [row["reason_code"] for row in referred] == causes
    assert [row["image_files"] for row in referred] == [str(images / "images" / name) for name in names[:4]]
    with_masks = [str(images / "labels" / name) for name in names[:4]]
    assert [row["mask_file"] for row in referred] == [with_masks[0], "", *with_masks[2:]]
    problems_of = json.loads((out / "scores.json").read_text())["problems"]
    assert [item["reason_code"] for item in problems_of.values()] == causes
    assert all(item["patient_id"] and item["problem"] for item in problems_of.values())
    log = {line["case"]: line for line in map(json.loads, (out / "audit.jsonl").read_text().splitlines())}
    for row, name in zip(referred, names[:4], strict=True):
        inputs = log[row["case_id"]]["inputs"]
        assert inputs["images"] == [hash_path(images / "images" / name)]
        assert inputs.get("mask") == (None if row["mask_file"] == "" else hash_path(Path(row["mask_file"])))
        assert log[row["case_id"]]["reason_code"] == row["reason_code"]
    assert f"there is no mask of that name, or more than one, in {images / 'labels'}" in problems
    assert (out / "report.html").read_text().count("<li>") == 2 + 4


def test_a_case_that_cannot_be_written_is_referred_and_those_judged_with_it_are_kept(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    name = find_cases(DataSettings(path=images / "images"))[1].case_id
    # A folder where the reward map should go.
    (out / "rewards" / f"{name}.nii.gz" / "in the way").mkdir(parents=True)
    scoring = run_score(quality_run, images, out)
    assert set(scoring.problems) == {name}
    assert f"{name}.nii.gz" in scoring.problems[name]
    assert len(scoring.batch.reports) == 5
    assert name in {row["case_id"] for row in rows_of(out) if row["verdict"] == "refer"}


@pytest.mark.parametrize("most_waiting", [16, 2])
def test_a_case_that_fails_among_others_is_named_and_they_are_judged(
    most_waiting: int, quality_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [file.case_id for file in find_cases(DataSettings(path=images / "images"))]
    restore = TorchModuleAdapter.restore_map

    def failing(self: TorchModuleAdapter, values: Tensor, sample: Sample) -> np.ndarray:
        if sample.case_id == names[2]:
            raise ModelError(f"{sample.case_id}: its preprocessing cannot be undone")
        return restore(self, values, sample)

    monkeypatch.setattr("medfm_rl.quality.submission._BATCH", most_waiting)
    monkeypatch.setattr(TorchModuleAdapter, "restore_map", failing)
    scoring = run_score(quality_run, images, tmp_path / "out")
    assert dict(scoring.problems) == {names[2]: f"{names[2]}: its preprocessing cannot be undone"}
    assert [report.case_id for report in scoring.batch.reports] == [*names[:2], *names[3:]]
    monkeypatch.undo()
    whole = run_score(quality_run, images, tmp_path / "whole").batch.reports
    for report, alone in zip(scoring.batch.reports, [*whole[:2], *whole[3:]], strict=True):
        assert report.mean.predicted_dice == pytest.approx(alone.mean.predicted_dice, abs=1e-6)


def test_a_case_that_does_not_fit_into_the_memory_is_referred_and_the_rest_is_scored(
    quality_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also cuts short the batch that it is assessed in; what was made of that is gone before the others are."""
    names = [file.case_id for file in find_cases(DataSettings(path=images / "images"))]
    judge, made, left = QualityController.assess_batch, [], []

    def too_large(self: QualityController, submissions: Sequence[Submission]) -> list[QualityReport]:
        left.append([each() for each in made if each() is not None])
        maps = torch.zeros(4)
        made.append(weakref.ref(maps))
        if names[1] in [submission.case.case_id for submission in submissions]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return judge(self, submissions)

    monkeypatch.setattr(QualityController, "assess_batch", too_large)
    scoring = run_score(quality_run, images, tmp_path / "out")
    assert left == [[]] * 7
    assert dict(scoring.problems) == {names[1]: f"case {names[1]}: too large for the memory of cpu"}
    assert [report.case_id for report in scoring.batch.reports] == [names[0], *names[2:]]


def test_a_mask_that_a_person_changed_is_neither_scored_as_it_was_nor_lost(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    files = find_cases(DataSettings(path=images / "images"))[:2]
    mask, missing = (tmp_path / "labels" / f"{file.case_id}.nii.gz" for file in files)
    score(load_run(quality_run, "cpu"), files, tmp_path, progress=quiet)
    kept = missing.read_bytes()
    mask.write_bytes(kept)
    missing.unlink()
    (tmp_path / "thumbnails" / f"{files[1].case_id}.png").unlink()
    again = score(load_run(quality_run, "cpu"), files, tmp_path, progress=quiet)
    assert again.problems.keys() == {files[0].case_id}
    assert f"{mask}: was changed after it was written" in again.problems[files[0].case_id]
    assert mask.read_bytes() == missing.read_bytes() == kept


def test_a_mask_elsewhere_in_space_is_no_mask_of_the_image(quality_run: Path, images: Path, tmp_path: Path) -> None:
    name = sorted((images / "images").iterdir())[0].name.partition(".")[0]
    for part in ("images", "labels"):
        old = next((images / part).glob(f"{name}.*"))
        pixels, _ = read_image(old)
        old.unlink()
        spacing = (0.5, 0.5) if part == "images" else (0.7, 0.7)
        geometry = Geometry(spacing, (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
        write_image(images / part / f"{name}.nii.gz", pixels[0].astype(np.uint8), geometry)
    scoring = run_score(quality_run, images, tmp_path / "out")
    assert "lies elsewhere in space" in scoring.problems[name]


def accepting(quality_run: Path, folder: Path) -> Path:
    """The run with a limit that every mask of its own segmenter keeps, and no rules."""
    run = folder / "accepting"
    shutil.copytree(quality_run, run)
    content = json.loads((run / "quality.json").read_text())
    content["targets"]["dice"], content["profile"]["rules"] = 0.001, []
    content["structures"][MEAN]["quantile"] = 0.01
    content["structures"][MEAN]["residuals"] = [0.0] * len(content["domain"]["reference"])
    write_json(run / "quality.json", content)
    return run


def test_every_output_tells_verdict_guarantee_and_action_apart(quality_run: Path, images: Path, tmp_path: Path) -> None:
    run, out = accepting(quality_run, tmp_path), tmp_path / "out"
    files = find_cases(DataSettings(path=images / "images"))[:1]
    scoring = score(load_run(run, "cpu"), files, out, progress=quiet)
    assert (scoring.batch.state, scoring.batch.patients, scoring.count("accept")) == ("untested", 1, 1)
    assert (scoring.accepted("expected"), scoring.acted("use")) == (1, 1)
    for row in rows_of(out):
        assert (row["verdict"], row["reason_code"], row["guarantee"]) == ("accept", "predicted_dice", "expected")
        assert (row["action"], row["policy"]) == ("use", "research")
        assert 0 < float(row["risk"]) <= 0.1
        assert "was not tested" in row["evidence"]
        assert (row["batch_state"], row["batch_patients"], row["interval_state"]) == ("untested", "1", "untested")
        assert (row["batch_meaning"], row["batch_guarantee"]) == (scoring.batch.meaning, "expected")
        assert (row["image_files"], row["mask_file"]) == (
            str(files[0].image_paths[0]),
            str(out / "labels" / f"{files[0].case_id}.nii.gz"),
        )
    content = json.loads((out / "scores.json").read_text())
    assert (content["batch_state"], content["batch_patients"]) == ("untested", 1)
    assert (content["batch_meaning"], content["interval_state"]) == (scoring.batch.meaning, "untested")
    assert (content["batch_guarantee"], content["batch_evidence"]) == ("expected", scoring.batch.evidence)
    (case,) = content["cases"]
    assert (case["verdict"], case["guarantee"], case["action"]) == ("accept", "expected", "use")
    page = (out / "report.html").read_text()
    assert "State of the batch: <strong>untested</strong>" in page
    assert scoring.batch.meaning[1:] in page
    assert "by the policy <strong>research</strong>" in page
    cautious = score(load_run(run, "cpu"), files, out, ScoreRequest(policy=CLINIC), quiet)
    assert (cautious.count("accept"), cautious.acted("use"), cautious.acted("refer")) == (1, 0, 1)
    assert {(row["verdict"], row["action"], row["policy"]) for row in rows_of(out)} == {("accept", "refer", "clinic")}
    assert {row["action_reason"] for row in rows_of(out)} == {"policy clinic: unproven: refer"}
    log = [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in log] == ["accept", "accept"]
    assert [line["guarantee"] for line in log] == ["expected", "expected"]
    assert [line["action"] for line in log] == ["use", "refer"]
    assert [line["policy"]["name"] for line in log] == ["research", "clinic"]
    assert [line["batch"]["guarantee"] for line in log] == ["expected", "expected"]


@pytest.mark.parametrize("number", [3, 4])
def test_scores_of_older_versions_are_read_and_what_they_accepted_is_used(tmp_path: Path, number: int) -> None:
    cases = [assessed_mask(verdict, "p", verdict, "ab") for verdict in ("accept", "correct", "refer")]
    content = {"format": number, "batch_state": "holds", "quality": "cd", "segmenter": None, "cases": cases}
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({**content, "problems": {"bad": {"problem": "it is", "verdict": "refer"}}}))
    found = Scores.read(path)
    assert {name: case.action for name, case in found.cases.items()} == {
        "accept": "use",
        "correct": "correct",
        "refer": "refer",
    }
    assert found.problems["bad"].problem == "it is"
    path.write_text(json.dumps({**content, "format": 5, "cases": [{**cases[0], "action": "keep"}], "problems": {}}))
    with pytest.raises(DataError, match=r"cases\.0\.action: Input should be 'use', 'correct' or 'refer', not 'keep'"):
        Scores.read(path)


def test_masks_with_other_integers_get_the_scores_of_the_masks_that_they_are(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    expected = run_score(quality_run, images, tmp_path / "expected").batch.reports
    other = LabelSchema.from_structures({"LV": 255, "MYO": 100, "LA": 7})
    files = find_cases(DataSettings(path=images))
    (tmp_path / "masks").mkdir()
    for file in files:
        labelled = file.read_labelled(LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3}))
        path = tmp_path / "masks" / f"{file.case_id}.nii.gz"
        write_labels(path, labelled.ground_truth, labelled.case.geometry, other)
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"label 7, 100, 255 is not one of those that are expected.*--labels"):
        run_score(quality_run, images, out, tmp_path / "masks")
    found = run_score(quality_run, images, out, tmp_path / "masks", labels="MYO=100, LV=255, LA=7")
    assert [report.scores for report in found.batch.reports] == [report.scores for report in expected]
    # Read in another way, the same files are other masks: nothing of before is taken for them.
    swapped = run_score(quality_run, images, out, tmp_path / "masks", labels="MYO=255,LV=100,LA=7")
    assert swapped.batch.reports[0].scores != expected[0].scores
    alone = run_score(quality_run, images, tmp_path / "alone", images / "labels", labels="LV=1,background=0,LA=2,MYO=3")
    assert alone.problems == {}


def test_structures_that_are_not_named_are_in_no_mask(
    quality_run: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (images / "labels").iterdir():
        mask = sitk.ReadImage(str(path))
        sitk.WriteImage(sitk.Cast(mask == 1, sitk.sitkUInt8) * 255, str(path))
    found = run_score(quality_run, images, tmp_path / "out", labels="LV=255")
    assert {report.reason_code for report in found.batch.reports} == {"structure_missing"}
    assert "MYO, LA are missing" in found.batch.reports[0].reasons[0]
    assert "does not name MYO and LA" in caplog.text


def test_masks_without_an_image_are_listed(quality_run: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = find_cases(DataSettings(path=images / "images"))
    find_masks(images / "labels", files)
    assert caplog.text == ""
    find_masks(images / "labels", files[2:])
    for file in files[:2]:
        assert f"{file.case_id}." in caplog.text
    assert f"{files[2].case_id}." not in caplog.text
    for number in range(20):
        shutil.copy(next((images / "labels").iterdir()), images / "labels" / f"a{number}.nii.gz")
    find_masks(images / "labels", files)
    assert "and 10 more" in caplog.text


def test_the_page_lists_masks_by_predicted_dice_whatever_their_verdict(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    scoring = run_score(quality_run, images, tmp_path / "out")
    controller = QualityController.load(quality_run)
    picture = next((tmp_path / "out" / "thumbnails").iterdir())
    cases = []
    for report, verdict, predicted in zip(
        scoring.batch.reports, ["refer", "accept", "correct", "refer"], [0.888, 0.7, 0.826, None], strict=False
    ):
        ends = {} if predicted is None else {"low": 0.1, "high": 1.0}
        mean = replace(report.mean, predicted_dice=predicted, **ends)
        cases.append(PageCase(replace(report, verdict=verdict, scores=(*report.scores[:-1], mean)), picture))
    path = tmp_path / "page.html"
    write_page(path, cases, {}, scoring.batch, controller.model, RESEARCH, False)
    cells = r'<tr><td class="case">[^<]*</td><td class="\w+">(\w+)</td>(?:<td[^>]*>\w+</td>){2}<td[^>]*>([-.0-9]+)<'
    rows = re.findall(cells, path.read_text())
    assert rows == [("refer", "-"), ("accept", "0.700"), ("correct", "0.826"), ("refer", "0.888")]
    # Each structure has a colour in the legend, and no two have the same.
    legend = dict(re.findall(r'background: (#\w+)"></span>(\w+)', path.read_text()))
    assert list(legend.values()) == ["LV", "MYO", "LA"]


@pytest.mark.parametrize(("shape", "shown"), [((200, 256), (200, 256)), ((300, 520), (100, 174)), ((20, 30), (20, 30))])
def test_pictures_have_the_size_of_their_images_up_to_256_pixels(
    schema: LabelSchema, shape: tuple[int, int], shown: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    png = thumbnail(image, np.zeros(shape, np.uint8), np.ones(shape, np.float32), schema)
    assert imread(io.BytesIO(png)).shape[:2] == (shown[0], 2 * shown[1])


def test_nothing_that_could_be_judged_is_an_error(quality_run: Path, images: Path, tmp_path: Path) -> None:
    for path in (images / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no case could be assessed, .*scores.csv says why of each; the first"):
        run_score(quality_run, images, tmp_path / "out")
    assert [row["reason_code"] for row in rows_of(tmp_path / "out")] == ["input_unusable"] * 6
    log = (tmp_path / "out" / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["verdict"] for line in log] == ["refer"] * 6


def test_masks_of_nnunet_are_found_by_the_name_of_the_case(tmp_path: Path, images: Path) -> None:
    for path in (images / "images").iterdir():
        stem, _, suffix = path.name.partition(".")
        path.rename(path.with_name(f"{stem}_0000.{suffix}"))
    files = find_cases(DataSettings(path=images / "images"))
    masks = find_masks(images / "labels", files)
    assert masks == {path.name.partition(".")[0]: path for path in (images / "labels").iterdir()}
    assert len(masks) == 6
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "no mask has the name of an image"), (tmp_path / "no", "no such")):
        with pytest.raises(DataError, match=message):
            find_masks(folder, files)


def test_a_model_makes_the_masks(quality_run: Path, images: Path, tmp_path: Path) -> None:
    files = find_cases(DataSettings(path=images / "images"))
    out = tmp_path / "out"
    maker = load_model(quality_run, "cpu")
    scoring = score(load_run(quality_run, "cpu"), files, out, ScoreRequest(maker=maker), quiet)
    for report in scoring.batch.reports:
        assert (out / "labels" / f"{report.case_id}.nii.gz").exists()
    masks = find_masks(out / "labels", files)
    given = score(load_run(quality_run, "cpu"), files, tmp_path / "given", ScoreRequest(masks=masks), quiet)
    assert [item.scores for item in given.batch.reports] == [item.scores for item in scoring.batch.reports]
    # The run's own segmenter, which makes and assesses a mask in one inference.
    own = score(load_run(quality_run, "cpu"), files, tmp_path / "own", progress=quiet)
    assert [item.scores for item in own.batch.reports] == [item.scores for item in scoring.batch.reports]
    assert {path.name for path in (tmp_path / "own" / "labels").iterdir()} == {
        path.name for path in (out / "labels").iterdir()
    }


def test_masks_and_maps_that_something_else_wrote_are_left_alone(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    """Those of `predict`, of a person, and of another segmenter that scoring had made masks by."""
    files = find_cases(DataSettings(path=images / "images"))
    model = load_model(quality_run)
    predictions = tmp_path / "predictions"
    predict(model, files, predictions, quiet)
    before = hash_path(predictions)
    for masks, maker in ((None, model), (find_masks(predictions / "labels", files), None)):
        with pytest.raises(DataError, match="is a result of `medfm-rl predict`"):
            score(load_run(quality_run, "cpu"), files, predictions, ScoreRequest(masks=masks, maker=maker), quiet)
    assert hash_path(predictions) == before
    shutil.rmtree(predictions / "cases")
    with pytest.raises(DataError, match="no record says what made it"):
        score(load_run(quality_run, "cpu"), files, predictions, ScoreRequest(maker=model), quiet)
    score(load_run(quality_run, "cpu"), files, tmp_path / "own", ScoreRequest(maker=model), quiet)
    other = copy.deepcopy(model.segmenter)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    with pytest.raises(DataError, match="another model made it"):
        score(load_run(quality_run, "cpu"), files, tmp_path / "own", ScoreRequest(maker=ModelInMemory(other)), quiet)


def test_an_unfinished_run_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a finished run"):
        run_score(tmp_path, images, tmp_path / "out")


def test_calibration_can_judge_the_masks_of_another_segmenter(quality_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(quality_run, copy)
    files = find_cases(DataSettings(path=quality_run.parent / "data"))
    masks = {file.case_id: file.label_path for file in files if file.label_path is not None}
    model = calibrate(load_run(copy, "cpu"), files, CalibrateRequest(Targets(), masks=masks), quiet)
    # Experts' own masks have no error.
    assert model.structures["mean"].error < 0.05
    masks.popitem()
    with pytest.raises(DataError, match="there is no mask of that name to be assessed"):
        calibrate(load_run(copy, "cpu"), files, CalibrateRequest(Targets(), masks=masks), quiet)


def test_calibration_takes_masks_with_the_integers_of_another_tool(quality_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(quality_run, copy)
    files = find_cases(DataSettings(path=quality_run.parent / "data"))
    masks = {}
    for file in files:
        assert file.label_path is not None
        labels, geometry = read_image(file.label_path)
        masks[file.case_id] = tmp_path / f"{file.case_id}.nii.gz"
        write_image(masks[file.case_id], np.array([0, 255, 100, 7], np.uint8)[labels[0].astype(int)], geometry)
    model = calibrate(
        load_run(copy, "cpu"), files, CalibrateRequest(Targets(), masks=masks, labels="LV=255,MYO=100,LA=7"), quiet
    )
    # Experts' own masks have no error.
    assert model.structures["mean"].error < 0.05


def test_calibration_makes_and_judges_a_mask_of_the_run_in_one_inference(
    quality_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(quality_run, copy)
    every = find_cases(DataSettings(path=quality_run.parent / "data"))
    files = list({file.patient_id: file for file in every}.values())[:10]
    segmenter = load_model(copy).segmenter
    masks = {file.case_id: tmp_path / f"{file.case_id}.nii.gz" for file in files}
    for file in files:
        case = file.read()
        write_labels(masks[file.case_id], segmenter.segment(case), case.geometry, segmenter.schema)
    given = calibrate(load_run(copy, "cpu"), files, CalibrateRequest(Targets(), masks=masks), quiet)
    calls: list[str] = []
    predict_logits = TorchModuleAdapter.predict_logits

    def counted(self: TorchModuleAdapter, sample: Sample) -> Tensor:
        calls.append(sample.case_id)
        return predict_logits(self, sample)

    monkeypatch.setattr(TorchModuleAdapter, "predict_logits", counted)
    own = calibrate(load_run(copy, "cpu"), files, CalibrateRequest(Targets()), quiet)
    assert calls == [file.case_id for file in files]
    assert own.structures == given.structures


def test_a_run_calibrates_itself_on_source_patients_that_its_rewards_have_not_seen(
    quality_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(quality_run, copy)
    (copy / "quality.json").unlink()
    data = DataSettings(path=quality_run.parent / "data")
    patients = sorted({file.patient_id for file in find_cases(data)})
    run = RunFolder(copy)
    config = load_config(run.config_file, AdaptConfig)

    def seen_by_rewards(count: int) -> AdaptConfig:
        for member in range(2):
            report = report_on(patients[: count - 1], patients[count - 1 : count])
            report.write(run.reward(0, f"member-{member}").with_suffix(".json"))
        return config.model_copy(update={"source": data})

    assert write_default_quality(load_run(run.path, "cpu"), config, quiet) is None
    assert "without source images" in caplog.text
    assert write_default_quality(load_run(run.path, "cpu"), seen_by_rewards(20), quiet) is None
    assert "4 source patients were held out from the reward networks, and 8 are needed" in caplog.text
    assert not run.quality.exists()
    model = write_default_quality(load_run(run.path, "cpu"), seen_by_rewards(4), quiet)
    assert model is not None
    assert (model.patients, model.target_domain) == (20, False)
    # Three appearances of each of four frames.
    assert model.cases == 20 * 4 * 3
    assert write_default_quality(load_run(run.path, "cpu"), config, quiet) == model
    # What another version wrote is made anew, and kept.
    older = run.quality.read_text().replace(f'"format": {model.format}', '"format": 1')
    run.quality.write_text(older)
    again = write_default_quality(load_run(run.path, "cpu"), seen_by_rewards(4), quiet)
    assert again is not None
    assert again.model_copy(update={"created": model.created}) == model
    assert [path.read_text() for path in run.path.glob("quality-*.json")] == [older]


def test_labelled_cases_are_in_memory_one_at_a_time(
    quality_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images and maps of many volumes would fill it; nothing of them stays in the run."""
    run = tmp_path / "run"
    shutil.copytree(quality_run, run)
    before = {path.name for path in run.iterdir()}
    read, seen = CaseFile.read_labelled, []

    def watched(self: CaseFile, schema: LabelSchema) -> LabelledCase:
        found = read(self, schema)
        seen.append(weakref.ref(found))
        # The one before may be held by the loop until it has this one, but not one more.
        assert sum(each() is not None for each in seen) <= 2
        return found

    monkeypatch.setattr(CaseFile, "read_labelled", watched)
    files = find_cases(DataSettings(path=quality_run.parent / "data"))
    model = calibrate(load_run(run, "cpu"), files, CalibrateRequest(Targets(dice=0.5)), quiet)
    assert len(seen) == 2 * len(files)
    kept = f"quality-{hash_file(quality_run / 'quality.json')[:8]}.json"
    assert {path.name for path in run.iterdir()} - before == {kept}
    monkeypatch.undo()
    assert model.structures == QualityModel.read(quality_run / "quality.json").structures


def test_what_looks_suspicious_is_said_in_a_line(
    quality_run: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = sorted((images / "labels").iterdir())[0]
    drawn, grid = read_image(empty)
    write_image(empty, np.zeros(drawn.shape[1:], dtype=np.uint8), grid)
    files = find_cases(DataSettings(path=images / "images"))
    caplog.clear()
    score(load_run(quality_run), files, tmp_path / "out", ScoreRequest(find_masks(images / "labels", files)), quiet)
    lines = [record.getMessage() for record in caplog.records if record.name == "medfm_rl.workflows.deploy.score"]
    assert lines == [f"images: 1 of 6 masks is empty: {files[0].case_id}"]
