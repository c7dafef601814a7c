from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.errors import ConfigError, DataError, ModelError
from medfm_rl.feedback import CorrectedMask, FeedbackStore, Mask, Measurement
from medfm_rl.feedback.entries import Drawn
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.runs.finished import load_run
from medfm_rl.runs.learned_feedback import LearnedFeedback, Reported, ReviewedCase
from medfm_rl.settings import DataSettings
from medfm_rl.workflows.deploy.score import score
from medfm_rl.workflows.feedback import FeedbackRequest, add_feedback
from medfm_rl.workflows.propose.propose import propose
from medfm_rl.workflows.propose.proposed import Proposals, ProposedPatient
from medfm_rl.workflows.propose.request import ProposeRequest


@pytest.fixture
def images(quality_run: Path, tmp_path: Path) -> Path:
    """Two images of each of eight patients."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, path in enumerate(sorted((quality_run.parent / "data" / "images").iterdir())[:16]):
        shutil.copy(path, folder / f"p{number // 2}_{number % 2}.nii.gz")
    return folder


def run_propose(run: Path, images: Path, out: Path, **options: object) -> Proposals:
    files = find_cases(DataSettings(path=images))
    values = {"budget": 3, "audit": 2, **options}
    return propose(load_run(run, "cpu"), files, out, ProposeRequest(**values))  # type: ignore[arg-type]


def names(patients: Sequence[ProposedPatient]) -> list[str]:
    return [patient.patient_id for patient in patients]


def review(
    store: Path, file: CaseFile, drawn: Drawn = "other", patient: str | None = None, reviewer: str = "r1"
) -> None:
    """An expert draws a mask of an image."""
    case = file.read()
    mask = Mask.of(np.ones(case.shape, np.uint8), ("background", "LV", "MYO", "LA"), case.geometry)
    entry = CorrectedMask(
        reviewer=reviewer,
        patient=patient or file.patient_id,
        case=file.case_id,
        image_sha256=file.hash_images(),
        drawn=drawn,
        mask_sha256=mask.sha256,
    )
    with FeedbackStore.create(store) as opened:
        opened.add([entry], [mask])


def files_by_patient(images: Path) -> dict[str, list[CaseFile]]:
    found: dict[str, list[CaseFile]] = {}
    for file in find_cases(DataSettings(path=images)):
        found.setdefault(file.patient_id, []).append(file)
    return found


def test_two_lists_of_whole_patients_share_nobody_and_say_why(quality_run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    proposals = run_propose(quality_run, images, out)
    audit, informative = names(proposals.audit), names(proposals.informative)
    assert (len(audit), len(informative)) == (2, 3)
    assert not set(audit) & set(informative)
    assert (proposals.drawn_from, proposals.chosen_from) == (8, 6)
    assert all(len(patient.files) == 2 for patient in (*proposals.audit, *proposals.informative))
    assert all(mask.exists() for patient in (*proposals.audit, *proposals.informative) for mask in patient.masks)
    gains = [patient.numbers["gain"] for patient in proposals.informative]
    assert gains == sorted(gains, reverse=True)
    assert proposals.notes == []

    content = json.loads((out / "proposals.json").read_text())
    assert (content["seed"], content["by"], content["audit"]["drawn_from"]) == (0, "gain", 8)
    assert [each["patient"] for each in content["informative"]["patients"]] == informative
    with (out / "informative.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["patient"] for row in rows] == [name for name in informative for _ in range(2)]
    assert all(row["why"].startswith("predicted Dice 0.") for row in rows)
    # Whoever reviews an audit patient is not told what the networks think of him.
    assert (out / "audit.csv").read_text().splitlines()[0] == "order,case,patient,why,image_files,mask_file"
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == 10
    assert "http" not in page


def test_the_audit_draw_is_the_same_whatever_is_chosen_otherwise(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    ways = [{"by": "gain"}, {"by": "clasp"}, {"by": "random"}, {"by": "gain", "budget": 1}, {"budget": 0}]
    found = [
        names(run_propose(quality_run, images, tmp_path / str(number), **way).audit) for number, way in enumerate(ways)
    ]
    assert all(each == found[0] for each in found)
    assert names(run_propose(quality_run, images, tmp_path / "seed", seed=1, budget=0).audit) != found[0]


def test_a_repeated_call_segments_and_rates_nothing_again(
    quality_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = run_propose(quality_run, images, out)

    def asked(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(TorchModuleAdapter, "predict_logits", asked)
    monkeypatch.setattr(RewardEnsemble, "examine", asked)
    again = run_propose(quality_run, images, out, budget=2)
    assert names(again.informative) == names(first.informative)[:2]
    assert names(again.audit) == names(first.audit)


def test_reviewed_patients_are_left_out_and_what_comes_back_goes_into_the_store(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    """The images are no target of the run: the audit log in the output folder says that it made the masks."""
    out, store = tmp_path / "out", tmp_path / "feedback.sqlite"
    proposals = run_propose(quality_run, images, out)
    files = find_cases(DataSettings(path=images))
    for drawn, patients in (("audit", proposals.audit), ("informative", proposals.informative)):
        corrected = tmp_path / drawn
        corrected.mkdir()
        for patient in patients:
            for mask in patient.masks:
                shutil.copy(mask, corrected)
        request = FeedbackRequest(
            "r1", files, load_run(quality_run, "cpu"), masks=out / "labels", corrected=corrected, drawn=drawn
        )
        add_feedback(store, request)
    again = run_propose(quality_run, images, out, feedback=store)
    before = {*names(proposals.audit), *names(proposals.informative)}
    assert not before & {*names(again.audit), *names(again.informative)}
    assert again.known.left_out == dict.fromkeys(sorted(before), "reviewed")
    assert again.known.teachers == set(names(proposals.informative))
    assert (again.drawn_from, len(again.audit), len(again.informative)) == (3, 2, 1)
    notes = " ".join(again.notes)
    assert "1 of 3 patients to learn from" in notes
    assert "5 patients are left out: 5 reviewed" in notes
    assert "speaks of the patients who are left: the 3" in notes


def test_a_store_of_other_images_leaves_nobody_out_but_who_has_the_same_name(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    other = files_by_patient(images)["p7"][0]
    for path in (*other.image_paths, *files_by_patient(images)["p7"][1].image_paths):
        path.rename(tmp_path / path.name)
    moved = replace(other, image_paths=(tmp_path / other.image_paths[0].name,))
    review(tmp_path / "of others.sqlite", moved, patient="q1")
    found = run_propose(quality_run, images, tmp_path / "out", feedback=tmp_path / "of others.sqlite")
    assert found.known.left_out == {}
    assert any("says nothing of these images" in note for note in found.notes)
    review(tmp_path / "of p3.sqlite", moved, patient="p3")
    found = run_propose(quality_run, images, tmp_path / "out", feedback=tmp_path / "of p3.sqlite")
    assert set(found.known.left_out) == {"p3"}
    assert "another image" in found.known.left_out["p3"]


def test_a_value_of_a_report_is_no_review(quality_run: Path, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "feedback.sqlite"
    with FeedbackStore.create(store) as opened:
        opened.add([Measurement(reviewer="ris", patient=f"p{row}", name="EF", value=55, unit="%") for row in range(8)])
    assert run_propose(quality_run, images, tmp_path / "out", feedback=store).known.left_out == {}


def test_who_taught_the_run_is_not_proposed(quality_run: Path, images: Path, tmp_path: Path) -> None:
    """By masks not at all; by values of reports not for an audit."""
    run = tmp_path / "run"
    shutil.copytree(quality_run, run)
    LearnedFeedback(
        "feedback.sqlite",
        "0" * 64,
        (ReviewedCase("p0_0", "p0", ("1" * 64,), 1.0),),
        tuple(Reported(f"p{row}", None, "EF", None, 55.0, None) for row in (1, 2, 3, 4)),
        ("p5",),
        0,
    ).write(run / "feedback.json")
    found = run_propose(run, images, tmp_path / "out", audit=8, budget=8)
    assert set(names(found.audit)) == {"p6", "p7"}
    assert set(names(found.informative)) == {"p1", "p2", "p3", "p4"}
    assert found.known.teachers == {"p0"}


def test_without_a_quality_model_the_reward_maps_say_what_to_expect(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(quality_run, run)
    (run / "quality.json").unlink()
    found = run_propose(run, images, tmp_path / "out")
    assert len(found.informative) == 3
    assert all(0 <= patient.numbers["predicted_dice"] <= 1 for patient in found.informative)


def test_without_reward_networks_patients_can_only_be_drawn_at_random(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(quality_run, run)
    shutil.rmtree(run / "reward")
    with pytest.raises(ModelError, match=r"has no reward networks .* take patients at random by --by random"):
        run_propose(run, images, tmp_path / "out")
    found = run_propose(run, images, tmp_path / "out", by="random")
    assert (len(found.audit), len(found.informative)) == (2, 3)


def test_an_image_that_cannot_be_read_is_left_out_by_name(quality_run: Path, images: Path, tmp_path: Path) -> None:
    for name in ("p0_0", "p1_0", "p1_1"):
        (images / f"{name}.nii.gz").write_bytes(b"no image")
    found = run_propose(quality_run, images, tmp_path / "out", audit=3, budget=8)
    assert set(found.problems) == {"p0_0", "p1_0", "p1_1"}
    proposed = {patient.patient_id: patient for patient in (*found.audit, *found.informative)}
    assert sorted(proposed) == ["p0", "p2", "p3", "p4", "p5", "p6", "p7"]
    assert [file.case_id for file in proposed["p0"].files] == ["p0_1"]
    assert "p1_0" in (tmp_path / "out" / "report.html").read_text()


def test_fewer_patients_than_asked_for_are_all_proposed_and_it_says_so(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    found = run_propose(quality_run, images, tmp_path / "out", audit=9, budget=8)
    assert (len(found.audit), found.informative) == (8, ())
    assert any("8 of 9 patients for the audit" in note for note in found.notes)
    assert any("0 of 8 patients to learn from" in note for note in found.notes)
    for path in images.iterdir():
        if not path.name.startswith("p0_"):
            path.unlink()
    assert names(run_propose(quality_run, images, tmp_path / "one", audit=0).informative) == ["p0"]
    assert names(run_propose(quality_run, images, tmp_path / "one").audit) == ["p0"]


def test_when_everybody_was_reviewed_it_says_so(quality_run: Path, images: Path, tmp_path: Path) -> None:
    for each in files_by_patient(images).values():
        review(tmp_path / "feedback.sqlite", each[0])
    with pytest.raises(DataError, match=r"all 8 patients of these images have been reviewed"):
        run_propose(quality_run, images, tmp_path / "out", feedback=tmp_path / "feedback.sqlite")


def test_masks_that_were_scored_before_are_taken_and_nothing_is_segmented(
    quality_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = run_propose(quality_run, images, tmp_path / "own")
    files = find_cases(DataSettings(path=images))
    score(load_run(quality_run, "cpu"), files, tmp_path / "scores")

    def asked(*_: object) -> None:
        raise AssertionError("segmented")

    monkeypatch.setattr(TorchModuleAdapter, "predict_logits", asked)
    scores = tmp_path / "scores" / "scores.json"
    found = run_propose(quality_run, images, tmp_path / "out", scores=scores)
    assert names(found.audit) == names(own.audit)
    assert names(found.informative) == names(own.informative)
    for one, other in zip(found.informative, own.informative, strict=True):
        assert one.numbers == pytest.approx(other.numbers, abs=1e-4)
    assert found.audit[0].masks[0].parent == tmp_path / "scores" / "labels"
    assert not (tmp_path / "out" / "labels").exists()

    content = json.loads(scores.read_text())
    write_json(tmp_path / "other.json", {**content, "quality": "0" * 64})
    with pytest.raises(DataError, match="was not made with"):
        run_propose(quality_run, images, tmp_path / "out", scores=tmp_path / "other.json")
    write_json(tmp_path / "other.json", {**content, "cases": []})
    with pytest.raises(DataError, match="has the score of no image of these"):
        run_propose(quality_run, images, tmp_path / "out", scores=tmp_path / "other.json")


def test_a_mask_that_somebody_changed_is_neither_proposed_nor_lost(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    changed = run_propose(quality_run, images, out).audit[0].masks[0]
    shutil.copy(next(path for path in (out / "labels").iterdir() if path != changed), changed)
    content = changed.read_bytes()
    again = run_propose(quality_run, images, out)
    assert "was changed after it was written" in next(iter(again.problems.values()))
    assert changed.read_bytes() == content


def test_a_call_that_is_cut_short_leaves_no_lists_of_the_one_before(
    quality_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_propose(quality_run, images, out)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medfm_rl.workflows.propose.propose.audit_order", killed)
    with pytest.raises(KeyboardInterrupt):
        run_propose(quality_run, images, out)
    assert not [path.name for path in out.iterdir() if path.name.startswith(("proposals", "audit.csv", "informative"))]
    assert (out / "audit.jsonl").exists()


def test_masks_of_another_model_are_not_replaced(quality_run: Path, images: Path, tmp_path: Path) -> None:
    name = find_cases(DataSettings(path=images))[0].case_id
    (tmp_path / "out" / "labels").mkdir(parents=True)
    (tmp_path / "out" / "labels" / f"{name}.nii.gz").write_bytes(b"a mask")
    with pytest.raises(DataError, match="no record says what made it"):
        run_propose(quality_run, images, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1}, "--budget -1"),
        ({"audit": -1}, "--audit -1"),
        ({"budget": 0, "audit": 0}, "ask for nobody"),
        ({"by": "entropy"}, "must be gain, clasp, random"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProposeRequest(**options)  # type: ignore[arg-type]
