"""What the store would teach, what a new adaptation is started with, and how old and new are compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.desk import PLANE, SCHEMA, DeskFolder
from support.desk_client import client_of, decide, items, open_desk, pixels, send_labels

from medfm_rl.data.images import hash_image, write_image
from medfm_rl.data.layouts import find_cases, is_simulated
from medfm_rl.errors import UserError
from medfm_rl.feedback import CorrectedMask, Mask
from medfm_rl.service import learning
from medfm_rl.service.jobs import Job, progress_of
from medfm_rl.settings import AdaptConfig, DataSettings, TorchSettings
from medfm_rl.settings.files import dump_config, load_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as far as the desk reads it: its settings."""
    folder = tmp_path / "adapted"
    folder.mkdir()
    config = AdaptConfig(
        segmenter=TorchSettings(folder=tmp_path / "source"),
        target=DataSettings(path=tmp_path / "elsewhere", patient_pattern="^([^_]+)"),
        evaluation=DataSettings(path=tmp_path / "labelled"),
        output=folder,
    )
    (folder / "config.yaml").write_text(dump_config(config))
    return folder


def job(kind: str, **arguments: object) -> Job:
    return Job("j1", kind, arguments, "r1", "running", None, "", None, None, None)  # type: ignore[arg-type]


def test_the_page_says_what_would_teach_and_what_is_kept(folder: DeskFolder, run: Path) -> None:
    client = client_of(open_desk(folder, run=run))
    before = client.get("/api/v1/learn").json()
    assert (before["can_start"], before["why_not"][:20]) == (False, "nothing that teaches")
    by_kind = {kind: [each["item"] for each in items(client, kind=kind)] for kind in ("audit", "refer", "compare")}
    decide(client, by_kind["audit"][0], {"kind": "verdict", "value": "accept"})
    decide(client, by_kind["refer"][0], {"kind": "verdict", "value": "reject"})
    decide(client, by_kind["compare"][0], {"kind": "preference", "value": "a"})
    labels = pixels(client, f"/api/v1/cases/{by_kind['compare'][1]}/masks/a").copy()
    labels[0, 24] = 0
    sent = send_labels(client, by_kind["compare"][1], labels)
    decide(client, by_kind["compare"][1], {"kind": "mask", "mask": sent, "replaces": "a"})
    found = client.get("/api/v1/learn").json()
    assert found["store"]["entries"] == {"verdict": 2, "preference": 1, "mask": 1}
    assert found["store"]["audit"] == {"cases": 1, "patients": 1}
    # One corrected mask teaches; a rejection and a preference do too; the accepted audit mask is kept.
    numbers = {name: found["next"][name] for name in ("cases", "patients", "verdicts", "kept_cases", "kept_patients")}
    assert numbers == {"cases": 1, "patients": 1, "verdicts": 2, "kept_cases": 1, "kept_patients": 1}
    assert (found["can_start"], found["simulated"]) == (True, True)


def test_a_new_adaptation_goes_on_from_the_run_with_the_images_of_the_desk(
    folder: DeskFolder, run: Path, tmp_path: Path
) -> None:
    desk = open_desk(folder, run=run)
    place = tmp_path / "job"
    made = job("adapt", **learning.arguments_of_adaptation(desk.catalogue, run))
    assert learning.commands_of(made, place, desk.database.store, str(folder.store)) == [
        ["adapt", str(place / "adapt.yaml")]
    ]
    config = load_config(place / "adapt.yaml", AdaptConfig)
    assert config.continues == run
    assert config.output == place / "run"
    assert config.evaluation is None
    assert config.feedback is not None
    assert config.feedback.store == str(folder.store)
    assert config.target.patient_pattern == "^([^_]+)"
    files = find_cases(config.target)
    shown = {frame.case for view in desk.catalogue.views.values() for frame in view.frames}
    assert {file.case_id for file in files} == shown
    assert is_simulated(place / "target")
    # What the run was adapted to belongs to it too, where it is still there.
    elsewhere = tmp_path / "elsewhere" / "images"
    elsewhere.mkdir(parents=True)
    write_image(elsewhere / "q01_4CH.nii.gz", np.zeros((8, 8), np.uint8), PLANE)
    learning.commands_of(made, place, desk.database.store, str(folder.store))
    assert {file.case_id for file in find_cases(config.target)} == {*shown, "q01_4CH"}
    taken = next(path for path in (place / "target" / "images").iterdir() if path.suffix == ".gz")
    write_image(elsewhere / taken.name, np.zeros((8, 8), np.uint8), PLANE)
    with pytest.raises(UserError, match="another image has this name"):
        learning.commands_of(made, place, desk.database.store, str(folder.store))
    (elsewhere / taken.name).unlink()
    # A job that is started again goes on where it was.
    (place / "run").mkdir()
    assert learning.commands_of(made, place, desk.database.store, str(folder.store))[0][-1] == "--resume"


