"""New images and their boxes through `calibrate`, `score` and `correct` of a promptable segmenter's run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from support.promptable_models import TinyOverTime, TinyPromptable, tiny_kind, write_tiny

import medfm_rl
from medfm_rl import cli
from medfm_rl.adapters.clips import segment_frames
from medfm_rl.adapters.kinds import KINDS
from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.files import hash_folder
from medfm_rl.data.images import read_image
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.data.ultrasound.phantom import simulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.model import Targets
from medfm_rl.runs.case_records import CaseRecords
from medfm_rl.runs.finished import load_model, load_run
from medfm_rl.settings import AdaptConfig, CorrectionSettings, DataSettings, FixedPrompts
from medfm_rl.tracking.quality_model import save_quality_model
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.calibrate.quality import CalibrateRequest, calibrate
from medfm_rl.workflows.check.check import CheckRequest
from medfm_rl.workflows.deploy.correct import CorrectRequest, correct
from medfm_rl.workflows.deploy.predict import predict
from medfm_rl.workflows.deploy.score import ScoreRequest, score
from medfm_rl.workflows.evaluate.evaluate import evaluate
from medfm_rl.workflows.propose.assessing import CaseAssessor

REWARD = {"network": {"channels": (4, 8), "residual_units": 0}, "steps": 2, "validate_every": 2, "ensemble": 1}
SETTINGS = CorrectionSettings(steps=2, smoothness=1)


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture(autouse=True)
def _tiny_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, TinyPromptable.kind, tiny_kind())


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and masks of patients that no run has boxes of."""
    folder = tmp_path_factory.mktemp("new")
    simulate_dataset(folder, vendor("handheld"), 10, seed=0, size=(32, 32), first=201)
    return folder


