"""Folders as archives write them, what is skipped in them, and patients that are hardly those of the names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm_rl.data.dicom import SEGMENTATIONS
from medfm_rl.data.images import read_image, write_image
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.layouts.patients import doubt_patients, name_patients, patient_of
from medfm_rl.errors import DataError
from medfm_rl.settings import DataSettings
from medfm_rl.types import Geometry, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1})


def found(root: Path, **changes: Any) -> list[CaseFile]:
    return find_cases(DataSettings(path=root, **changes))


def write_scan(path: Path, start: int = 0) -> None:
    write_image(path, start + np.arange(20, dtype=np.uint8).reshape(4, 5), Geometry.unknown(2))


def write_mask(path: Path) -> None:
    write_image(path, (np.arange(20).reshape(4, 5) > 9).astype(np.uint8), Geometry.unknown(2))


def write_series(folder: Path, ending: str = "", count: int = 3) -> None:
    """A series whose files are named by numbers."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    for index in range(count):
        image = sitk.GetImageFromArray(np.arange(20, dtype=np.int16).reshape(1, 4, 5) + 100 * index)
        image.SetSpacing((0.5, 0.8, 2.0))
        tags = {"0008|0060": "MR", "0020|000d": "1.2.3", "0020|000e": "1.2.3.4", "0020|0032": f"0\\0\\{2 * index}"}
        for tag, value in {**tags, "0020|0013": str(index + 1)}.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{index}.dcm"))
        writer.Execute(image)
        (folder / f"{index}.dcm").rename(folder / f"IM{index:04d}{ending}")


