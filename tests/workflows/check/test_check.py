"""`medfm_rl.check`: what a user is told of a data set before anything uses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from support.dicom_files import write_dicom
from support.mask_files import dicom_seg, slicer
from support.page_pictures import pictures_of

import medfm_rl
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.base import ExpectedValues
from medfm_rl.data.checks import CaseFacts, ImageFacts
from medfm_rl.data.checks.facts import Values
from medfm_rl.data.checks.result import DataCheck
from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import ConfigError, DataError, UserError
from medfm_rl.runs.models import SegmenterFolder
from medfm_rl.settings import DataSettings
from medfm_rl.workflows.check.check import CheckRequest
from medfm_rl.workflows.check.segmenter import find_unexpected_values


def check(folder: Path, **request: object) -> DataCheck:
    return medfm_rl.check(DataSettings(path=folder), CheckRequest(**request))  # type: ignore[arg-type]


def write_volume(path: Path, pixels: np.ndarray, spacing: tuple[float, ...] = (0.8, 0.8, 3.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def volume(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 100, (4, 10, 12)).astype(np.float32)


def mask(*labels: int, at: int = 0) -> np.ndarray:
    drawn = np.zeros((4, 10, 12), dtype=np.uint8)
    for place, label in enumerate(labels):
        drawn[place, at : at + 3, 2:5] = label
    return drawn


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw data set of nnU-Net with six volumes, in which nothing is wrong."""
    folder = tmp_path / "Dataset007_Heart"
    for index in range(6):
        write_volume(folder / "imagesTr" / f"heart_{index}_0000.nii.gz", volume(index))
        write_volume(folder / "labelsTr" / f"heart_{index}.nii.gz", mask(1, 2, at=index))
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "LV": 1, "MYO": 2},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_it_says_what_is_read_and_as_what(raw: Path) -> None:
    result = check(raw)
    assert (result.usable, result.layout, result.patients) == (True, "nnunet", 6)
    assert result.patients_by == "the name of the case"
    assert result.labels == {"background": 0, "LV": 1, "MYO": 2}
    first = result.cases[0]
    assert (first.images, first.mask_file) == (("imagesTr/heart_0_0000.nii.gz",), "labelsTr/heart_0.nii.gz")
    assert first.image is not None
    assert (first.image.size, first.image.orientation) == ((12, 10, 4), "LPS")
    assert first.image.spacing == pytest.approx((0.8, 0.8, 3.0))
    assert first.mask is not None
    assert first.mask.pixels == {"LV": 9, "MYO": 9}
    assert result.findings == []


def test_what_is_refused_is_refused_in_the_words_of_the_commands(raw: Path) -> None:
    broken = raw / "imagesTr" / "heart_1_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    write_volume(raw / "labelsTr" / "heart_2.nii.gz", mask(1, 7))
    write_volume(raw / "imagesTr" / "heart_3_0000.nii.gz", np.full((4, 10, 12), 5, dtype=np.float32))
    write_volume(raw / "labelsTr" / "heart_4.nii.gz", mask(1, 2), (0.8, 0.8, 9.0))
    (raw / "imagesTr" / "notes.txt").write_text("of no use")
    result = check(raw)
    assert not result.usable
    assert result.skipped == {"of another name than CASE_0000 and the ending in dataset.json": ["imagesTr/notes.txt"]}
    files = {file.case_id: file for file in find_cases(DataSettings(path=raw))}
    described = files["heart_0"].described
    assert described is not None
    assert result.refused.keys() == {"heart_1", "heart_2", "heart_3", "heart_4"}
    for name, problems in result.refused.items():
        with pytest.raises(DataError) as refused:
            files[name].read_labelled(described.own_schema())
        assert problems == (str(refused.value),)


def test_a_mask_that_cannot_be_used_hides_nothing_of_its_image(raw: Path) -> None:
    write_volume(raw / "labelsTr" / "heart_2.nii.gz", mask(1, 7))
    facts = check(raw).cases[2]
    assert facts.image is not None
    assert facts.mask is None


