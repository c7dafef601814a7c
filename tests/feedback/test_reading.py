"""What reviewers hand back becomes entries, or an error that names it and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mask_files import NAMES as SEGMENTS
from support.mask_files import VOLUME

from medfm_rl.data.images import write_image, write_labels
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import DataError, UserError
from medfm_rl.feedback import CorrectedMask, FeedbackError, Grade, Measurement, Preference, Verdict
from medfm_rl.feedback.reading.corrections import read_corrected
from medfm_rl.feedback.reading.judgements import read_preferences, read_verdicts
from medfm_rl.feedback.reading.measurements import read_measurements
from medfm_rl.feedback.reading.shown import Batch, Review, ShownCases
from medfm_rl.feedback.units import QUANTITIES, in_own_unit, units_of
from medfm_rl.settings import DataSettings
from medfm_rl.types import Geometry, LabelMap, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})
GRID = Geometry((0.5, 0.7), (1.0, 2.0), (1.0, 0.0, 0.0, 1.0))
REVIEW = Review("r1", "audit", "d" * 64)


def labels(lv: int) -> LabelMap:
    """LV in some rows, MYO in one."""
    found = np.zeros((8, 10), np.uint8)
    found[1 : 1 + lv, 2:7] = 1
    found[7] = 2
    return found


def save(folder: Path, case: str, mask: LabelMap, suffix: str = ".nii.gz", grid: Geometry = GRID) -> Path:
    path = folder / f"{case}{suffix}"
    write_labels(path, mask, grid, SCHEMA)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, and the masks that were shown of them."""
    rng = np.random.default_rng(0)
    for case in ("p1_a", "p1_b", "p2_a"):
        write_image(tmp_path / "images" / f"{case}.nii.gz", rng.random((8, 10)).astype(np.float32), GRID)
        save(tmp_path / "masks", case, labels(3))
    return tmp_path


@pytest.fixture
def shown(folder: Path) -> ShownCases:
    files = find_cases(DataSettings(path=folder / "images"))
    return ShownCases(files, find_masks(folder / "masks", files), SCHEMA)


@pytest.fixture
def corrected(folder: Path, shown: ShownCases) -> Callable[[], Batch]:
    def read() -> Batch:
        masks = find_masks(folder / "corrected", list(shown.files.values()), every=True)
        return read_corrected(shown, masks, REVIEW)

    return read


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".png"])
def test_a_corrected_mask_says_what_it_replaces_and_changes(
    folder: Path, shown: ShownCases, corrected: Callable[[], Batch], suffix: str
) -> None:
    save(folder / "corrected", "p1_a", labels(4), suffix)
    batch = corrected()
    (entry,) = batch.entries
    assert isinstance(entry, CorrectedMask)
    assert (entry.case, entry.patient, entry.changed) == ("p1_a", "p1", ("LV",))
    assert (entry.reviewer, entry.drawn, entry.model_hash) == ("r1", "audit", "d" * 64)
    assert entry.image_sha256 == shown.files["p1_a"].hash_images()
    kept = {mask.sha256: mask for mask in batch.masks}
    assert np.array_equal(kept[entry.mask_sha256].labels, labels(4))
    assert entry.replaces_sha256 is not None
    assert np.array_equal(kept[entry.replaces_sha256].labels, labels(3))


def test_a_mask_that_was_left_as_it_was_is_an_acceptance(folder: Path, corrected: Callable[[], Batch]) -> None:
    save(folder / "corrected", "p1_a", labels(3), ".mha")
    (entry,) = corrected().entries
    assert isinstance(entry, Verdict)
    assert (entry.decision, entry.structure) == ("accept", None)


def test_a_mask_where_none_was_shown_replaces_nothing(folder: Path) -> None:
    files = find_cases(DataSettings(path=folder / "images"))
    save(folder / "corrected", "p1_a", labels(3))
    batch = read_corrected(ShownCases(files, {}, SCHEMA), find_masks(folder / "corrected", files), REVIEW)
    (entry,) = batch.entries
    assert isinstance(entry, CorrectedMask)
    assert (entry.replaces_sha256, entry.changed) == (None, ())