@pytest.mark.parametrize("ending", ["", ".dcm", ".4711", ".IMA"])
def test_a_tree_of_patients_studies_and_series_is_read(tmp_path: Path, ending: str) -> None:
    root = tmp_path / "archive"
    write_series(root / "PAT_1" / "ST1" / "SE1", ending)
    write_series(root / "PAT_2" / "ST1" / "SE1", ending)
    shutil.copytree(root / "PAT_1" / "ST1", root / "PAT_1" / "ST2")
    (root / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    cases = found(root)
    assert [(case.case_id, case.patient_id) for case in cases] == [
        ("PAT_1_ST1_SE1", "PAT_1"),
        ("PAT_1_ST2_SE1", "PAT_1"),
        ("PAT_2_ST1_SE1", "PAT_2"),
    ]
    assert cases[2].read().image[0, :, 0, 0].tolist() == [0, 100, 200]


def test_pairs_of_analyze_are_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Pair(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "in" / "brain.img")
    with pytest.raises(DataError, match=r"2 of Analyze, or NIfTI in two files, to be written as .nii.gz \(brain.hdr"):
        found(tmp_path / "in")
    with pytest.raises(DataError, match=r"brain\.img: is Analyze, .* write it as \.nii\.gz"):
        read_image(tmp_path / "in" / "brain.img")


@pytest.mark.parametrize("layout", ["images above", "images below", "beside"])
def test_masks_of_a_tree_are_those_of_the_same_place(tmp_path: Path, layout: str) -> None:
    for patient in ("p1", "p2"):
        image, mask = {
            "images above": (f"images/{patient}/st/x.nii.gz", f"labels/{patient}/st/x.nii.gz"),
            "images below": (f"{patient}/st/images/x.nii.gz", f"{patient}/st/labels/x.nii.gz"),
            "beside": (f"{patient}/st/x.nii.gz", f"{patient}/st/x_gt.nii.gz"),
        }[layout]
        write_scan(tmp_path / image)
        write_mask(tmp_path / mask)
    cases = found(tmp_path)
    assert [(case.case_id, case.patient_id) for case in cases] == [("p1_st_x", "p1"), ("p2_st_x", "p2")]
    assert [case.read_labelled(SCHEMA).ground_truth.sum() for case in cases] == [10, 10]


def test_what_is_skipped_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scan(tmp_path / "p1" / "a.png")
    for name in ("README.md", "p1/report.pdf", "p1/._a.png", ".DS_Store", "p2/notes.txt", "p2/x.mat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image at all")
    (case,) = found(tmp_path)
    assert case.read().shape == (4, 5)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for words in (
        "6 entries are skipped",
        "2 hidden (",
        "4 no image by its name and content",
        "README.md",
        "p2/notes.txt, ...",
    ):
        assert words in record.getMessage()


@pytest.mark.parametrize("name", ["1-1.dcm", "IM0001"])
def test_masks_and_structure_sets_in_an_archive_are_no_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    write_series(tmp_path / "p1" / "CT", ".dcm")
    sample = next((tmp_path / "p1" / "CT").iterdir())
    for kind in (SEGMENTATIONS[0], "1.2.840.10008.5.1.4.1.1.481.3"):
        data = pydicom.dcmread(sample)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = kind
        if kind != SEGMENTATIONS[0]:
            del data.PixelData, data.Rows, data.Columns
        (tmp_path / "p1" / kind[-3:]).mkdir()
        data.save_as(tmp_path / "p1" / kind[-3:] / name)
    (case,) = found(tmp_path)
    assert case.case_id == "p1_CT"
    assert "2 entries are skipped: 2 no image by its name and content (p1/" in caplog.text


def test_a_seg_beside_its_image_is_its_mask(tmp_path: Path) -> None:
    write_series(tmp_path / "series", ".dcm", count=1)
    next((tmp_path / "series").iterdir()).rename(tmp_path / "p1.dcm")
    (tmp_path / "series").rmdir()
    data = pydicom.dcmread(tmp_path / "p1.dcm")
    data.SOPClassUID = SEGMENTATIONS[0]
    data.save_as(tmp_path / "p1_seg.dcm")
    (case,) = found(tmp_path)
    assert case.label_path == tmp_path / "p1_seg.dcm"


def test_folders_beside_the_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scan(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "contours" / "a.png")
    (tmp_path / "README").write_text("read me")
    (tmp_path / "simulation.json").write_text("{}")
    assert [case.case_id for case in found(tmp_path)] == ["a"]
    assert "2 entries are skipped" in caplog.text
    assert "contours/" in caplog.text


def test_masks_may_lie_in_a_folder_of_that_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scan(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a.png")
    assert found(tmp_path)[0].read_labelled(SCHEMA).ground_truth.sum() == 10
    write_mask(tmp_path / "labels" / "a.png")
    (case,) = found(tmp_path)
    assert case.label_path == tmp_path / "labels" / "a.png"
    assert "masks/ beside labels/" in caplog.text


def test_results_within_the_images_are_no_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scan(tmp_path / "a.png")
    write_mask(tmp_path / "out" / "labels" / "a.nii.gz")
    (tmp_path / "out" / "audit.jsonl").write_text("{}\n")
    (case,) = found(tmp_path)
    assert case.image_paths == (tmp_path / "a.png",)
    assert case.label_path is None
    assert "an output of medfm-rl (out/)" in caplog.text


def test_pixels_of_an_mhd_are_not_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(20, dtype=np.uint8).reshape(4, 5)), str(tmp_path / "a.mhd"))
    assert found(tmp_path)[0].read().shape == (4, 5)
    assert not caplog.records


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    write_scan(tmp_path / "p1" / "a.png")
    (tmp_path / "p1" / "again").symlink_to(tmp_path)
    assert [case.case_id for case in found(tmp_path)] == ["p1_a"]


def test_a_folder_that_may_not_be_looked_into_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scan(tmp_path / "p1" / "a.png")
    write_scan(tmp_path / "p2" / "a.png")
    listed = Path.iterdir

    def refuse(folder: Path) -> Any:
        if folder.name == "p2":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    first, second = found(tmp_path)
    assert first.read().shape == (4, 5)
    with pytest.raises(DataError, match="p2: you have no permission"):
        second.read()