def test_page_and_json_hold_everything_and_load_nothing(raw: Path, tmp_path: Path) -> None:
    write_volume(raw / "labelsTr" / "heart_2.nii.gz", mask(1, 7))
    write_volume(raw / "labelsTr" / "heart_3.nii.gz", mask())
    result = check(raw, out=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6
    assert len(pictures_of(tmp_path / "out" / "report.html")) == 6
    assert "http" not in page.lower()
    for text in ("5 of 6 cases can be used; 1 cannot", "1 of 5 masks is empty", "heart_2.nii.gz: label 7 is not one"):
        assert text in page
    assert page.index('alt="heart_2') < page.index('alt="heart_3') < page.index('alt="heart_0')
    content = json.loads((tmp_path / "out" / "check.json").read_text())
    assert content == json.loads(json.dumps(result.to_json()))
    assert (content["format"], content["usable"], content["labels"]["MYO"]) == (1, False, 2)
    assert {path.stem for path in (tmp_path / "out" / "thumbnails").iterdir()} == {f"heart_{n}" for n in range(6)}


def test_pictures_show_the_plane_with_the_mask_in_the_colours_of_the_structures(raw: Path, tmp_path: Path) -> None:
    check(raw, out=tmp_path / "out")
    picture = np.asarray(Image.open(tmp_path / "out" / "thumbnails" / "heart_0.png"))[..., :3]
    assert picture.shape == (10, 12, 3)
    assert tuple(picture[0, 2]) == (0xE6, 0x9F, 0x00)


def test_it_writes_nothing_unasked_and_not_into_the_data(raw: Path) -> None:
    before = sorted(raw.rglob("*"))
    check(raw)
    with pytest.raises(ConfigError, match="lies in the data set"):
        check(raw, out=raw / "checked")
    assert sorted(raw.rglob("*")) == before


def test_a_picture_that_cannot_be_written_is_no_fault_of_the_case(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thumbnails").write_text("in the way")
    with pytest.raises(DataError, match=r"heart_0\.png: cannot be written"):
        check(raw, out=tmp_path / "out")


def test_dicom_trees_are_read_by_study_and_series_without_a_name_of_the_headers(tmp_path: Path) -> None:
    for patient in range(3):
        for slice_ in range(3):
            path = tmp_path / "archive" / f"P{patient}" / "CT" / f"IM{slice_}"
            pixels = np.random.default_rng(10 * patient + slice_).integers(0, 2000, (8, 8), dtype=np.uint16)
            write_dicom(path, pixels, (0, 0, 3 * slice_), RescaleIntercept="-1024", PatientName="Secret^Person")
    result = check(tmp_path / "archive", out=tmp_path / "out")
    assert [case.case_id for case in result.cases] == ["P0_CT", "P1_CT", "P2_CT"]
    assert result.patients_by.startswith("the outermost folder")
    assert result.usable
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(b"Secret" in content for content in written)


def test_masks_that_name_their_segments_are_read_by_the_names(tmp_path: Path) -> None:
    drawn = mask(1, 2, 3)
    for index, write in enumerate((dicom_seg(), slicer(), slicer(layered=True, cropped=True))):
        place = tmp_path / f"made-{index}"
        place.mkdir()
        made = write(place, drawn)
        ending = made.name.removeprefix("mask")
        (tmp_path / "set" / "labels").mkdir(parents=True, exist_ok=True)
        shutil.copy(made, tmp_path / "set" / "labels" / f"p{index}{ending}")
        image = sitk.GetImageFromArray(volume(index))
        image.SetSpacing((0.5, 0.7, 2.5))
        image.SetOrigin((1.0, 2.0, 3.0))
        (tmp_path / "set" / "images").mkdir(exist_ok=True)
        sitk.WriteImage(image, str(tmp_path / "set" / "images" / f"p{index}.nii.gz"))
    result = check(tmp_path / "set")
    assert result.usable, result.refused
    assert [dict(case.mask.pixels) for case in result.cases if case.mask] == [{"LV": 9, "MYO": 9, "LA": 9}] * 3


def test_integers_beyond_labels_are_refused_without_a_description_too(raw: Path) -> None:
    (raw / "dataset.json").unlink()
    folder = raw.parent / "plain"
    (raw / "labelsTr").rename(raw / "labels")
    (raw / "imagesTr").rename(raw / "images")
    raw.rename(folder)
    for path in (folder / "images").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    write_volume(folder / "labels" / "heart_1.nii.gz", volume(1).astype(np.int16))
    result = check(folder)
    (problem,) = result.refused["heart_1"]
    assert "more values beyond the 0 to 255 that labels have; is this an image, and not a mask?" in problem
    assert result.cases[0].mask is not None
    assert result.cases[0].mask.pixels == {"label 1": 9, "label 2": 9}


def test_masks_of_another_folder_take_the_place_of_those_of_the_data(raw: Path, tmp_path: Path) -> None:
    for index in (0, 1):
        write_volume(tmp_path / "masks" / f"heart_{index}.nii.gz", mask(1))
    write_volume(tmp_path / "masks" / "nobody.nii.gz", mask(1))
    result = check(raw, masks=tmp_path / "masks")
    found = {finding.kind: list(finding.cases) for finding in result.findings}
    assert found["mask-alone"] == ["nobody.nii.gz"]
    assert found["no-mask"] == [f"heart_{index}" for index in range(2, 6)]
    assert [case.mask_file is None for case in result.cases] == [False, False, True, True, True, True]


def test_an_empty_folder_is_refused_as_everywhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image found"):
        check(tmp_path)


def test_labels_need_masks_and_a_segmenter() -> None:
    with pytest.raises(ConfigError, match="--labels are the integers in --masks"):
        CheckRequest(labels="LV=1")


@pytest.fixture
def echo(simulated_echo: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "echo"
    shutil.copytree(simulated_echo / "b", folder)
    return folder


def test_a_segmenter_is_asked_for_its_channels_and_structures(
    tiny_unet: TorchModuleAdapter, echo: Path, tmp_path: Path
) -> None:
    tiny_unet.export(tmp_path / "segmenter")
    model = SegmenterFolder(tmp_path / "segmenter", "cpu")
    result = check(echo, model=model)
    assert result.usable, result.refused
    assert result.simulated
    assert result.segmenter is not None
    assert result.segmenter.rows["structures"] == "background 0, LV 1, MYO 2, LA 3"
    (echo / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "LV": 1, "MYO": 2}}))
    colours = sorted((echo / "images").iterdir())[0]
    pixels = np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(colours))))
    colours.unlink()
    Image.fromarray(np.stack([pixels.squeeze()] * 2 + [pixels.squeeze() // 2], -1).astype(np.uint8)).save(
        colours.with_name(colours.name.split(".")[0] + ".png")
    )
    result = check(echo, model=model)
    (by_names, names), (by_channels, of_colours) = result.refusals()
    assert "has no LA" in by_names
    assert len(names) == len(result.cases)
    assert "the image has 3 channels and the segmenter takes 1" in by_channels
    assert of_colours == [names[0]]


@pytest.mark.parametrize(
    ("low", "high", "named"),
    [(-1024, 3000, False), (0, 4024, True), (-300, 900, False), (0.0, 1.0, True)],
    ids=["HU", "with an offset of 1024", "HU of soft tissue and bone", "scaled to 1"],
)
def test_values_that_a_segmenter_of_ct_hardly_met_are_named(low: float, high: float, named: bool) -> None:
    wanted = ExpectedValues(-17, 201, "HU")
    values = Values(low, low, low, high, high, None)
    facts = CaseFacts("a", "a", image=ImageFacts((4, 4), None, None, (values,), False, ""))
    assert bool(find_unexpected_values([facts], [wanted])) == named
    assert find_unexpected_values([facts], [None]) == []


def test_refusals_are_those_of_adapt(tiny_unet: TorchModuleAdapter, echo: Path, tmp_path: Path) -> None:
    """The message of a segmenter names the case alone; both put the file in front."""
    tiny_unet.export(tmp_path / "segmenter")
    path = next(iter(sorted((echo / "images").iterdir())))
    path.write_bytes(b"nothing of the kind")
    result = check(echo, model=SegmenterFolder(tmp_path / "segmenter", "cpu"))
    ((problem,),) = result.refused.values()
    with pytest.raises(UserError) as refused:
        next(file for file in find_cases(DataSettings(path=echo)) if path in file.image_paths).read()
    assert problem == str(refused.value)