def test_all_masks_that_cannot_be_used_are_named_with_a_remedy(folder: Path, corrected: Callable[[], Batch]) -> None:
    shifted = Geometry(GRID.spacing, (9.0, 2.0), GRID.direction)
    save(folder / "corrected", "p1_a", labels(4), grid=shifted)
    strange = labels(4)
    write_image(folder / "corrected" / "p1_b.nii.gz", np.where(strange == 2, 7, strange).astype(np.uint8), GRID)
    save(folder / "corrected", "p2_a", labels(4))
    with pytest.raises(FeedbackError) as caught:
        corrected()
    message = str(caught.value)
    assert message.startswith("2 of 3 corrected masks cannot be used, and nothing was added")
    assert re.search(r"p1_a.nii.gz: the mask lies elsewhere in space .* resample", message)
    assert re.search(r"p1_b.nii.gz: label 7 is not one of those .* Correct the mask", message)


def test_a_mask_of_an_image_that_was_not_shown_is_refused(folder: Path, corrected: Callable[[], Batch]) -> None:
    save(folder / "corrected", "p1_a", labels(4))
    save(folder / "corrected", "p7_a", labels(4))
    with pytest.raises(DataError, match=r"there is no image for p7_a.nii.gz; .* give the images"):
        corrected()


def test_segments_of_slicer_are_read_by_their_names(tmp_path: Path) -> None:
    import SimpleITK as sitk
    from support.mask_files import itk

    volume = np.zeros((2, 8, 10), np.uint8)
    volume[:, 2:5, 3:6] = 1
    image = np.random.default_rng(0).random((2, 8, 10)).astype(np.float32)
    write_image(tmp_path / "images" / "p1.nii.gz", image, VOLUME)
    picture = itk(volume)
    for index, name in enumerate(SEGMENTS):
        for key, value in {"ID": name, "Name": name, "LabelValue": str(3 - index), "Layer": "0"}.items():
            picture.SetMetaData(f"Segment{index}_{key}", value)
    (tmp_path / "corrected").mkdir()
    sitk.WriteImage(picture, str(tmp_path / "corrected" / "p1.seg.nrrd"))
    files = find_cases(DataSettings(path=tmp_path / "images"))
    batch = read_corrected(ShownCases(files, {}, SCHEMA), find_masks(tmp_path / "corrected", files), REVIEW)
    # Slicer's 1 is the third segment, LA, whatever the schema's integers are.
    assert np.array_equal(batch.masks[0].labels, np.where(volume == 1, 3, 0))


