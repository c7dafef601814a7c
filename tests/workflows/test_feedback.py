"""`medfm-rl feedback` from end to end, with a run and without."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medfm_rl import cli
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.data.layouts import find_cases
from medfm_rl.feedback import CorrectedMask, FeedbackStore, Verdict
from medfm_rl.runs.case_records import CaseRecords, hash_case
from medfm_rl.runs.finished import load_run
from medfm_rl.runs.inputs import hash_images, write_inputs
from medfm_rl.settings import AdaptConfig, DataSettings, TorchSettings, TrackingSettings
from medfm_rl.settings.files import dump_config
from medfm_rl.types import Geometry, LabelMap, LabelSchema

GRID = Geometry((0.5, 0.7), (1.0, 2.0), (1.0, 0.0, 0.0, 1.0))
Command = Callable[..., tuple[int, str, str]]


def mask(rows: int) -> LabelMap:
    found = np.zeros((16, 16), np.uint8)
    found[2 : 2 + rows, 4:9] = 1
    return found


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`medfm-rl feedback ARGUMENTS` in this process: exit code, output, messages."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medfm-rl", "feedback", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, captured.out, captured.err

    return call


@pytest.fixture
def folder(tmp_path: Path, schema: LabelSchema) -> Path:
    """Two images of two patients, their masks, and what came back: one corrected, one as it was."""
    rng = np.random.default_rng(0)
    for case, rows in (("p1_a", 4), ("p2_a", 3)):
        write_image(tmp_path / "images" / f"{case}.nii.gz", rng.random((16, 16)).astype(np.float32), GRID)
        write_labels(tmp_path / "out" / "labels" / f"{case}.nii.gz", mask(3), GRID, schema)
        write_labels(tmp_path / "back" / f"{case}.nii.gz", mask(rows), GRID, schema)
    return tmp_path


@pytest.fixture
def run(folder: Path, tiny_unet: TorchModuleAdapter) -> Path:
    """A finished run whose target are other images."""
    place = folder / "run"
    tiny_unet.export(place / "model")
    target = folder / "target"
    write_image(target / "p7_a.nii.gz", np.random.default_rng(7).random((16, 16)).astype(np.float32), GRID)
    config = AdaptConfig(
        segmenter=TorchSettings(folder=place / "model"),
        target=DataSettings(path=target),
        output=place,
        tracking=TrackingSettings(uri=None),
        device="cpu",
    )
    (place / "config.yaml").write_text(dump_config(config))
    return place


def adapted_to(run: Path, images: Path) -> None:
    files = find_cases(DataSettings(path=images))
    write_inputs(run / "inputs.json", {"target.path": hash_images(files, lambda *_: None)})


def options(folder: Path, *more: object) -> tuple[object, ...]:
    shown = ("--images", folder / "images", "--masks", folder / "out" / "labels", "--corrected", folder / "back")
    return ("add", folder / "store" / "feedback.sqlite", *shown, "--reviewer", "r1", *more)


def test_corrected_masks_of_a_run_go_in_with_its_hash(folder: Path, run: Path, command: Command) -> None:
    adapted_to(run, folder / "images")
    code, out, err = command(*options(folder, "--run", run, "--drawn", "audit", "--device", "cpu"))
    assert code == 0, err
    assert "Added: 1 mask, 1 verdict; 0 were there already" in out
    with FeedbackStore.open(folder / "store" / "feedback.sqlite") as store:
        first, second = store.entries()
        assert isinstance(first, CorrectedMask)
        assert isinstance(second, Verdict)
        assert first.changed == ("LV",)
        assert second.decision == "accept"
        assert {first.drawn, second.drawn} == {"audit"}
        assert first.model_hash == load_run(run, "cpu").identity.model_hash
        assert np.array_equal(store.mask(first.mask_sha256).labels, mask(4))
    code, out, _ = command(*options(folder, "--run", run, "--drawn", "audit", "--device", "cpu"))
    assert (code, out.splitlines()[0]) == (0, "Added: nothing; 2 were there already")


def test_images_that_the_run_never_saw_are_refused_unless_asked_for(folder: Path, run: Path, command: Command) -> None:
    adapted_to(run, folder / "target")
    code, out, err = command(*options(folder, "--run", run, "--device", "cpu"))
    assert (code, out) == (2, "")
    assert f"case p1_a (and 1 more): the run {run} never saw this image" in err
    assert "--unseen" in err
    assert not (folder / "store").exists()
    assert command(*options(folder, "--run", run, "--device", "cpu", "--unseen"))[0] == 0


def test_images_that_the_run_segmented_are_known_by_the_audit_log(folder: Path, run: Path, command: Command) -> None:
    adapted_to(run, folder / "target")
    records = CaseRecords(folder / "out", "predict", load_run(run, "cpu").identity)
    files = find_cases(DataSettings(path=folder / "images"))
    records.log([{"case": file.case_id, "inputs": hash_case(file, None), "outputs": {}} for file in files])
    with (folder / "out" / "audit.jsonl").open("a") as log:
        # What a killed process leaves.
        log.write('{"case": "p1_')
    assert command(*options(folder, "--run", run, "--device", "cpu"))[0] == 0


def test_a_measurement_of_a_patient_whom_the_run_never_saw_is_refused(
    folder: Path, run: Path, command: Command
) -> None:
    adapted_to(run, folder / "target")
    table = folder / "reports.csv"
    table.write_text("patient,name,value,unit\np7,EF,55,%\np8,EF,60,%\n")
    add = ("add", folder / "feedback.sqlite", "--run", run, "--measurements", table, "--reviewer", "reports")
    code, _, err = command(*add)
    assert code == 2
    assert "1 of 2 measurements cannot be used, and nothing was added" in err
    assert "line 3: there is no image of patient p8; correct the name" in err


def test_other_integers_in_corrected_masks_are_told_by_the_option_for_them(
    folder: Path, run: Path, command: Command
) -> None:
    add = options(folder, "--run", run, "--device", "cpu")
    code, _, err = command(*add, "--corrected-labels", "LV=1,XY=7")
    assert code == 2
    assert "--corrected-labels XY=7: there is no XY" in err
    code, _, err = command(*add, "--corrected-labels", "MYO=2")
    assert code == 2
    assert "of masks that came back from a reviewer by --corrected-labels" in err.replace("\n", " ")


def test_an_entry_that_replaces_one_of_an_audit_draw_is_told_with_its_draw(
    folder: Path, run: Path, command: Command
) -> None:
    add = options(folder, "--run", run, "--device", "cpu", "--unseen")
    assert command(*add, "--drawn", "audit")[0] == 0
    code, out, _ = command(*add)
    assert code == 0
    assert "drawn: audit, of " in out
    assert "drawn: other, is" in out
    assert "case p1_a stays a case of the audit draw" in out


def test_a_store_is_listed_removed_from_exported_and_taken_over(folder: Path, command: Command) -> None:
    store = folder / "store" / "feedback.sqlite"
    structures = ("--structures", "LV=1,MYO=2,LA=3")
    assert command(*options(folder, *structures))[0] == 0
    again = ("add", store, "--images", folder / "images", "--masks", folder / "back", "--corrected", folder / "back")
    assert command(*again, *structures, "--reviewer", "r2")[0] == 0
    code, out, _ = command("list", store)
    assert code == 0
    assert "corrected mask" in out
    assert "4 entries shown; 4 in force, 4 ever added" in out
    code, out, _ = command("list", store, "--json", "--kind", "mask")
    listed = json.loads(out)
    (entry,) = listed["entries"]
    assert (entry["case_name"], entry["state"], entry["reviewer"]) == ("p1_a", "in force", "r1")
    code, out, _ = command("list", store, "--agreement")
    assert "r1 and r2" in out
    assert "1.000" in out
    code, out, _ = command("remove", store, entry["id"][:8], "--reviewer", "r1", "--reason", "another patient")
    assert (code, out.startswith("Out of force: case p1_a, reviewer r1: corrected mask")) == (0, True)
    assert "removed by" in command("list", store, "--all")[1]
    assert command("export", store, "--to", folder / "handed-on")[0] == 0
    code, out, _ = command("add", folder / "other.sqlite", "--from", folder / "handed-on")
    assert (code, "3 entries in force" in out) == (0, True)
    with FeedbackStore.open(store) as one, FeedbackStore.open(folder / "other.sqlite") as other:
        assert one.history() == other.history()
        assert one.state_hash() == other.state_hash()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--reviewer: say by an opaque id"),
        (("--reviewer", "r1"), "nothing to add"),
        (("--reviewer", "r1", "--corrected", "back"), "--corrected speaks of images"),
        (("--reviewer", "r1", "--corrected", "back", "--images", "images"), "give the run that made the masks"),
        (("--reviewer", "r1", "--structures", "LV"), "--structures LV: must be NAME=INTEGER"),
        (("--reviewer", "r1", "--from", "export"), "--from takes over all"),
        (("--drawn", "audit", "--unseen", "--from", "export"), "give it alone, without --drawn, --unseen"),
        (("--comment", "x", "--labels", "LV=1", "--from", "export"), "give it alone, without --labels, --comment"),
        (
            ("--patient-pattern", "(p.)", "--layout", "folder", "--from", "export"),
            "without --layout, --patient-pattern",
        ),
    ],
)
def test_what_is_missing_in_a_call_is_said(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(folder)
    code, out, err = command("add", "feedback.sqlite", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (folder / "feedback.sqlite").exists()
