from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from support.clip_files import COUNT, SIZE, greys, region, ventricles, write_clip
from support.page_pictures import pictures_of
from typer.testing import CliRunner

from medfm_rl.cli import app
from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import DataError
from medfm_rl.reports.clips import animate
from medfm_rl.settings import DataSettings
from medfm_rl.types import Clip, Geometry, LabelSchema
from medfm_rl.workflows.measure.measure import measure, view_of

LV = LabelSchema(("background", "LV"), (0, 7))
PLANE = Geometry((0.5, 0.5), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
WHOLE = (0, 0, 63, 47)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two views of a patient with known spacing, and a clip of another without."""
    for name in ("p1_2CH", "p1_4CH", "p2_4CH"):
        known = {"SequenceOfUltrasoundRegions": [region(*WHOLE)]} if name.startswith("p1") else {}
        write_clip(tmp_path / "images" / f"{name}.dcm", greys(), **known)
        geometry = PLANE if known else Geometry.unknown(2)
        write_sequence(tmp_path / "labels" / f"{name}.nii.gz", ventricles() * np.uint8(7), geometry, None)
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["measure", *arguments], catch_exceptions=False)
    return result.exit_code, result.output


def test_volumes_are_in_ml_where_calibrated_and_ratios_elsewhere_and_the_tables_say_which(clips: Path) -> None:
    out = clips / "out"
    code, said = run(str(clips / "labels"), "--images", str(clips / "images"), "--out", str(out), "--labels", "LV=7")
    assert code == 0, said
    with (out / "measures.csv").open() as table:
        rows = {row["clip_id"]: row for row in csv.DictReader(table)}
    assert set(rows) == {"p1_2CH", "p1_4CH", "p2_4CH", "p1_2CH + p1_4CH"}
    known, unknown = rows["p1_4CH"], rows["p2_4CH"]
    # 4/3 pi a b b: half the width is 12 px at ED and 6 at ES, half the length 1.5 times that; pixels of 0.5 mm.
    assert float(known["edv"]) == pytest.approx(4 / 3 * np.pi * 18 * 12**2 * 0.125 / 1000, rel=0.08)
    assert (known["volume_unit"], known["length_unit"], known["area_unit"]) == ("ml", "mm", "mm^2")
    assert float(known["ef_percent"]) == pytest.approx(100 * (1 - 0.5**3), abs=3)
    assert (known["ed_frame"], known["es_frame"]) == ("0", "6")
    assert (unknown["edv"], unknown["volume_unit"], unknown["length_unit"]) == ("1", "of EDV", "of the ED length")
    assert float(unknown["ef_percent"]) == pytest.approx(float(known["ef_percent"]))
    assert float(rows["p1_2CH + p1_4CH"]["ef_percent"]) == pytest.approx(float(known["ef_percent"]))
    assert rows["p1_2CH + p1_4CH"]["method"] == "biplane"
    with (out / "frames.csv").open() as table:
        frames = [row for row in csv.DictReader(table) if row["clip_id"] == "p1_4CH"]
    assert [float(row["area_LV"]) for row in frames] == pytest.approx(ventricles().sum(axis=(1, 2)) * 0.25)
    assert float(frames[3]["seconds"]) == pytest.approx(0.12)
    content = json.loads((out / "measures.json").read_text())
    assert content["biplane"]["p1"]["clips"] == ["p1_2CH", "p1_4CH"]
    page = (out / "report.html").read_text()
    assert page.count("data:image/gif;base64,") == 3
    assert len(pictures_of(out / "report.html")) == 6
    assert "volumes in ml are unknown" in page
    assert "SIMULATED" not in page
    assert re.search(r"^p1: EF [\d.]+ % biplane, valid over time$", said, re.MULTILINE)
    assert rows["p1_2CH + p1_4CH"]["verdict"] == content["biplane"]["p1"]["verdict"] == "valid over time"


def test_both_views_have_the_worse_verdict_and_say_why(clips: Path) -> None:
    masks = ventricles()
    masks[3] = masks[6] & (np.arange(SIZE[1]) < SIZE[1] // 2)
    write_sequence(clips / "labels" / "p1_2CH.nii.gz", masks * np.uint8(7), PLANE, None)
    out = clips / "out"
    code, said = run(str(clips / "labels"), "--images", str(clips / "images"), "--out", str(out), "--labels", "LV=7")
    assert code == 0, said
    with (out / "measures.csv").open() as table:
        rows = {row["clip_id"]: row for row in csv.DictReader(table)}
    assert rows["p1_4CH"]["verdict"] == "valid over time"
    assert rows["p1_2CH"]["verdict"] == rows["p1_2CH + p1_4CH"]["verdict"] == "refer"
    assert rows["p1_2CH + p1_4CH"]["broken"] == rows["p1_2CH"]["broken"] != ""
    assert re.search(r"^p1: EF [\d.]+ % biplane, refer: breaks a rule over time$", said, re.MULTILINE)
    assert "<strong>p1</strong> (p1_2CH, p1_4CH)" in (page := (out / "report.html").read_text())
    assert "as p1_2CH below" in page


def test_integers_that_nobody_explains_are_refused(clips: Path) -> None:
    from medfm_rl.errors import ConfigError

    with pytest.raises(ConfigError, match=r"nothing says what the integers in the masks mean; give --labels"):
        run(str(clips / "labels"), "--images", str(clips / "images"), "--out", str(clips / "out"))


def test_a_clip_without_masks_is_named_and_the_others_are_measured(clips: Path) -> None:
    (clips / "labels" / "p1_2CH.nii.gz").unlink()
    files = find_cases(DataSettings(path=clips / "images"))
    found = measure(files, find_masks(clips / "labels", files), LV, clips / "out")
    assert set(found.clips) == {"p1_4CH", "p2_4CH"}
    assert "there is no mask of frame 0" in found.problems["p1_2CH"]
    assert not found.biplane


def test_images_without_a_clip_and_structures_without_a_ventricle_are_refused(clips: Path, tmp_path: Path) -> None:
    files = find_cases(DataSettings(path=clips / "images"))
    with pytest.raises(DataError, match="none of A, B is called LV"):
        measure(files, {}, LabelSchema(("background", "A", "B"), (0, 1, 2)), clips / "out")
    with pytest.raises(DataError, match="no clip among the images"):
        measure([], {}, LV, clips / "out")


@pytest.mark.parametrize(
    ("name", "tags", "view"),
    [
        ("p1_2CH", {}, "2CH"),
        ("p1_A4C_loop", {}, "4CH"),
        ("patient0001_patient0001_4CH_half_sequence", {}, "4CH"),
        ("p1", {"view": "2CH"}, "2CH"),
        ("p1_2CH_4CH", {}, None),
        ("p14ch2", {}, None),
    ],
)
def test_views_are_those_of_tags_and_names(name: str, tags: dict[str, str], view: str | None) -> None:
    assert view_of(name, tags) == view


def test_the_loop_goes_at_its_own_pace_and_shows_every_frame() -> None:
    frames = greys().astype(np.float32)[:, None]
    times = tuple((np.arange(COUNT) * 0.04).tolist())
    clip = Clip("a", "p", frames, times, Geometry.unknown(2))
    made = Image.open(io.BytesIO(animate(clip, ventricles().astype(np.uint8), LV)))
    assert (made.n_frames, made.info["duration"]) == (COUNT, 40)


def test_reward_maps_give_intervals_in_table_json_and_page(clips: Path) -> None:
    for name in ("p1_2CH", "p1_4CH", "p2_4CH"):
        mask = ventricles()
        edge = mask ^ np.stack([ndimage.binary_erosion(frame, iterations=2) for frame in mask])
        known = PLANE if name.startswith("p1") else Geometry.unknown(2)
        write_sequence(clips / "rewards" / f"{name}.nii.gz", np.where(edge, 0.7, 0.98).astype(np.float32), known, None)
    out = clips / "out"
    arguments = [str(clips / "labels"), "--images", str(clips / "images"), "--labels", "LV=7", "--out", str(out)]
    code, said = run(*arguments, "--rewards", str(clips / "rewards"))
    assert code == 0, said
    assert "rewards leave open" in said
    with (out / "measures.csv").open() as table:
        rows = {row["clip_id"]: row for row in csv.DictReader(table)}
    known_row, unknown_row = rows["p1_4CH"], rows["p2_4CH"]
    assert float(known_row["edv_low"]) < float(known_row["edv_high"]) < 2 * float(known_row["edv"])
    assert unknown_row["edv_low"] == ""
    assert float(rows["p1_2CH + p1_4CH"]["ef_percent_low"]) < float(rows["p1_2CH + p1_4CH"]["ef_percent_high"])
    content = json.loads((out / "measures.json").read_text())
    assert content["intervals"]["level"] == 0.9
    assert "Gaussian field" in content["intervals"]["method"]
    with (out / "frames.csv").open() as table:
        frame = next(csv.DictReader(table))
    assert float(frame["area_LV_low"]) < float(frame["area_LV_high"])
    assert "Rewards leave open" in (out / "report.html").read_text().replace("rewards leave open", "Rewards leave open")
    (clips / "rewards" / "p1_4CH.nii.gz").unlink()
    code, said = run(*arguments, "--rewards", str(clips / "rewards"))
    assert "there is no reward map of frame 0" in said
    with pytest.raises(DataError, match="reward maps are probabilities"):
        run(*arguments, "--rewards", str(clips / "labels"))


def test_rules_are_learned_from_masks_and_judge_by_them(clips: Path) -> None:
    rules = clips / "rules.yaml"
    arguments = [str(clips / "labels"), "--images", str(clips / "images"), "--labels", "LV=7", "--out"]
    code, said = run(*arguments, str(clips / "first"), "--learn-rules", str(rules))
    assert code == 0, said
    assert "of 3 clips" in rules.read_text()
    rules.write_text("rules: [{measure: area, structure: LV, most: 0.0001, source: mine}]\n")
    code, said = run(*arguments, str(clips / "second"), "--rules", str(rules))
    assert code == 0, said
    content = json.loads((clips / "second" / "measures.json").read_text())
    assert {(rule["source"], rule["passed"]) for of in content["rules"].values() for rule in of} == {("mine", False)}
