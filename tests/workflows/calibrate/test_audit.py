"""`medfm-rl calibrate --feedback` from end to end: a promise and a month's figures from reviewed audit cases."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm_rl import cli
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import DataError
from medfm_rl.feedback import CorrectedMask, Entry, FeedbackStore, Mask, Verdict
from medfm_rl.quality.promises import Promise, PromiseTarget
from medfm_rl.runs.finished import FinishedRun, load_run
from medfm_rl.runs.learned_feedback import JudgedCase, LearnedFeedback, PreferredCase, Reported, ReviewedCase
from medfm_rl.runs.scores import Scores
from medfm_rl.settings import DataSettings
from medfm_rl.workflows.calibrate.audit import AuditRequest, calibrate_on_audit
from medfm_rl.workflows.deploy.score import ScoreRequest, score

PATIENTS = 12
LOW = PromiseTarget(dice=0.5, alpha=0.3, confidence=0.8)
"""Five patients without a bad mask are enough: .7^5 = .168."""


@pytest.fixture(scope="module")
def scored(quality_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of each of twelve patients, with scores of their true masks by a copy of the run."""
    folder = tmp_path_factory.mktemp("scored")
    shutil.copytree(quality_run, folder / "run")
    for part in ("images", "labels"):
        (folder / part).mkdir()
        for path in sorted((quality_run.parent / "data" / part).glob("*4CH_ED*"))[:PATIENTS]:
            shutil.copy(path, folder / part)
    files = find_cases(DataSettings(path=folder / "images"))
    masks = find_masks(folder / "labels", files)
    score(load_run(folder / "run", "cpu"), files, folder / "scores", ScoreRequest(masks=masks), lambda *_: None)
    # Untrained networks have no opinion; what is predicted does not matter here, but that it is high.
    path = folder / "scores" / "scores.json"
    content = json.loads(path.read_text())
    for number, case in enumerate(content["cases"]):
        case["rules"] = []
        for found in case["scores"]:
            found["predicted_dice"] = 0.9 - 0.01 * number
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(scored: Path, tmp_path: Path) -> Path:
    shutil.copytree(scored, tmp_path / "scored")
    content = json.loads((tmp_path / "scored" / "scores" / "scores.json").read_text())
    for case in content["cases"]:
        case["mask_file"] = str(tmp_path / "scored" / "labels" / Path(case["mask_file"]).name)
    (tmp_path / "scored" / "scores" / "scores.json").write_text(json.dumps(content))
    return tmp_path / "scored"


def review(folder: Path, run: FinishedRun, change: Callable[[int, CaseFile, Mask], tuple[Entry, Mask] | None]) -> Path:
    """A store with what a reviewer says of each case: `change`, or that the mask is right."""
    schema = run.preprocessing.schema
    entries: list[Entry] = []
    masks = []
    for number, file in enumerate(find_cases(DataSettings(path=folder / "images"))):
        case = file.read()
        path = find_masks(folder / "labels", [file])[file.case_id]
        shown = Mask.of(read_labels(path, schema, case.shape, case.geometry), schema.names, case.geometry)
        accept = Verdict(
            reviewer="r1",
            patient=file.patient_id,
            case=file.case_id,
            image_sha256=file.hash_images(),
            mask_sha256=shown.sha256,
            decision="accept",
            drawn="audit",
        )
        entry, mask = change(number, file, shown) or (accept, shown)
        entries.append(entry)
        masks += [mask, shown]
    with FeedbackStore.create(folder / "feedback.sqlite") as store:
        store.add(entries, masks)
    return folder / "feedback.sqlite"


def request(folder: Path, store: Path, target: PromiseTarget = LOW) -> AuditRequest:
    files = find_cases(DataSettings(path=folder / "images"))
    return AuditRequest(store, files, folder / "scores" / "scores.json", target=target)


def learned(reviewed: Sequence[ReviewedCase] = (), **others: Any) -> LearnedFeedback:
    """What a run learned from a store."""
    return LearnedFeedback("store", "0" * 64, tuple(reviewed), others.pop("reported", ()), (), 0, **others)


def bad(file: CaseFile, shown: Mask, **changes: object) -> tuple[Entry, Mask]:
    """A reviewer finds all structures elsewhere: the Dice of the shown mask is near 0."""
    labels = np.roll(shown.labels, 16, axis=0)
    right = Mask.of(labels, shown.names, shown.geometry)
    entry = CorrectedMask(
        reviewer="r1",
        patient=file.patient_id,
        case=file.case_id,
        image_sha256=file.hash_images(),
        mask_sha256=right.sha256,
        replaces_sha256=shown.sha256,
        changed=tuple(shown.names[1:]),
        drawn="audit",
    )
    return replace(entry, **changes), right


