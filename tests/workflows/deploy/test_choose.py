from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from support.clip_files import write_stills_as_clip

from medfm_rl import cli
from medfm_rl.data.images import read_image, write_labels
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import DataSettings
from medfm_rl.workflows.deploy.choose import Choices, ChooseRequest, choose, decide


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture
def files(quality_run: Path, tmp_path: Path) -> list[CaseFile]:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted((quality_run.parent / "data" / "images").iterdir())[:6]:
        shutil.copy(path, folder)
    return find_cases(DataSettings(path=folder))


@pytest.fixture
def in_use(quality_run: Path, files: list[CaseFile], tmp_path: Path) -> Path:
    """Expert masks; of every other case moved to the side."""
    folder, schema = tmp_path / "in use", load_run(quality_run, "cpu").segmenter.schema
    truths = find_masks(quality_run.parent / "data" / "labels", files)
    for number, file in enumerate(files):
        case = file.read()
        mask = read_labels(truths[file.case_id], schema, case.shape, case.geometry)
        moved = np.roll(mask, 6, axis=1) if number % 2 else mask
        write_labels(folder / f"{file.case_id}.nii.gz", moved, case.geometry, schema)
    return folder


def choice_of(quality_run: Path, files: list[CaseFile], in_use: Path, out: Path, margin: float = 0.0) -> Choices:
    return choose(
        load_run(quality_run, "cpu"), files, out, ChooseRequest(find_masks(in_use, files), None, margin), quiet
    )


@pytest.mark.parametrize(
    ("gains", "margin", "side"),
    [
        ([0.0005], 0.01, "before"),
        ([0.0625], 0.0625, "after"),
        ([-0.1], 0.0, "before"),
        ([0.0], 0.0, "before"),
        ([0.5, -0.25], 0.125, "after"),
        ([0.5, -0.25], 0.25, "before"),
        ([], 0.0, "before"),
    ],
)
def test_a_mask_gives_way_to_one_that_is_predicted_to_be_better_by_the_margin(
    gains: list[float], margin: float, side: str
) -> None:
    assert decide(gains, margin)[0] == side


