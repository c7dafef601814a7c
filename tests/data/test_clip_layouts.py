from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from support.clip_files import COUNT, greys, region, ventricles, write_clip
from support.dicom_files import write_dicom

from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.images import write_image
from medfm_rl.data.labels import list_labels, read_any_labels
from medfm_rl.data.layouts import find_cases, split_by_patient
from medfm_rl.data.layouts.finding import find_data_set
from medfm_rl.data.mask_files import find_masks
from medfm_rl.data.ultrasound.resimulate import resimulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.errors import DataError
from medfm_rl.settings import DataSettings
from medfm_rl.types import Geometry, LabelSchema

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


def test_what_is_three_dimensional_today_takes_no_time_for_depth(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(greys()), str(tmp_path / "p1.nii.gz"))
    for index, frame in enumerate(greys()[:3]):
        Image.fromarray(frame).save(tmp_path / f"p2_{index}.png")
    files = find_cases(DataSettings(path=tmp_path))
    assert [file.clip_id for file in files] == [None] * 4
    assert files[0].read().shape == greys().shape