def test_reviewed_audit_patients_prove_a_promise_with_its_evidence(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = load_run(folder / "run", "cpu")
    store = review(folder, run, lambda *_: None)
    result = calibrate_on_audit(run, request(folder, store))
    # The lowest prediction among them, rounded down to the grid of thresholds.
    assert result.promise.threshold == pytest.approx(0.79)
    assert (result.promise.accepted_patients, result.promise.bad_masks) == (PATIENTS, 0)
    assert Promise.read(folder / "run" / "promise.json") == result.promise
    evidence = result.promise.evidence
    assert evidence is not None
    assert (evidence.reviewers, evidence.looks, len(evidence.feedback_hash)) == (("r1",), 0, 64)
    assert "have another review" in caplog.text
    month = json.loads((folder / "scores" / "month.json").read_text())
    assert month["mean_dice"]["value"] == pytest.approx(1)
    assert month["failure_rate"]["low"] == 0 < month["failure_rate"]["high"]
    again = calibrate_on_audit(run, request(folder, store)).promise.evidence
    assert again is not None
    assert again.looks == 1


def test_masks_that_reviewers_found_bad_are_above_no_threshold(folder: Path) -> None:
    run = load_run(folder / "run", "cpu")
    # The five that are predicted lowest are bad.
    store = review(folder, run, lambda number, file, shown: bad(file, shown) if number >= 7 else None)
    promise = calibrate_on_audit(run, request(folder, store)).promise
    assert promise.threshold is not None
    assert 0.83 < promise.threshold <= 0.845
    assert (promise.accepted_masks, promise.bad_masks) == (7, 0)


def test_cases_that_were_not_drawn_and_patients_who_taught_are_left_out_by_name(folder: Path) -> None:
    run = load_run(folder / "run", "cpu")
    files = find_cases(DataSettings(path=folder / "images"))
    store = review(
        folder, run, lambda number, file, shown: bad(file, shown, drawn="informative") if number == 0 else None
    )
    learned([ReviewedCase(files[1].case_id, files[1].patient_id, ("a",), 1.0)]).write(folder / "run" / "feedback.json")
    promise = calibrate_on_audit(run, request(folder, store)).promise
    assert promise.patients == PATIENTS - 2
    assert promise.evidence is not None
    assert promise.evidence.left_out == {
        files[0].case_id: "it was not drawn at random (drawn: informative)",
        files[1].case_id: f"patient {files[1].patient_id} taught the run",
    }


def test_whoever_taught_in_whatever_way_carries_no_promise(folder: Path) -> None:
    run = load_run(folder / "run", "cpu")
    store = review(folder, run, lambda *_: None)
    names = [file.patient_id for file in find_cases(DataSettings(path=folder / "images"))[:4]]
    learned(
        reported=(Reported(names[0], None, "EF", None, 55.0, None),),
        judged=(JudgedCase("c", names[1], "a", None, "grade", 0.5, 1.0),),
        preferred=(PreferredCase("c", names[2], "a", "b", None, 1.0),),
        taught_before=(names[3],),
    ).write(folder / "run" / "feedback.json")
    result = calibrate_on_audit(run, request(folder, store))
    assert result.promise.patients == PATIENTS - 4
    assert result.promise.evidence is not None
    assert set(result.promise.evidence.left_out.values()) == {f"patient {name} taught the run" for name in names}


def test_an_audit_without_the_masks_that_nobody_corrected_is_refused(folder: Path) -> None:
    run = load_run(folder / "run", "cpu")

    def reject(number: int, file: CaseFile, shown: Mask) -> tuple[Entry, Mask] | None:
        if number:
            return None
        entry = Verdict(
            reviewer="r1",
            patient=file.patient_id,
            case=file.case_id,
            image_sha256=file.hash_images(),
            mask_sha256=shown.sha256,
            decision="reject",
            drawn="audit",
        )
        return entry, shown

    store = review(folder, run, reject)
    with pytest.raises(DataError, match="1 cases that were drawn for audit have neither"):
        calibrate_on_audit(run, request(folder, store))


def test_a_store_without_an_audit_and_images_of_other_cases_are_told_apart(folder: Path) -> None:
    run = load_run(folder / "run", "cpu")

    def informative(number: int, file: CaseFile, shown: Mask) -> tuple[Entry, Mask]:
        return bad(file, shown, drawn="informative")

    asked = request(folder, review(folder, run, informative))
    with pytest.raises(DataError, match=r"none of the 12 cases of .* was drawn for audit and reviewed .*not drawn at"):
        calibrate_on_audit(run, asked)
    others = [replace(file, case_id=f"other {file.case_id}") for file in asked.files]
    with pytest.raises(
        DataError, match=r"scores\.json: none of the 12 images given is of one of its 12 cases.*--images"
    ):
        calibrate_on_audit(run, replace(asked, files=others))


def test_the_command_proves_and_says_what_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = review(folder, load_run(folder / "run", "cpu"), lambda *_: None)

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["medfm-rl", "calibrate", str(folder / "run"), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out + captured.err

    images, scores = ("--images", folder / "images"), ("--scores", folder / "scores" / "scores.json")
    code, said = call("--feedback", store, *images, *scores, "--dice", 0.5)
    assert code == 0, said
    assert "Not promised: at most 10% of the accepted masks" in said
    assert "review 10 more, drawn at random" in said
    assert "All that was scored, mean Dice: 1.000" in said
    code, said = call("--feedback", store)
    assert (code, "--feedback needs --images" in said) == (2, True)
    code, said = call()
    assert (code, "give either --labelled" in said) == (2, True)
    code, said = call("--labelled", folder, *scores)
    assert (code, "they go with --feedback" in said) == (2, True)


def test_the_same_patients_move_later_predictions_and_promises_stay_about_the_unmoved(folder: Path) -> None:
    run = load_run(folder / "run", "cpu")
    store = review(folder, run, lambda *_: None)
    result = calibrate_on_audit(run, request(folder, store))
    assert result.errors is not None
    assert result.errors.count == PATIENTS
    # Masks that are right throughout were predicted .79 to .9.
    assert all(0.08 < shift < 0.22 for shift in result.errors.shifts.values())
    files = find_cases(DataSettings(path=folder / "images"))
    masks = find_masks(folder / "labels", files)
    given = ScoreRequest(masks=masks)
    scoring = score(load_run(folder / "run", "cpu"), files, folder / "again", given, lambda *_: None)
    assert f"{PATIENTS} reviewed patients" in scoring.batch.meaning
    assert scoring.batch.guarantee == "expected"
    content = json.loads((folder / "again" / "scores.json").read_text())
    assert content["reviews"]["patients"] == PATIENTS
    line = json.loads((folder / "again" / "audit.jsonl").read_text().splitlines()[-1])
    assert line["reviews"]["feedback_hash"] == result.errors.feedback_hash
    cases = content["cases"]
    for case in cases:
        before, after = case["unmoved"][0], case["scores"][0]
        shift = result.errors.shifts[after["structure"]]
        assert after["predicted_dice"] == pytest.approx(min(1.0, before + shift))
        assert after["low"] <= after["predicted_dice"] <= after["high"]
    read = Scores.read(folder / "again" / "scores.json").cases.values()
    assert [case.as_calibrated["mean"] for case in read] == [case["unmoved"][-1] for case in cases]
    # What was predicted of a single mask, by the service or in Python, is moved too.
    controller, case = load_run(folder / "run", "cpu").controller(), files[0].read()
    labels = read_labels(masks[case.case_id], controller.schema, case.shape, case.geometry)
    assert controller.assess(case, labels).unmoved
    # Another quality model knows nothing of these errors.
    shutil.rmtree(folder / "again")
    (folder / "run" / "quality.json").write_text((folder / "run" / "quality.json").read_text() + "\n")
    plain = score(load_run(folder / "run", "cpu"), files, folder / "again", given, lambda *_: None)
    assert not any(report.unmoved for report in plain.batch.reports)


def test_too_few_reviewed_patients_move_nothing_and_take_back_what_was_moved_before(folder: Path) -> None:
    run = load_run(folder / "run", "cpu")
    store = review(folder, run, lambda *_: None)
    calibrate_on_audit(run, request(folder, store))
    assert run.folder.reviewed_errors.exists()
    few = find_cases(DataSettings(path=folder / "images"))[:8]
    result = calibrate_on_audit(run, replace(request(folder, store), files=few))
    assert result.errors is None
    assert result.no_errors is not None
    assert "8 reviewed patients" in result.no_errors
    assert not run.folder.reviewed_errors.exists()