def test_verdicts_and_grades_of_a_table(folder: Path, shown: ShownCases) -> None:
    text = 'Case,Structure,Verdict,Comment\np1_a,all,accept,\np1_b,LV,Reject,"apex, cut off"\np2_a,,3,\np2_a,MYO,0,\n\n'
    batch = read_verdicts(shown, table(folder, text), REVIEW)
    first, second, third, fourth = batch.entries
    assert isinstance(first, Verdict)
    assert isinstance(second, Verdict)
    assert isinstance(third, Grade)
    assert isinstance(fourth, Grade)
    assert (first.decision, first.structure) == ("accept", None)
    assert (second.decision, second.structure, second.comment) == ("reject", "LV", "apex, cut off")
    assert (third.grade, third.structure, fourth.grade, fourth.structure) == (3, None, 0, "MYO")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,verdict\np1_c,accept\n", r"line 2: case p1_c was not shown, .* is p1_\w meant\?"),
        ("case,verdict\np1_a,5\n", r"line 2: the verdict on case p1_a is '5'; it must be accept or reject, or a grade"),
        ("case,structure,verdict\np1_a,RV,accept\n", r"line 2: there is no structure 'RV', but LV, MYO, LA"),
        ("case,verdict\np1_a,\n", "line 2: verdict is empty"),
        ("case,opinion\np1_a,good\n", "names no column verdict; needed are case, verdict"),
        ("case,verdict,mood\np1_a,accept,good\n", "column 'mood' is not known"),
        ("case,verdict\n", "has no row"),
        ("", "names no column case"),
        ("case,verdict\np1_a,accept,more\n", "line 2: has 3 values"),
        ('case,verdict\n"p1_a,accept\n', "is no CSV"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_line(
    folder: Path, shown: ShownCases, text: str, message: str
) -> None:
    with pytest.raises(FeedbackError, match=message) as caught:
        read_verdicts(shown, table(folder, text), REVIEW)
    assert "table.csv" in str(caught.value)


def test_preferences_name_masks_or_folders(folder: Path, shown: ShownCases) -> None:
    save(folder / "other", "p1_a", labels(5))
    path = save(folder, "single", labels(2))
    text = f"case,better,worse,structure\np1_a,other,masks,LV\np1_b,masks,{path},\n"
    batch = read_preferences(shown, table(folder, text), REVIEW)
    first, second = batch.entries
    assert isinstance(first, Preference)
    assert isinstance(second, Preference)
    kept = {mask.sha256: mask.labels for mask in batch.masks}
    assert np.array_equal(kept[first.better_sha256], labels(5))
    assert np.array_equal(kept[second.worse_sha256], labels(2))
    assert (first.structure, second.structure) == ("LV", None)
    with pytest.raises(FeedbackError, match="no mask of case p2_a in this folder"):
        read_preferences(shown, table(folder, "case,better,worse\np2_a,other,masks\n"), REVIEW)


def test_measurements_are_brought_to_their_own_units(folder: Path, shown: ShownCases) -> None:
    text = (
        "﻿patient;name;value;unit;uncertainty;structure;case\np1;ef;0,55;ratio;0,05;;\np1;EDV;120;mL;;;\n"
        "p2;area;12,5;cm²;;LV;p2_a\np2;Length;8;cm;0,5;LV;\n"
    )
    batch = read_measurements(table(folder, text), REVIEW, shown, {"p1", "p2"})
    found = [entry for entry in batch.entries if isinstance(entry, Measurement)]
    assert [(entry.name, entry.unit) for entry in found] == [
        ("EF", "%"), ("EDV", "ml"), ("area", "mm2"), ("length", "mm"),
    ]  # fmt: skip
    assert [entry.value for entry in found] == pytest.approx([55, 120, 1250, 80])
    assert [entry.uncertainty for entry in found] == [pytest.approx(5), None, None, pytest.approx(5)]
    assert (found[2].case, found[2].structure, found[0].case) == ("p2_a", "LV", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("p1,EF,55,ml", r"line 2: unit 'ml' is none of EF; give it in %, percent, ratio, fraction"),
        ("p1,EF,55,", "line 2: EF has no unit"),
        ("p1,LVEDD,55,mm", r"line 2: nothing is known of a measurement 'LVEDD'; known are EF \(%\)"),
        ("p1,EF,.55,%", r"EF is 0\.55 %, .* is it a ratio"),
        ("p1,EF,555,%", "EF is 555 %"),
        ("p1,EDV,-3,ml", "EDV is -3 ml, and can be above 0"),
        ("p1,EDV,many,ml", "line 2: value is 'many'"),
        ("p1,EDV,nan,ml", "line 2: value is 'nan'"),
        ("p1,EDV,1_0,ml", "line 2: value is '1_0', and must be a number"),
        ("p11,EDV,100,ml", r"line 2: there is no image of patient p11; is p1 meant\?"),
    ],
)
def test_a_measurement_that_cannot_be_meant_is_named(folder: Path, row: str, message: str) -> None:
    with pytest.raises(FeedbackError, match=message):
        read_measurements(table(folder, f"patient,name,value,unit\n{row}\n"), REVIEW, patients={"p1", "p2"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("p1,area,900,mm2,LVX", r"line 2: there is no structure 'LVX', but LV, MYO; is LV meant\?"),
        ("p1,diameter,9,mm,PA", "line 2: there is no structure 'PA', but LV, MYO; correct the name"),
        ("p1,volume,90,ml,", r"line 2: does not say which structure the volume is of; .* \(LV, MYO\)"),
    ],
)
def test_a_measurement_of_a_structure_that_is_not_there_is_named(folder: Path, row: str, message: str) -> None:
    path = table(folder, f"patient,name,value,unit,structure\n{row}\n")
    with pytest.raises(FeedbackError, match=message):
        read_measurements(path, REVIEW, structures=("LV", "MYO"))
    assert len(read_measurements(path, REVIEW).entries) == 1


def test_a_case_of_another_patient_is_refused(folder: Path, shown: ShownCases) -> None:
    text = "patient,name,value,unit,case\np1,area,100,mm2,p2_a\n"
    with pytest.raises(FeedbackError, match="case p2_a is of patient p2, and not of p1"):
        read_measurements(table(folder, text), REVIEW, shown)


@given(
    name=st.sampled_from(sorted(QUANTITIES)),
    value=st.floats(1e-3, 1e6),
    data=st.data(),
)
def test_a_value_is_the_same_in_every_unit(name: str, value: float, data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from(units_of(name)))
    one, own = in_own_unit(name, 1.0, unit)
    found, _ = in_own_unit(name, value, unit.upper())
    assert own == QUANTITIES[name].unit
    assert math.isclose(found, value * one)


@pytest.mark.parametrize("reviewer", ["Dr. Jane Doe", "jane@hospital.org", "", "r" * 65])
def test_a_reviewer_is_an_opaque_id(reviewer: str) -> None:
    with pytest.raises(UserError, match="and no name"):
        Review(reviewer)
