from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from support.clip_files import COUNT, greys, region, ventricles, write_clip
from support.dicom_files import AXIAL, ENHANCED_MR, ULTRASOUND_CLIP, edit_dicom, item, write_dicom

from medfm_rl.data.clips.sequences import read_sequence, write_sequence
from medfm_rl.data.images import write_image
from medfm_rl.data.labels import list_labels, read_any_labels
from medfm_rl.data.layouts import CaseFile, find_cases, split_by_patient
from medfm_rl.data.layouts.finding import find_data_set
from medfm_rl.data.mask_files import find_masks
from medfm_rl.data.ultrasound.beating import simulate_clips
from medfm_rl.data.ultrasound.resimulate import resimulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.errors import DataError
from medfm_rl.settings import DataSettings
from medfm_rl.types import Geometry, LabelSchema

COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
LV = LabelSchema(("background", "LV"), (0, 1))
PLANE = Geometry((0.5, 0.5), (4.0, 2.0), (1.0, 0.0, 0.0, 1.0))


def write_set(root: Path) -> None:
    """Two patients, one clip each with masks, and a still of the first."""
    for patient in ("p1", "p2"):
        frames = greys()
        path = root / "images" / f"{patient}_4CH.dcm"
        write_clip(path, frames, SequenceOfUltrasoundRegions=[region(8, 4, 55, 43)])
        masks = ventricles()[:, 4:44, 8:56].astype(np.uint8)
        write_sequence(root / "labels" / f"{patient}_4CH.nii.gz", masks, PLANE, None)
    write_image(root / "images" / "p1_still.png", greys()[0], Geometry.unknown(2))


def test_frames_are_cases_with_the_patient_and_the_mask_of_their_clip(tmp_path: Path) -> None:
    write_set(tmp_path)
    files = find_cases(DataSettings(path=tmp_path))
    assert len(files) == 2 * COUNT + 1
    frames = [file for file in files if file.clip_id == "p1_4CH"]
    assert [file.case_id for file in frames[:2]] == ["p1_4CH_frame000", "p1_4CH_frame001"]
    assert {file.patient_id for file in frames} == {"p1"}
    read = frames[5].read_labelled(LV)
    assert read.case.frame == 5
    assert np.array_equal(read.ground_truth, ventricles()[5, 4:44, 8:56])
    assert len({file.hash_images() for file in frames}) == COUNT
    first, second = split_by_patient(files, 0.5, 0)
    assert not {file.patient_id for file in first} & {file.patient_id for file in second}
    assert {len([file for file in part if file.clip_id is not None]) for part in (first, second)} == {COUNT}


def test_a_mask_of_a_clip_is_that_of_all_its_frames(tmp_path: Path) -> None:
    write_set(tmp_path)
    files = find_cases(DataSettings(path=tmp_path / "images"))
    masks = find_masks(tmp_path / "labels", files)
    assert len(masks) == 2 * COUNT
    assert masks["p2_4CH_frame003"] == tmp_path / "labels" / "p2_4CH.nii.gz"


def test_integers_of_a_sequence_are_listed_and_read_without_a_schema(tmp_path: Path) -> None:
    write_set(tmp_path)
    path = tmp_path / "labels" / "p1_4CH.nii.gz"
    assert list_labels(path) == {0: "", 1: ""}
    found = read_any_labels(path, (40, 48), PLANE, frame=4)
    assert np.array_equal(found.ids, ventricles()[4, 4:44, 8:56])


def test_a_clip_without_a_sector_is_shown_by_no_vendor(tmp_path: Path) -> None:
    write_set(tmp_path / "data")
    (tmp_path / "data" / "images" / "p1_still.png").unlink()
    files = find_cases(DataSettings(path=tmp_path / "data" / "images"))
    with pytest.raises(DataError, match=r"no case could be simulated; the first: .*p1_4CH\.dcm: no ultrasound sector"):
        resimulate_dataset(files, tmp_path / "out", vendor("handheld"), seed=0, workers=1)
    assert not (tmp_path / "out" / "images").exists()