def test_old_and_new_are_compared_on_the_audit_patients_alone(folder: DeskFolder, run: Path, tmp_path: Path) -> None:
    desk = open_desk(folder, run=run)
    client = client_of(desk)
    arguments = {
        "old": str(run),
        "new": "new",
        "images": learning.arguments_of_adaptation(desk.catalogue, run)["images"],
    }
    made, store = job("compare", **arguments), desk.database.store
    with pytest.raises(UserError, match="review the audit sample first"):
        learning.commands_of(made, tmp_path / "job", store, "")
    audit, refer = items(client, kind="audit")[0], items(client, kind="refer")[0]
    decide(client, audit["item"], {"kind": "verdict", "value": "accept"})
    decide(client, refer["item"], {"kind": "verdict", "value": "accept"})
    ((command, new, kept, *rest),) = learning.commands_of(made, tmp_path / "job", store, "")
    assert (command, new, rest[:2]) == ("evaluate", "new", ["--against", str(run)])
    (file,) = find_cases(DataSettings(path=Path(kept)))
    assert file.case_id == audit["name"]
    labelled = file.read_labelled(SCHEMA)
    assert np.array_equal(labelled.ground_truth, pixels(client, f"/api/v1/cases/{audit['item']}/masks/given")[0])


def test_reviewed_masks_are_compared_by_the_names_of_their_structures(
    folder: DeskFolder, run: Path, tmp_path: Path
) -> None:
    desk = open_desk(folder, run=run)
    client = client_of(desk)
    images = learning.arguments_of_adaptation(desk.catalogue, run)["images"]
    audit, refer = items(client, kind="audit")[0], items(client, kind="refer")[0]
    decide(client, audit["item"], {"kind": "verdict", "value": "accept"})
    labels = pixels(client, f"/api/v1/cases/{refer['item']}/masks/given")[0]
    path = next(Path(image) for image in images if refer["name"] in image)
    mask = Mask.of(np.array([0, 2, 1], np.uint8)[labels], ("background", "MYO", "LV"), PLANE)
    entry = CorrectedMask(
        reviewer="r2",
        patient="p99",
        case=refer["name"],
        image_sha256=hash_image(path),
        drawn="audit",
        mask_sha256=mask.sha256,
    )
    desk.database.store.add([entry], [mask])
    made = job("compare", old=str(run), new="new", images=images)
    ((_, _, kept, *_),) = learning.commands_of(made, tmp_path / "job", desk.database.store, "")
    found = {file.case_id: file for file in find_cases(DataSettings(path=Path(kept)))}
    assert np.array_equal(found[refer["name"]].read_labelled(SCHEMA).ground_truth, labels)


def test_a_comparison_is_told_with_its_interval(tmp_path: Path) -> None:
    summary = {
        "models": {
            "old": [{"structure": "LV", "dice": 0.8}, {"structure": "mean", "dice": 0.8}],
            "new": [{"structure": "LV", "dice": 0.85}, {"structure": "mean", "dice": 0.85}],
        },
        "dice_difference": {name: {"mean": 0.05, "low": 0.01, "high": 0.09} for name in ("LV", "mean")},
        "patients": 3,
    }
    assert learning.comparison_of(tmp_path) is None
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "summary.json").write_text(json.dumps(summary))
    found = learning.comparison_of(tmp_path)
    assert found is not None
    assert found["rows"][0] == {
        "structure": "LV",
        "before": 0.8,
        "after": 0.85,
        "difference": 0.05,
        "low": 0.01,
        "high": 0.09,
    }
    assert found["texts"][0].endswith("+5.0 points, 95 % interval +1.0 to +9.0.")
    assert "Few patients (3)" in found["texts"][1]


def test_the_progress_of_a_job_is_read_from_what_it_tells() -> None:
    lines = ["fine-tuning: 547 of 800, about 5 min left", "fine-tuning: step 560 of 800: loss 0.2"]
    assert progress_of(lines) == ("fine-tuning", 547 / 800)
    assert progress_of(["starting"]) == ("starting", None)
    assert progress_of([]) == ("", None)


def test_jobs_and_scores_need_a_run(folder: DeskFolder) -> None:
    client = client_of(open_desk(folder))
    assert client.post("/api/v1/jobs", json={"kind": "adapt"}).json()["error"]["code"] == "no_run"
    sent = {"image": ("a.png", b"x"), "mask": ("a.png", b"x")}
    assert client.post("/api/v1/score", files=sent).json()["error"]["code"] == "no_run"