def test_images_of_one_name_cost_no_other(tmp_path: Path) -> None:
    for name in ("a.png", "a.nii.gz", "b.png"):
        write_scan(tmp_path / "images" / name)
    write_mask(tmp_path / "labels" / "b.png")
    write_mask(tmp_path / "labels" / "c.png")
    cases = {case.case_id: case for case in found(tmp_path)}
    assert cases["b"].read_labelled(SCHEMA).ground_truth.sum() == 10
    for name, problem in (("a", "two images have the name a"), ("c", "there is no image of that name")):
        with pytest.raises(DataError, match=problem):
            cases[name].read()


# Patients


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["P001-2CH-ED", "P001-2CH-ES", "P002-2CH-ED", "P002-2CH-ES"], "each of the 4 .* several begin with 'P001'"),
        (["P001 2CH", "P001 4CH", "P002 2CH"], "several begin with 'P001'"),
        (["P001ED", "P001ES", "P002ED", "P002ES"], "several begin with 'P001'"),
        (["img-001-a", "img-001-b", "img-002-a"], "several begin with 'img-001'"),
        (
            ["gdrishtiGS_002", "gdrishtiGS_004", "ndrishtiGS_008", "ndrishtiGS_010"],
            "4 cases .* of 2 patients, .* number",
        ),
        (["case_001", "case_002", "case_003"], "all 3 cases are taken for those of one patient"),
    ],
)
def test_a_grouping_that_is_hardly_right_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str], reason: str
) -> None:
    """Report 38, and the eyes of Drishti-GS."""
    for name in names:
        write_scan(tmp_path / f"{name}.png")
    found(tmp_path)
    (record,) = caplog.records
    message = record.getMessage()
    assert re.search(reason, message)
    assert names[0] in message
    assert "--patient-pattern" in message
    caplog.clear()
    # Who says it is not contradicted.
    assert len({case.patient_id for case in found(tmp_path, patient_pattern=r"^(.*\d+)")}) >= 2
    assert not caplog.records


@pytest.mark.parametrize(
    "names",
    [
        ["P001_2CH_ED", "P001_2CH_ES", "P002_2CH_ED", "P002_2CH_ES"],
        ["P001", "P002", "P003"],
        ["case-001", "case-002", "case-003"],
        ["smith_ED", "smith_ES", "jones_ED", "jones_ES"],
        ["a3f9", "77c1", "9be0"],
        ["one"],
    ],
)
def test_groupings_that_may_be_right_are_not_doubted(names: list[str]) -> None:
    assert doubt_patients([(name, patient_of(name)) for name in names]) is None


@settings(max_examples=50)
@given(
    patients=st.integers(2, 6),
    frames=st.integers(2, 4),
    separator=st.sampled_from("- .+"),
    stem=st.sampled_from(["P", "pat", "case-", "Site A "]),
)
def test_frames_joined_by_anything_but_an_underscore_are_doubted(
    patients: int, frames: int, separator: str, stem: str
) -> None:
    names = [f"{stem}{patient:03d}{separator}{frame}" for patient in range(patients) for frame in range(frames)]
    found_doubt = doubt_patients([(name, patient_of(name)) for name in names])
    assert found_doubt is not None
    assert "patient of its own" in found_doubt


def test_the_first_patients_are_named_with_their_images() -> None:
    named = name_patients(["b", "a", "a", "c", "d"], ["b1", "a1", "a2", "c1", "d1"])
    assert named.startswith("patients found: 4 (a: a1 and 1 more; b: b1; c: c1; ...)")
    assert "patient_pattern (--patient-pattern)" in named
    assert name_patients(["a", "a", "b"]).startswith("patients found: 2 (a with 2 images; b with 1 image)")


def test_a_pattern_that_fits_some_names_costs_no_other(tmp_path: Path) -> None:
    for name in ("p1_a", "p2_a", "scout"):
        write_scan(tmp_path / f"{name}.png")
    cases = {case.case_id: case for case in found(tmp_path, patient_pattern=r"^p(\d+)")}
    assert [cases[name].read().patient_id for name in ("p1_a", "p2_a")] == ["1", "2"]
    with pytest.raises(DataError, match="finds no patient in the case name 'scout'"):
        cases["scout"].read()