def test_dicom_clips_in_folders_are_clips_of_their_own_and_slices_stay_a_series(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_clip(tmp_path / "p1" / "study" / name, greys(), SeriesInstanceUID=f"1.2.{ord(name)}")
    for index in range(3):
        slices = np.random.default_rng(index).integers(0, 99, (6, 5)).astype(np.uint16)
        write_dicom(tmp_path / "p2" / f"{index}.dcm", slices, position=(0, 0, index))
    files = find_cases(DataSettings(path=tmp_path))
    assert {file.clip_id for file in files} == {"p1_study_a", "p1_study_b", None}
    (volume,) = [file for file in files if file.clip_id is None]
    assert volume.read().shape == (3, 6, 5)
    assert {file.patient_id for file in files} == {"p1", "p2"}


def test_layout_clips_takes_the_sequences_of_camus_and_numbered_folders_and_skips_stills(tmp_path: Path) -> None:
    folder = tmp_path / "patient0001"
    folder.mkdir()
    for name, pixels in (("", greys()), ("_gt", ventricles().astype(np.uint8))):
        image = sitk.GetImageFromArray(pixels)
        sitk.WriteImage(image, str(folder / f"patient0001_4CH_half_sequence{name}.mhd"))
    write_image(folder / "patient0001_4CH_ED.nii.gz", greys()[0], PLANE)
    frames = tmp_path / "patient0002" / "loop"
    frames.mkdir(parents=True)
    for index, frame in enumerate(greys()[:4]):
        Image.fromarray(frame).save(frames / f"{index:03d}.png")
    found = find_data_set(DataSettings(path=tmp_path, layout="clips"))
    assert {(file.clip_id, file.patient_id) for file in found.cases} == {
        ("patient0001_patient0001_4CH_half_sequence", "patient0001"),
        ("loop", "patient0002"),
    }
    assert [path.name for paths in found.skipped.values() for path in paths] == ["patient0001_4CH_ED.nii.gz"]
    labelled = [file for file in found.cases if file.label_path is not None]
    assert len(labelled) == COUNT
    assert np.array_equal(labelled[3].read_labelled(LV).ground_truth, ventricles()[3])


def write_pictures(folder: Path, frames: np.ndarray, first: int = 0, name: str = "frame_") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames, first):
        Image.fromarray(frame).save(folder / f"{name}{index:03d}.png")


def clips_of(root: Path, layout: Literal["folder", "clips"] = "clips") -> dict[str, list[CaseFile]]:
    """The frames of each clip, in their order."""
    found: dict[str, list[CaseFile]] = {}
    for file in find_cases(DataSettings(path=root, layout=layout)):
        found.setdefault(str(file.clip_id), []).append(file)
    return found


# Names


