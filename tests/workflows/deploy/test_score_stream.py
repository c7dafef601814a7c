"""Scoring study by study: `medfm-rl score --stream`."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from medfm_rl import cli
from medfm_rl.data.files import hash_file
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import DataError
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.promises import Grounds, PromiseTarget, ReviewedMask, prove
from medfm_rl.runs.finished import FinishedRun, load_run
from medfm_rl.runs.stream_history import StreamIdentity, StudyCase, read_stream
from medfm_rl.runs.stream_state import add_reviews, add_studies
from medfm_rl.settings import CLINIC, RESEARCH, DataSettings, SitePolicy
from medfm_rl.workflows.deploy.score import ScoreRequest, score
from medfm_rl.workflows.deploy.scoring import Scoring
from medfm_rl.workflows.deploy.stream_scoring import StreamRequest
from medfm_rl.workflows.streams import stream_scores


@pytest.fixture
def run(quality_run: Path, tmp_path: Path) -> FinishedRun:
    """A copy of the run, into which a promise can be put, beside the masks."""
    shutil.copytree(quality_run, tmp_path / "run")
    shutil.copytree(quality_run.parent / "data" / "labels", tmp_path / "labels")
    return load_run(tmp_path / "run", "cpu")


@pytest.fixture
def files(quality_run: Path) -> list[CaseFile]:
    """One of each patient."""
    files = find_cases(DataSettings(path=quality_run.parent / "data"))
    return list({file.patient_id: file for file in files}.values())


def scored(
    run: FinishedRun, files: list[CaseFile], out: Path, stream: StreamRequest, policy: SitePolicy = RESEARCH
) -> Scoring:
    masks = find_masks(run.path.parent / "labels", files)
    return score(run, files, out, ScoreRequest(masks=masks, policy=policy, stream=stream))


def sound(run: FinishedRun, files: list[CaseFile], folder: Path) -> list[CaseFile]:
    """A case whose verdict rests on its predicted Dice and whose mask meets every rule."""
    for report in scored(run, files, folder / "sound", StreamRequest(folder / "s.jsonl", "ge-1")).batch.reports:
        if all(rule.passed for rule in report.rules) and report.reason_code == "predicted_dice":
            return [file for file in files if file.case_id == report.case_id]
    raise AssertionError("no mask of the fixture meets every rule")


def lived(run: FinishedRun, one: list[CaseFile], folder: Path, studies: int = 40) -> StreamRequest:
    """A stream of studies like this one, and a promise of its first 24 for every mask that meets the rules."""
    request, quality = StreamRequest(folder / "ge.jsonl", "ge-1", "apical", "north"), hash_file(run.folder.quality)
    (like,) = scored(run, one, folder / "known", replace(request, path=folder / "other.jsonl")).batch.reports
    cases = [
        StudyCase(
            f"d{n}",
            f"m{n}",
            "accept",
            like.mean.predicted_dice,
            like.mean.mean_reward + 0.001 * ((5 * n) % 11 - 5),
            like.shift_distance + 0.001 * ((7 * n) % 13 - 6),
            (),
        )
        for n in range(studies)
    ]
    identity = StreamIdentity("ge-1", "apical", "north", quality, 0, 0.05)
    add_studies(request.path, identity, {f"q{n}": [case] for n, case in enumerate(cases)})
    evidence = Grounds(
        quality_hash=quality,
        scores_hash="s",
        feedback="f",
        feedback_hash="h",
        reviewers=("r1", "r2"),
        masks=tuple(case.key for case in cases[:24]),
    )
    masks = [ReviewedMask(f"d{n}", f"q{n}", 0.0, True, 0.9) for n in range(24)]
    promise = prove(masks, PromiseTarget(dice=0.5))
    promise.model_copy(update={"evidence": evidence}).write(run.folder.promise)
    return request


def test_studies_are_added_as_they_are_scored_and_never_twice(
    run: FinishedRun, files: list[CaseFile], tmp_path: Path
) -> None:
    request, out = StreamRequest(tmp_path / "ge.jsonl", "ge-1", "apical", "north"), tmp_path / "out"
    for number, file in enumerate(files[:3], 1):
        scoring = scored(run, [file], out, request, SitePolicy(audit_share=1.0))
        assert scoring.place is not None
        assert (scoring.place.studies, scoring.place.added, scoring.place.repeated) == (number, 1, 0)
        assert scoring.batch.reports[0].guarantee == "expected"
        assert f"{number} tested studies" in scoring.batch.meaning
    assert [study.patient for study in read_stream(request.path).studies] == [file.patient_id for file in files[:3]]
    # Every accepted mask was to be drawn, and the share of a stream stays that of its beginning.
    again = scored(run, [files[2]], out, request).place
    assert again is not None
    assert (again.studies, again.added, again.repeated) == (3, 0, 1)
    with (out / "scores.csv").open(encoding="utf-8") as table:
        row = next(csv.DictReader(table))
    accepted = row["verdict"] == "accept"
    assert (row["stream"], row["audit"], bool(again.drawn)) == (
        str(request.path),
        "drawn" if accepted else "",
        accepted,
    )
    content = json.loads((out / "scores.json").read_text())
    assert (content["stream"], content["cases"][0]["audit"]) == (str(request.path), accepted)
    # What the image looks like is in the stream, and in what another stream can be made of.
    look = read_stream(request.path).studies[2].look
    assert len(look) == 79
    ((other,), _) = stream_scores(tmp_path / "other.jsonl", out / "scores.json", "ge-1")
    assert other.look == look
    log = [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]
    assert {line["stream"] for line in log} == {str(request.path)}


def test_a_single_study_is_proven_while_the_stream_is_what_its_reviewed_patients_are_of(
    run: FinishedRun, files: list[CaseFile], tmp_path: Path
) -> None:
    one = sound(run, files, tmp_path)
    request = lived(run, one, tmp_path)
    scoring = scored(run, one, tmp_path / "out", request, CLINIC)
    (report,) = scoring.batch.reports
    found = (report.verdict, report.reason_code, report.guarantee, report.action)
    assert found == ("accept", "promise", "proven", "use")
    assert (scoring.batch.state, scoring.batch.patients) == ("holds", 1)
    assert "no change was found in the 41 tested" in report.evidence
    strict = scored(run, one, tmp_path / "out", request, SitePolicy(limits={"mean": 0.6})).batch.reports[0]
    assert (strict.guarantee, "--dice 0.6" in strict.evidence) == ("expected", True)


def test_reviews_that_contradict_the_promise_suspend_the_next_study(
    run: FinishedRun, files: list[CaseFile], tmp_path: Path
) -> None:
    one = sound(run, files, tmp_path)
    request = lived(run, one, tmp_path)
    add_reviews(request.path, dict.fromkeys(list(read_stream(request.path).cases)[:4], 0.1))
    (report,) = scored(run, one, tmp_path / "out", request, CLINIC).batch.reports
    assert (report.guarantee, "worse than promised" in report.evidence) == ("suspended", True)
    assert report.action != "use"


def test_an_alarm_suspends_what_comes_after_it(run: FinishedRun, files: list[CaseFile], tmp_path: Path) -> None:
    one = sound(run, files, tmp_path)
    request = lived(run, one, tmp_path)
    odd = {f"z{n}": [StudyCase(f"z{n}", f"z{n}", "refer", None, 0.1, 50.0 + n, ())] for n in range(15)}
    add_studies(request.path, read_stream(request.path).identity, odd)
    scoring = scored(run, one, tmp_path / "out", request)
    assert (scoring.batch.state, scoring.batch.reports[0].guarantee) == ("suspended", "suspended")
    assert "has changed, probably since number 41" in scoring.batch.meaning
    assert [promise.status for promise in scoring.batch.promises] == ["suspended", "suspended"]


def test_a_stream_of_another_scanner_is_refused_before_anything_is_assessed(
    run: FinishedRun, files: list[CaseFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = StreamRequest(tmp_path / "ge.jsonl", "ge-1")
    scored(run, files[:1], tmp_path / "out", request)

    def assess(*_: object) -> None:
        raise AssertionError("nothing is to be assessed")

    monkeypatch.setattr(QualityController, "assess_batch", assess)
    with pytest.raises(DataError, match="another stream"):
        scored(run, files[1:2], tmp_path / "new", replace(request, scanner="ge-2"))


def test_what_a_stream_is_of_goes_with_a_stream(
    run: FinishedRun, files: list[CaseFile], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["score", run.path, "--images", files[0].image_paths[0].parent, "--out", "o", "--scanner", "ge-1"]
    monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, arguments), "--masks", str(run.path.parent / "labels")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "--scanner says what a stream is of: it goes with --stream" in capsys.readouterr().err