@pytest.fixture(scope="module")
def run(simulated_echo: Path, new: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose boxes come from masks of its own images, with a quality model of the new ones."""
    folder = tmp_path_factory.mktemp("promptable")
    for domain in ("a", "b"):
        shutil.copytree(simulated_echo / domain / "labels", folder / "masks", dirs_exist_ok=True)
    prompts = {"kind": "from_masks", "path": "../masks"}
    segmenter = write_tiny(folder / "tiny", prompts, {"LV": 1, "MYO": 2, "LA": 3})
    values = {
        "segmenter": {"kind": "litemedsam", "folder": segmenter},
        "target": {"path": simulated_echo / "b"},
        "source": {"path": simulated_echo / "a"},
        "output": folder / "run",
        "fine_tuning": {"steps": 2, "batch_size": 2},
        "collect": {"source_images": 8, "target_images": 8, "actions_per_image": 3, "shard_images": 8},
        "shape_prior": {"epochs": 1, "latent": 4},
        "reward": REWARD,
        "ppo": {"updates": 1, "n_envs": 2, "n_epochs": 1},
        "tracking": {"uri": None},
        "device": "cpu",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, TinyPromptable.kind, tiny_kind())
        finished = adapt(AdaptConfig.model_validate(values), False, quiet)
        files = find_cases(DataSettings(path=new))
        calibrate(load_run(finished.path, "cpu", new / "labels"), files, CalibrateRequest(Targets(dice=0.5)), quiet)
    return finished.path


@pytest.fixture
def files(new: Path) -> list[CaseFile]:
    return find_cases(DataSettings(path=new / "images"))[:2]


def test_the_quality_of_masks_of_new_images_is_judged_without_their_boxes(run: Path) -> None:
    segmenter = QualityController.load(run).segmenter
    assert isinstance(segmenter, TinyPromptable)
    assert segmenter.description.prompts == FixedPrompts(kind="fixed", boxes={})


def test_masks_are_judged_without_boxes(run: Path, new: Path, files: list[CaseFile], tmp_path: Path) -> None:
    scoring = score(load_run(run, "cpu"), files, tmp_path, ScoreRequest(masks=find_masks(new / "labels", files)), quiet)
    assert scoring.problems == {}
    assert len(scoring.batch.reports) == 2


def test_the_boxes_of_a_call_make_the_masks_and_other_boxes_make_them_anew(
    run: Path, new: Path, files: list[CaseFile], tmp_path: Path
) -> None:
    case = files[0].read()
    whole = {"LV": [0, 0, 31, 31], "MYO": [0, 0, 31, 31], "LA": [0, 0, 31, 31]}
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({file.case_id: whole for file in files}))
    written = tmp_path / "scores" / "labels" / f"{case.case_id}.nii.gz"
    found = []
    for prompts in (new / "labels", boxes):
        segmenter = load_model(run, "cpu", prompts).segmenter
        TinyPromptable.encoded.clear()
        score(load_run(run, "cpu", prompts), files, tmp_path / "scores", progress=quiet)
        # One pass of the encoder makes a mask and is asked about it.
        assert TinyPromptable.encoded == [1] * len(files)
        mask = read_labels(written, segmenter.schema, case.shape, case.geometry)
        assert (mask == segmenter.segment(case)).all()
        found.append(mask)
    assert (found[0] != found[1]).any()


def test_the_boxes_of_a_call_are_those_that_are_corrected_with(
    run: Path, new: Path, files: list[CaseFile], tmp_path: Path
) -> None:
    out = tmp_path / "corrected"
    corrections = correct(load_run(run, "cpu", new / "labels"), files, out, CorrectRequest(SETTINGS, every=True), quiet)
    assert len(corrections.records) == 2
    assert corrections.problems == {}
    both = correct(load_run(run, "cpu", new / "labels"), files, tmp_path / "both", CorrectRequest(SETTINGS), quiet)
    assert len(list((tmp_path / "both" / "labels").iterdir())) == 2, both


def test_images_without_boxes_are_named(run: Path, files: list[CaseFile], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"there is no mask of case {files[0].case_id}"):
        correct(load_run(run, "cpu"), files, tmp_path, CorrectRequest(SETTINGS, every=True), quiet)


def test_boxes_for_a_segmenter_that_takes_none_are_refused(
    quality_run: Path, new: Path, files: list[CaseFile], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="takes no boxes"):
        correct(
            load_run(quality_run, "cpu", new / "labels"), files, tmp_path, CorrectRequest(SETTINGS, every=True), quiet
        )


def test_the_command_line_takes_boxes(
    run: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["score", str(run), "--images", str(new / "images"), "--prompts", str(new / "labels")]

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["medfm-rl", *common, "--device", "cpu", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    assert call("--masks", str(new / "labels"), "--out", str(tmp_path / "no")) == 2
    assert "--prompts are for a segmenter that makes the masks" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert call("--model", str(run), "--out", str(tmp_path / "yes")) == 0
    assert (tmp_path / "yes" / "scores.csv").exists()


STRUCTURES = {"LV": 1, "MYO": 2, "LA": 3}


def compare(monkeypatch: pytest.MonkeyPatch, model: Path, against: Path, data: Path, prompts: Path, out: Path) -> int:
    arguments = ["evaluate", model, data, "--against", against, "--prompts", prompts, "--out", out, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_two_promptable_models_are_compared_on_the_same_boxes(
    new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One network in two folders, with boxes of their own: the boxes of the call make the two the same."""
    corner = {"kind": "fixed", "boxes": {"LV": [0, 0, 0.2, 0.2]}}
    first = write_tiny(tmp_path / "first", {"kind": "from_masks", "path": "nowhere"}, STRUCTURES)
    second = write_tiny(tmp_path / "second", corner, STRUCTURES)
    assert compare(monkeypatch, first, second, new, new / "labels", tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    before, after = summary["models"].values()
    assert before == after


def test_boxes_go_to_the_one_of_two_models_that_takes_them(
    quality_run: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = write_tiny(tmp_path / "tiny", {"kind": "from_masks", "path": "nowhere"}, STRUCTURES)
    plain = quality_run / "model"
    assert compare(monkeypatch, plain, tiny, new, new / "labels", tmp_path / "a") == 0
    assert compare(monkeypatch, tiny, plain, new, new / "labels", tmp_path / "b") == 0
    assert compare(monkeypatch, plain, plain, new, new / "labels", tmp_path / "c") == 2
    assert "takes no boxes; leave out --prompts" in capsys.readouterr().err


def test_masks_that_would_give_two_models_boxes_of_other_structures_are_refused(
    new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = {"kind": "fixed", "boxes": {}}
    first = write_tiny(tmp_path / "first", fixed, STRUCTURES)
    second = write_tiny(tmp_path / "second", fixed, {"LV": 1, "MYO": 3, "LA": 2})
    assert compare(monkeypatch, first, second, new, new / "labels", tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "cannot be shared by both models" in shown
    assert "give the boxes as a CSV or JSON file" in shown


def test_predicting_with_other_boxes_makes_the_masks_anew(new: Path, files: list[CaseFile], tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "tiny", {"kind": "fixed", "boxes": {"LV": [0, 0, 0.2, 0.2]}}, STRUCTURES)
    predict(load_model(tiny, "cpu"), files, tmp_path / "out", quiet)
    predict(load_model(tiny, "cpu", new / "labels"), files, tmp_path / "out", quiet)
    predict(load_model(tiny, "cpu", new / "labels"), files, tmp_path / "alone", quiet)
    assert hash_folder(tmp_path / "out" / "labels") == hash_folder(tmp_path / "alone" / "labels")


@pytest.mark.filterwarnings("ignore")
def test_a_served_model_judges_masks_of_another_tools_segmenter(run: Path, new: Path, tmp_path: Path) -> None:
    import pandas
    from mlflow import pyfunc

    save_quality_model(run, tmp_path / "served")
    assert "medsam" in (tmp_path / "served" / "requirements.txt").read_text()
    files = find_cases(DataSettings(path=new))[:2]
    table = pandas.DataFrame([{"image": str(file.image_paths[0]), "mask": str(file.label_path)} for file in files])
    found = pyfunc.load_model(str(tmp_path / "served")).predict(table)
    controller = load_run(run, "cpu").controller()
    for predicted, file in zip(found["predicted_dice"], files, strict=True):
        labelled = file.read_labelled(controller.schema)
        expected = controller.assess(labelled.case, labelled.ground_truth)
        assert predicted == pytest.approx(expected.mean.predicted_dice)


@pytest.fixture
def over_time(new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[CaseFile], Path]:
    """Frames of a clip, of which one has a mask for its boxes, and a segmenter that makes masks of clips as a whole."""
    monkeypatch.setitem(KINDS, TinyPromptable.kind, tiny_kind(TinyOverTime))
    names = sorted(path.name for path in (new / "images").iterdir())[:3]
    geometry = read_image(new / "images" / names[0])[1].plane
    for part in ("images", "labels"):
        frames = np.stack([read_image(new / part / name)[0][0] for name in names])
        write_sequence(tmp_path / "clips" / part / "p1_4CH.nii.gz", frames, geometry, None)
    (tmp_path / "prompts").mkdir()
    shutil.copy(new / "labels" / names[1], tmp_path / "prompts" / "p1_4CH_frame001.nii.gz")
    return find_cases(DataSettings(path=tmp_path / "clips")), tmp_path / "prompts"


def masks_in(folder: Path, files: list[CaseFile], model: Path, prompts: Path) -> tuple[np.ndarray, np.ndarray]:
    """Masks of frames in a folder, and those that the segmenter makes of the clip."""
    segmenter = load_model(model, "cpu", prompts).segmenter
    clip = files[0].read_clip()
    written = [
        read_labels(folder / f"{file.case_id}.nii.gz", segmenter.schema, clip.frames.shape[2:], clip.geometry)
        for file in files
    ]
    return np.stack(written), segment_frames(segmenter, clip)


def assert_masks_of_the_clip(folder: Path, files: list[CaseFile], model: Path, prompts: Path) -> None:
    written, expected = masks_in(folder, files, model, prompts)
    assert np.array_equal(written, expected)


@pytest.mark.parametrize("by_model", [False, True], ids=["own", "--model"])
def test_frames_are_assessed_with_the_masks_of_their_clip(
    run: Path, over_time: tuple[list[CaseFile], Path], tmp_path: Path, by_model: bool
) -> None:
    files, prompts = over_time
    request = ScoreRequest(maker=load_model(run, "cpu", prompts)) if by_model else ScoreRequest()
    judge = load_run(run, "cpu", None if by_model else prompts)
    scoring = score(judge, files, tmp_path / "out", request, quiet)
    assert scoring.problems == {}
    written, expected = masks_in(tmp_path / "out" / "labels", files, run, prompts)
    assert np.array_equal(written, expected)
    assert (expected[0] != expected[2]).any()
    TinyPromptable.encoded.clear()
    again = score(judge, files, tmp_path / "out", request, quiet)
    assert [report.case_id for report in again.batch.reports] == [file.case_id for file in files]
    assert TinyPromptable.encoded == []


def test_boxes_of_another_frame_make_the_masks_of_a_clip_anew(
    run: Path, over_time: tuple[list[CaseFile], Path], tmp_path: Path
) -> None:
    files, prompts = over_time
    score(load_run(run, "cpu", prompts), files, tmp_path / "out", ScoreRequest(), quiet)
    (prompts / "p1_4CH_frame001.nii.gz").rename(prompts / "p1_4CH_frame002.nii.gz")
    score(load_run(run, "cpu", prompts), files, tmp_path / "out", ScoreRequest(), quiet)
    assert_masks_of_the_clip(tmp_path / "out" / "labels", files, run, prompts)


@pytest.mark.parametrize("method", ["tta", "neighbours"])
def test_frames_are_corrected_from_the_masks_of_their_clip(
    run: Path, over_time: tuple[list[CaseFile], Path], tmp_path: Path, method: str
) -> None:
    files, prompts = over_time
    settings = CorrectionSettings.model_validate({"method": method, "views": 2, "seconds": 600})
    request = CorrectRequest(settings, every=True, propose_only=True)
    found = correct(load_run(run, "cpu", prompts), files, tmp_path / "out", request, quiet)
    assert found.problems == {}
    assert len(found.records) == len(files)
    assert_masks_of_the_clip(tmp_path / "out" / "labels", files, run, prompts)


def test_frames_that_are_not_corrected_keep_the_masks_of_their_clip(
    run: Path, over_time: tuple[list[CaseFile], Path], tmp_path: Path
) -> None:
    files, prompts = over_time
    finished = load_run(run, "cpu", prompts)
    score(finished, files, tmp_path / "scores", ScoreRequest(), quiet)
    table = tmp_path / "scores" / "scores.json"
    content = json.loads(table.read_text(encoding="utf-8"))
    content["cases"] = [{**case, "verdict": "accept"} for case in content["cases"]]
    table.write_text(json.dumps(content), encoding="utf-8")
    correct(finished, files, tmp_path / "out", CorrectRequest(SETTINGS, scores=table), quiet)
    assert_masks_of_the_clip(tmp_path / "out" / "labels", files, run, prompts)


def test_evaluation_and_proposals_are_of_the_masks_of_the_clip(
    run: Path, over_time: tuple[list[CaseFile], Path], tmp_path: Path
) -> None:
    files, prompts = over_time
    finished = load_run(run, "cpu", prompts)
    measured = evaluate(finished, files, tmp_path / "evaluated")
    assert not measured.evaluation.problems
    of_clip = segment_frames(finished.segmenter, files[0].read_clip())
    for file, mask in zip(files, of_clip, strict=True):
        truth = file.read_labelled(finished.segmenter.schema).ground_truth
        dice = 2 * ((mask == 1) & (truth == 1)).sum() / ((mask == 1).sum() + (truth == 1).sum())
        (row,) = [row for row in measured.evaluation.scores if (row.case_id, row.structure) == (file.case_id, "LV")]
        assert row.dice == pytest.approx(dice, abs=1e-6)
    assessor = CaseAssessor(finished, CaseRecords(tmp_path / "proposed", "propose"), None)
    assert set(assessor.rate(files, quiet)) == {file.case_id for file in files}
    assert np.array_equal(masks_in(tmp_path / "proposed" / "labels", files, run, prompts)[0], of_clip)


def test_frames_alone_need_boxes_of_their_own(
    run: Path, over_time: tuple[list[CaseFile], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, prompts = over_time
    monkeypatch.setitem(KINDS, TinyPromptable.kind, tiny_kind())
    scoring = score(load_run(run, "cpu", prompts), files, tmp_path / "out", ScoreRequest(), quiet)
    assert set(scoring.problems) == {"p1_4CH_frame000", "p1_4CH_frame002"}
    assert "there is no mask of case p1_4CH_frame000" in scoring.problems["p1_4CH_frame000"]


def test_a_check_wants_boxes_of_one_frame_of_a_clip_that_is_segmented_as_a_whole(
    run: Path, over_time: tuple[list[CaseFile], Path], tmp_path: Path
) -> None:
    _, prompts = over_time
    data = DataSettings(path=tmp_path / "clips")
    assert not medfm_rl.check(data, CheckRequest(model=load_model(run, "cpu", prompts))).refused
    next(prompts.iterdir()).unlink()
    refused = medfm_rl.check(data, CheckRequest(model=load_model(run, "cpu", prompts))).refused
    assert list(refused) == ["p1_4CH_frame000"]
    assert "nothing on any of the 3 frames p1_4CH_frame000 to p1_4CH_frame002" in refused["p1_4CH_frame000"][0]