def test_folders_of_one_name_and_dicom_that_would_be_called_alike_are_clips_of_their_own(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        write_pictures(tmp_path / "pictures" / patient / "frames", greys()[:3])
    write_pictures(tmp_path / "pictures" / "p3" / "loop", greys()[:3])
    assert {name: len(files) for name, files in clips_of(tmp_path / "pictures").items()} == {
        "p1_frames": 3,
        "p2_frames": 3,
        "loop": 3,
    }
    for name in ("PAT1/IM1", "PAT1/IM2", "PAT1_IM1/a"):
        write_clip(tmp_path / "dicom" / f"{name}.dcm", greys())
    for layout in ("clips", "folder"):
        found = clips_of(tmp_path / "dicom", layout)  # type: ignore[arg-type]
        assert {name: (len(files), files[0].image_paths[0].name) for name, files in found.items()} == {
            "PAT1_IM1": (COUNT, "IM1.dcm"),
            "PAT1_IM2": (COUNT, "IM2.dcm"),
            "PAT1_IM1_a": (COUNT, "a.dcm"),
        }


def test_clips_whose_names_stay_equal_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("IM1", "IM1.dcm", "IM2.dcm"):
        write_clip(tmp_path / "PAT1" / name, greys())
    files = find_cases(DataSettings(path=tmp_path))
    assert [file.case_id for file in files if file.problem] == ["PAT1_IM1"]
    assert "two images have the name PAT1_IM1 (IM1, IM1.dcm)" in str(files[0].problem)
    assert len(files) == 1 + COUNT


def test_a_picture_with_the_name_of_a_frame_is_not_taken_for_it(tmp_path: Path) -> None:
    write_sequence(tmp_path / "p1.nii.gz", greys(), PLANE, None)
    write_image(tmp_path / "p1_frame003.png", greys()[0], Geometry.unknown(2))
    clip, still = find_cases(DataSettings(path=tmp_path))
    assert "another image has the name of its frame p1_frame003" in str(clip.problem)
    assert still.read().shape == greys().shape[1:]


def test_a_folder_that_is_given_as_here_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "p1_loop", greys()[:3])
    monkeypatch.chdir(tmp_path / "p1_loop")
    assert [file.case_id for file in clips_of(Path())["p1_loop"]] == [f"p1_loop_frame{index:03d}" for index in range(3)]


# Damage


def test_a_damaged_clip_is_a_case_that_says_why(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.dcm", greys())
    write_clip(tmp_path / "b.dcm", greys())
    (tmp_path / "b.dcm").write_bytes((tmp_path / "b.dcm").read_bytes()[:300])
    (tmp_path / "c.nii.gz").write_bytes(b"no image")
    problems = {file.case_id: file.problem for file in find_cases(DataSettings(path=tmp_path, layout="clips"))}
    assert len(problems) == COUNT + 2
    for name in ("b", "c"):
        assert "cannot be read" in str(problems[name])


@pytest.mark.parametrize("place", ["", "p1/study"])
def test_a_report_beside_clips_is_skipped_and_a_clip_without_its_size_is_not(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    write_clip(folder / "a.dcm", greys())
    for name, sop in (("b", ULTRASOUND_CLIP), ("c", COMPREHENSIVE_SR)):
        write_clip(folder / f"{name}.dcm", greys())
        edit_dicom(folder / f"{name}.dcm", Rows=None, Columns=None, SOPClassUID=sop)
    (folder / "d.dcm").write_bytes(b"damaged")
    found = find_data_set(DataSettings(path=tmp_path, layout="clips"))
    assert [path.name for paths in found.skipped.values() for path in paths] == ["c.dcm"]
    problems = {file.image_paths[0].name: str(file.problem) for file in found.cases}
    assert problems.keys() == {"a.dcm", "b.dcm", "d.dcm"}
    assert "says neither Rows nor Columns" in problems["b.dcm"]
    assert "cannot be read" in problems["d.dcm"]


def test_times_that_do_not_grow_are_the_reason_whatever_the_layout(tmp_path: Path) -> None:
    times = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 0])],
            PlaneOrientationSequence=[item(ImageOrientationPatient=list(AXIAL))],
            CardiacSynchronizationSequence=[item(NominalCardiacTriggerDelayTime=time)],
        )
        for time in (0.0, 80.0, 40.0)
    ]
    write_dicom(tmp_path / "a.dcm", greys()[:3], sop=ENHANCED_MR, Modality="MR", PerFrameFunctionalGroupsSequence=times)
    write_clip(tmp_path / "b.dcm", greys())
    for layout in ("auto", "clips"):
        first = find_cases(DataSettings(path=tmp_path, layout=layout))[0]  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"a\.dcm: the times of its frames do not grow"):
            first.read()