def test_each_case_has_the_mask_that_was_taken_and_its_reason(
    quality_run: Path, files: list[CaseFile], in_use: Path, tmp_path: Path
) -> None:
    found = choice_of(quality_run, files, in_use, tmp_path / "all", 0.0)
    gains = sorted(
        each.after - each.before for each in found.made if each.before is not None and each.after is not None
    )
    assert len(gains) > 3
    # Between two of them: both sides are taken.
    margin = max(0.0, (gains[1] + gains[2]) / 2)
    out = tmp_path / "chosen"
    choices = choice_of(quality_run, files, in_use, out, margin)
    sides = [decide([choice.after - choice.before], margin)[0] for choice in choices.made]  # type: ignore[operator]
    assert [choice.taken for choice in choices.made] == sides
    assert set(sides) == {"before", "after"}
    assert (choices.count("before"), choices.count("after")) == (sides.count("before"), sides.count("after"))
    for choice in choices.made:
        written = read_image(out / "labels" / f"{choice.case}.nii.gz")[0]
        source = in_use if choice.taken == "before" else out / "after" / "labels"
        assert np.array_equal(written, read_image(source / f"{choice.case}.nii.gz")[0])
    content = json.loads((out / "choices.json").read_text())
    assert (content["before"], content["after"], content["margin"]) == (
        sides.count("before"),
        sides.count("after"),
        margin,
    )
    with (out / "choices.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [(row["case"], row["taken"]) for row in rows] == [(choice.case, choice.taken) for choice in choices.made]
    assert all("predicted" in row["reason"] for row in rows)
    lines = [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]
    assert [(line["case"], line["decision"]) for line in lines] == [(row["case"], row["taken"]) for row in rows]


def test_a_repeated_call_writes_nothing_again_and_another_margin_does(
    quality_run: Path, files: list[CaseFile], in_use: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = choice_of(quality_run, files, in_use, out)
    before = {path: path.stat().st_mtime_ns for path in (out / "labels").iterdir() if path.suffix == ".gz"}
    assert choice_of(quality_run, files, in_use, out) == first
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len((out / "audit.jsonl").read_text().splitlines()) == 6
    none = choice_of(quality_run, files, in_use, out, 1.0)
    assert none.count("before") == 6
    for path in before:
        assert np.array_equal(read_image(path)[0], read_image(in_use / path.name)[0])


def test_what_a_mask_lacks_is_left_out_of_the_comparison(
    quality_run: Path, files: list[CaseFile], in_use: Path, tmp_path: Path
) -> None:
    """It may be right to lack it; what both have says whether the other one is better."""
    whole = choice_of(quality_run, files, in_use, tmp_path / "whole")
    path = in_use / f"{files[0].case_id}.nii.gz"
    schema, case = load_run(quality_run, "cpu").segmenter.schema, files[0].read()
    mask = read_labels(path, schema, case.shape, case.geometry)
    write_labels(path, np.where(mask == 3, 0, mask), case.geometry, schema)
    lacking = choice_of(quality_run, files, in_use, tmp_path / "lacking").made[0]
    assert lacking.before is not None
    assert lacking.before != whole.made[0].before
    write_labels(path, np.zeros_like(mask), case.geometry, schema)
    empty = choice_of(quality_run, files, in_use, tmp_path / "empty").made[0]
    assert (empty.taken, empty.before, empty.reason) == ("before", None, "the two masks have no structure in common")


def test_a_mask_in_use_that_cannot_be_read_is_named_and_not_replaced(
    quality_run: Path, files: list[CaseFile], in_use: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    choice_of(quality_run, files, in_use, out)
    gone, damaged = (f"{file.case_id}.nii.gz" for file in files[:2])
    (in_use / gone).unlink()
    (in_use / damaged).write_bytes(b"no mask")
    choices = choice_of(quality_run, files, in_use, out, 1.0)
    assert set(choices.problems) == {files[0].case_id, files[1].case_id}
    assert "there is no mask of that name" in choices.problems[files[0].case_id]
    assert damaged in choices.problems[files[1].case_id]
    # Those of the first call would look like results of the second.
    assert not [name for name in (gone, damaged) if (out / "labels" / name).exists()]
    with (out / "choices.csv").open() as table:
        rows = {row["case"]: row for row in csv.DictReader(table)}
    assert [rows[file.case_id]["taken"] for file in files] == ["not handled"] * 2 + ["before"] * 4
    assert rows[files[0].case_id]["patient"] == files[0].patient_id
    lines = [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]
    assert [line["case"] for line in lines if "problem" in line] == [file.case_id for file in files[:2]]


def test_where_no_mask_in_use_can_be_read_nothing_is_left_that_looks_like_a_result(
    quality_run: Path, files: list[CaseFile], in_use: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    choice_of(quality_run, files, in_use, out)
    for path in in_use.glob("*.nii.gz"):
        path.write_bytes(b"no mask")
    with pytest.raises(DataError, match=r"no mask could be written; the first: .*nii.gz"):
        choice_of(quality_run, files, in_use, out)
    assert not list((out / "labels").glob("*.nii.gz"))
    assert not (out / "choices.csv").exists()


def test_an_interrupted_call_leaves_no_tables_of_the_one_before(
    quality_run: Path, files: list[CaseFile], in_use: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    choice_of(quality_run, files, in_use, out)

    def interrupting(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("writing masks", 3):
            raise KeyboardInterrupt

    request = ChooseRequest(find_masks(in_use, files), None, 1.0)
    with pytest.raises(KeyboardInterrupt):
        choose(load_run(quality_run, "cpu"), files, out, request, interrupting)
    assert not (out / "choices.csv").exists()
    assert choice_of(quality_run, files, in_use, out, 1.0).count("before") == 6


def test_masks_in_use_are_not_those_of_the_output_folder(
    quality_run: Path, files: list[CaseFile], in_use: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--out .*in use: the mask in use .* lies in there"):
        choice_of(quality_run, files, in_use, in_use)
    assert not (in_use / "labels").exists()


def test_frames_of_a_clip_are_all_of_one_segmenter(quality_run: Path, tmp_path: Path) -> None:
    write_stills_as_clip(quality_run.parent / "data", tmp_path, lambda mask: np.roll(mask, 6, axis=1))
    clip = find_cases(DataSettings(path=tmp_path / "images"))
    gains = [
        choice.after - choice.before
        for choice in choice_of(quality_run, clip, tmp_path / "masks", tmp_path / "first").made
        if choice.before is not None and choice.after is not None
    ]
    assert len(gains) == 3
    # Frame by frame it would take both sides.
    margin = min(1.0, max(0.0, (np.mean(gains) + max(gains)) / 2))
    choices = choice_of(quality_run, clip, tmp_path / "masks", tmp_path / "second", margin)
    assert {choice.taken for choice in choices.made} == {"before" if np.mean(gains) < margin else "after"}
    assert len(choices.made) == 3


def test_the_command_says_what_was_taken(
    quality_run: Path,
    files: list[CaseFile],
    in_use: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(quality_run), "--images", str(tmp_path / "images"), "--masks", str(in_use), "--device", "cpu"]
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["medfm-rl", "choose", *arguments, "--out", str(out), "--margin", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "0 of the adapted segmenter, 6 as they were" in said
    assert "Nothing is promised" in said
    monkeypatch.setattr(sys, "argv", ["medfm-rl", "choose", *arguments, "--out", str(out), "--margin", "2"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "--margin 2: a gain in Dice" in capsys.readouterr().err


def test_a_mask_that_something_else_wrote_is_not_written_over(
    quality_run: Path, files: list[CaseFile], in_use: Path, tmp_path: Path
) -> None:
    other = tmp_path / "out" / "labels" / f"{files[0].case_id}.nii.gz"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"something else")
    with pytest.raises(DataError, match="no record says what made it"):
        choice_of(quality_run, files, in_use, tmp_path / "out")
    assert other.read_bytes() == b"something else"


@pytest.mark.parametrize("margin", [-0.1, 1.5, float("nan")])
def test_a_margin_that_is_no_gain_in_dice_is_refused(margin: float) -> None:
    with pytest.raises(ConfigError, match=r"--margin .*: a gain in Dice, from 0 to 1"):
        ChooseRequest({}, None, margin)