def test_lost_numbers_and_pictures_without_one_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path / "p1", greys()[:4])
    write_pictures(tmp_path / "p1", greys()[8:11], first=8)
    write_pictures(tmp_path / "p2", greys()[:3])
    Image.fromarray(greys()[0]).save(tmp_path / "p2" / "thumb.png")
    write_image(tmp_path / "p3.png", greys()[0], Geometry.unknown(2))
    assert set(clips_of(tmp_path)) == {"p1"}
    assert "clip p1: no frame has the number 4 to 7" in caplog.text
    assert "4 no clip, since thumb.png of the same folder has no number (p2/frame_000.png" in caplog.text
    assert "1 no clip, and layout clips takes clips alone (p3.png)" in caplog.text


def test_frames_of_several_clips_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p1", greys()[:6], name="a_")
    write_pictures(tmp_path / "p1", greys()[6:], first=6, name="b_")
    with pytest.raises(DataError, match=r"p1: holds the frames of several clips .* \(a_000\.png, b_006\.png\)"):
        find_cases(DataSettings(path=tmp_path, layout="clips"))


def test_without_any_image_the_endings_of_clips_are_told_too(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=r"names of images end in .*\.png.*\.avi, \.mp4, and DICOM"):
        find_cases(DataSettings(path=tmp_path))


def test_the_spacing_of_a_clip_is_not_called_unknown_where_another_region_has_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = region(0, 0, 7, 47, PhysicalDeltaX=0.1, PhysicalDeltaY=0.1)
    write_clip(tmp_path / "a.dcm", greys(), SequenceOfUltrasoundRegions=[region(8, 4, 55, 43), other])
    assert find_cases(DataSettings(path=tmp_path))[0].read().geometry.spacing == (0.5, 0.5)
    assert "spacing is taken for unknown" not in caplog.text
    write_clip(tmp_path / "still.dcm", greys()[0], SequenceOfUltrasoundRegions=[region(8, 4, 55, 43), other])
    assert find_cases(DataSettings(path=tmp_path))[-1].read().geometry.spacing is None
    assert "spacing is taken for unknown" in caplog.text


# Masks in a labelled data set


def write_masks(root: Path, form: str) -> None:
    """Masks of the clip p1: a sequence, or of its first two frames as pictures."""
    root.mkdir(parents=True)
    if form == "sequence":
        write_sequence(root / "p1.nii.gz", ventricles().astype(np.uint8), Geometry.unknown(2), None)
        return
    name, first = {"flat": ("p1_frame", 0), "beside": ("p1/frame_", 1)}[form]
    for index in range(2):
        (root / "p1").mkdir(exist_ok=True)
        write_image(root / f"{name}{index + first:03d}.png", ventricles()[index].astype(np.uint8), Geometry.unknown(2))


@pytest.mark.parametrize(
    ("clip", "form"),
    [("pictures", "sequence"), ("pictures", "flat"), ("pictures", "beside"), ("file", "sequence"), ("file", "flat")],
)
def test_masks_of_a_clip_are_a_sequence_or_of_single_frames(tmp_path: Path, clip: str, form: str) -> None:
    if clip == "pictures":
        write_pictures(tmp_path / "images" / "p1", greys(), first=1)
    else:
        write_sequence(tmp_path / "images" / "p1.nii.gz", greys(), Geometry.unknown(2), None)
    write_masks(tmp_path / "labels", form)
    frames = clips_of(tmp_path)["p1"]
    labelled = [file for file in frames if file.label_path is not None]
    assert len(frames) == COUNT
    assert [file.frame for file in labelled] == list(range(COUNT if form == "sequence" else 2))
    for index, file in enumerate(labelled):
        assert np.array_equal(file.read_labelled(LV).ground_truth, ventricles()[index])


@pytest.mark.parametrize("mask", ["PAT1_{}", "PAT1/{}"])
def test_masks_of_dicom_clips_in_a_folder_have_their_names(tmp_path: Path, mask: str) -> None:
    for name in ("IM1", "IM2"):
        write_clip(tmp_path / "images" / "PAT1" / f"{name}.dcm", greys())
        path = tmp_path / "labels" / f"{mask.format(name)}.nii.gz"
        write_sequence(path, ventricles().astype(np.uint8), Geometry.unknown(2), None)
    files = find_cases(DataSettings(path=tmp_path))
    assert {file.clip_id for file in files} == {"PAT1_IM1", "PAT1_IM2"}
    assert all(file.label_path is not None and file.image_paths[0].stem in file.label_path.name for file in files)


def test_a_mask_in_another_folder_is_that_of_the_picture_of_its_name(tmp_path: Path) -> None:
    # The number of the picture is not that of the frame, which is counted from 0.
    write_pictures(tmp_path / "images" / "p1", greys()[:4], first=1, name="frame")
    write_pictures(tmp_path / "images" / "p2", greys()[:4], first=1, name="frame")
    files = find_cases(DataSettings(path=tmp_path / "images", layout="clips"))
    for name in ("p1/frame001.png", "p1/frame004.png", "p2_frame001.png"):
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "masks" / name, ventricles()[0].astype(np.uint8), Geometry.unknown(2))
    masks = find_masks(tmp_path / "masks", files)
    assert {case: path.name for case, path in masks.items()} == {
        "p1_frame000": "frame001.png",
        "p1_frame003": "frame004.png",
        "p2_frame001": "p2_frame001.png",
    }


def test_masks_of_no_frame_and_two_of_a_frame_are_refused_by_name(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images" / "p1", greys()[:3])
    write_pictures(tmp_path / "images" / "p2", greys()[:3])
    write_pictures(tmp_path / "images" / "p3", greys()[:3])
    write_sequence(tmp_path / "labels" / "p3.nii.gz", ventricles(3).astype(np.uint8), Geometry.unknown(2), None)
    for name in ("p1_frame002.png", "p1_frame003.png", "p2_frame000.png", "p2/frame_000.png", "p3_frame000.png"):
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "labels" / name, ventricles()[0].astype(np.uint8), Geometry.unknown(2))
    problems = {file.case_id: str(file.problem) for file in find_cases(DataSettings(path=tmp_path, layout="clips"))}
    assert "no image of that name" in problems["p1_frame003"]
    assert "two masks have the name p2" in problems["p2"]
    assert "two masks have the name p3 (p3.nii.gz, p3_frame000.png)" in problems["p3"]
    assert problems["p1_frame002"] == "None"


def test_simulated_clips_keep_masks_of_single_frames(tmp_path: Path) -> None:
    simulate_clips(tmp_path / "a", vendor("cart"), 1, seed=1, size=(40, 48), frames=3)
    for path in (tmp_path / "a" / "labels").iterdir():
        masks, _, _ = read_sequence(path)
        path.unlink()
        write_image(
            path.parent / path.name.replace(".nii.gz", "_frame001.png"),
            masks[1, 0].astype(np.uint8),
            Geometry.unknown(2),
        )
    files = find_cases(DataSettings(path=tmp_path / "a"))
    resimulate_dataset(files, tmp_path / "b", vendor("handheld"), seed=0, workers=1)
    made = find_cases(DataSettings(path=tmp_path / "b"))
    assert [(file.case_id, file.label_path is not None) for file in made] == [
        (file.case_id, file.frame == 1) for file in files
    ]


def test_what_is_three_dimensional_today_takes_no_time_for_depth(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(greys()), str(tmp_path / "p1.nii.gz"))
    for index, frame in enumerate(greys()[:3]):
        Image.fromarray(frame).save(tmp_path / f"p2_{index}.png")
    files = find_cases(DataSettings(path=tmp_path))
    assert [file.clip_id for file in files] == [None] * 4
    assert files[0].read().shape == greys().shape


def test_what_is_wrong_with_a_clip_is_said_and_not_that_its_masks_have_no_image(tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / part / "p1").mkdir(parents=True)
        for name in ("001", "1", "002"):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / part / "p1" / f"{name}.png")
    with pytest.raises(DataError, match="has the same number"):
        find_cases(DataSettings(path=tmp_path, layout="clips"))
