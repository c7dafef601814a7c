from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medfm_rl.data.files import hash_folder
from medfm_rl.data.images import read_image
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.ultrasound.resimulate import resimulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.settings import DataSettings
from medfm_rl.types import LabelSchema

HANDHELD = vendor("handheld")
SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})


@pytest.fixture
def cases(simulated_echo: Path) -> list[CaseFile]:
    """Six frames of two patients."""
    return find_cases(DataSettings(path=simulated_echo / "a"))[:6]


@pytest.fixture
def own_cases(simulated_echo: Path, tmp_path: Path) -> list[CaseFile]:
    """Four frames in a folder that the test may change."""
    for part in ("images", "labels"):
        (tmp_path / "in" / part).mkdir(parents=True)
        for path in sorted((simulated_echo / "a" / part).iterdir())[:4]:
            shutil.copy(path, tmp_path / "in" / part)
    return find_cases(DataSettings(path=tmp_path / "in"))


def record_of(out: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads((out / "simulation.json").read_text())
    return record


def written(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def break_frame(case: CaseFile) -> bytes:
    """Makes a frame without a sector of a case, and returns what was there."""
    before = case.image_paths[0].read_bytes()
    noise = np.random.default_rng(0).integers(1, 255, (32, 32)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(noise), case.image_paths[0])
    return before


def test_names_geometry_and_masks_are_kept_and_the_data_is_marked(cases: Sequence[CaseFile], tmp_path: Path) -> None:
    out = tmp_path / "out"
    resimulate_dataset(cases, out, HANDHELD, seed=0, workers=1)
    found = find_cases(DataSettings(path=out))
    assert [(case.case_id, case.patient_id) for case in found] == [(case.case_id, case.patient_id) for case in cases]
    for ours, theirs in zip(found, cases, strict=True):
        assert ours.image_paths[0].name == theirs.image_paths[0].name
        assert ours.label_path is not None
        assert theirs.label_path is not None
        assert ours.label_path.read_bytes() == theirs.label_path.read_bytes()
        shown, frame = ours.read_labelled(SCHEMA).case, theirs.read()
        assert shown.shape == frame.shape
        assert shown.geometry == frame.geometry
        assert not np.array_equal(shown.image, frame.image)
        assert sitk.ReadImage(ours.image_paths[0]).GetPixelID() == sitk.sitkUInt8
    record = record_of(out)
    assert record["simulated"] is True
    assert record["seed"] == 0
    assert record["complete"] is True
    assert isinstance(record["profile"], dict)
    assert record["profile"]["name"] == "handheld"


def test_the_seed_alone_decides_about_the_bytes(cases: Sequence[CaseFile], tmp_path: Path) -> None:
    resimulate_dataset(cases, tmp_path / "one", HANDHELD, seed=0, workers=1)
    resimulate_dataset(list(reversed(cases)), tmp_path / "two", HANDHELD, seed=0, workers=2)
    assert written(tmp_path / "one") == written(tmp_path / "two")
    resimulate_dataset(cases, tmp_path / "other", HANDHELD, seed=1, workers=1)
    assert hash_folder(tmp_path / "one" / "images") != hash_folder(tmp_path / "other" / "images")
    assert hash_folder(tmp_path / "one" / "labels") == hash_folder(tmp_path / "other" / "labels")
    resimulate_dataset(cases[:1], tmp_path / "alone", HANDHELD, seed=0, workers=1)
    name = f"images/{cases[0].case_id}.nii.gz"
    assert written(tmp_path / "alone")[name] == written(tmp_path / "one")[name]


def test_frames_of_one_patient_do_not_share_their_speckle(cases: Sequence[CaseFile], tmp_path: Path) -> None:
    twin = replace(cases[0], case_id="sim0001_copy")
    resimulate_dataset([cases[0], twin], tmp_path / "out", HANDHELD, seed=0, workers=1)
    frames = [read_image(path)[0] for path in sorted((tmp_path / "out" / "images").iterdir())]
    assert not np.array_equal(*frames)


def test_unlabelled_frames_stay_unlabelled(cases: Sequence[CaseFile], tmp_path: Path) -> None:
    resimulate_dataset(
        [replace(case, label_path=None) for case in cases[:2]], tmp_path / "out", HANDHELD, seed=0, workers=1
    )
    assert not (tmp_path / "out" / "labels").exists()
    assert all(case.label_path is None for case in find_cases(DataSettings(path=tmp_path / "out")))


def test_progress_counts_the_frames(cases: Sequence[CaseFile], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    resimulate_dataset(
        cases[:3], tmp_path / "out", HANDHELD, seed=0, workers=2, progress=lambda *done: seen.append(done)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_an_interrupted_call_is_marked_as_incomplete_and_goes_on_where_it_was(
    cases: Sequence[CaseFile], tmp_path: Path
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        resimulate_dataset(cases, out, HANDHELD, seed=0, workers=1, progress=interrupt)
    assert record_of(out)["complete"] is False
    assert record_of(out)["simulated"] is True
    first = out / "images" / f"{cases[0].case_id}.nii.gz"
    stamp = first.stat().st_mtime_ns
    resimulate_dataset(cases, out, HANDHELD, seed=0, workers=1)
    resimulate_dataset(cases, tmp_path / "straight", HANDHELD, seed=0, workers=1)
    assert written(out) == written(tmp_path / "straight")
    assert first.stat().st_mtime_ns == stamp


def test_a_frame_without_a_sector_is_named_and_can_be_repaired(own_cases: Sequence[CaseFile], tmp_path: Path) -> None:
    out = tmp_path / "out"
    repaired = break_frame(own_cases[2])
    (problem,) = resimulate_dataset(own_cases, out, HANDHELD, seed=0, workers=1)
    assert str(own_cases[2].image_paths[0]) in problem
    assert "no ultrasound sector found" in problem
    assert len(list((out / "images").iterdir())) == len(list((out / "labels").iterdir())) == len(own_cases) - 1
    assert record_of(out)["complete"] is False
    assert not (out / "images" / f"{own_cases[2].case_id}.nii.gz").exists()
    # Nothing half-written lies about.
    assert not list(out.rglob(".*"))
    own_cases[2].image_paths[0].write_bytes(repaired)
    resimulate_dataset(own_cases, out, HANDHELD, seed=0, workers=1)
    resimulate_dataset(own_cases, tmp_path / "straight", HANDHELD, seed=0, workers=1)
    assert written(out) == written(tmp_path / "straight")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((32, 32), 7, np.uint8), "every pixel has the value 7"),
        (np.full((32, 32), np.nan, np.float32), "NaN"),
        (
            np.random.default_rng(0).random((4, 32, 32)).astype(np.float32),
            r"grey-value frame .* shape \(1, 4, 32, 32\)",
        ),
    ],
    ids=["constant", "nan", "volume"],
)
def test_what_is_no_frame_is_refused_by_name(
    own_cases: Sequence[CaseFile], tmp_path: Path, pixels: np.ndarray, message: str
) -> None:
    path = tmp_path / "frame.mha"
    sitk.WriteImage(sitk.GetImageFromArray(pixels), path)
    cases = [own_cases[0], replace(own_cases[1], image_paths=(path,))]
    (problem,) = resimulate_dataset(cases, tmp_path / "out", HANDHELD, seed=0, workers=1)
    assert re.search(message, problem)
    assert str(path) in problem


def test_a_colour_frame_is_refused(own_cases: Sequence[CaseFile], tmp_path: Path) -> None:
    path = tmp_path / "colour.png"
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), path)
    with pytest.raises(DataError, match=r"colour\.png: a grey-value frame is needed"):
        resimulate_dataset([CaseFile("colour", "colour", (path,))], tmp_path / "out", HANDHELD, seed=0, workers=1)


@pytest.mark.parametrize(("profile", "seed"), [(vendor("cart"), 0), (HANDHELD, 1)])
def test_a_folder_of_another_vendor_or_seed_is_left_alone(
    cases: Sequence[CaseFile], tmp_path: Path, profile: object, seed: int
) -> None:
    out = tmp_path / "out"
    resimulate_dataset(cases[:1], out, HANDHELD, seed=0, workers=1)
    before = written(out)
    with pytest.raises(ConfigError, match="another vendor or seed; choose another folder") as caught:
        resimulate_dataset(cases[:2], out, profile, seed=seed, workers=1)  # type: ignore[arg-type]
    assert str(out) in str(caught.value)
    assert written(out) == before


def test_a_folder_with_something_else_is_left_alone(own_cases: Sequence[CaseFile], tmp_path: Path) -> None:
    """The folder of the originals, for one: it would be marked as simulated and keep its frames."""
    source = tmp_path / "in"
    before = written(source)
    with pytest.raises(DataError, match="holds no simulation; give a new folder") as caught:
        resimulate_dataset(own_cases, source, HANDHELD, seed=0, workers=1)
    assert str(source) in str(caught.value)
    assert written(source) == before


def test_a_folder_whose_record_is_damaged_is_left_alone(cases: Sequence[CaseFile], tmp_path: Path) -> None:
    (tmp_path / "simulation.json").write_text("{")
    with pytest.raises(DataError, match=r"simulation\.json: cannot be read"):
        resimulate_dataset(cases[:1], tmp_path, HANDHELD, seed=0, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["simulation.json"]


def test_an_empty_folder_is_as_good_as_a_new_one(cases: Sequence[CaseFile], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    resimulate_dataset(cases[:1], tmp_path / "out", HANDHELD, seed=0, workers=1)
    assert len(find_cases(DataSettings(path=tmp_path / "out"))) == 1


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_of_header_and_pixel_file_are_simulated_whole(
    own_cases: Sequence[CaseFile], tmp_path: Path, compressed: bool
) -> None:
    """As CAMUS is: the mask's header names its pixel file, `.raw` or, compressed, `.zraw`."""
    folder = tmp_path / "camus" / "patient0001"
    folder.mkdir(parents=True)
    labelled = own_cases[0].read_labelled(SCHEMA)
    for name, pixels in (("", labelled.case.image[0].astype(np.uint8)), ("_gt", labelled.ground_truth)):
        image = sitk.GetImageFromArray(pixels)
        image.SetSpacing((0.3, 4.0))
        sitk.WriteImage(image, folder / f"patient0001_2CH_ED{name}.mhd", useCompression=compressed)
    (case,) = find_cases(DataSettings(path=tmp_path / "camus"))
    for out in (tmp_path / "first", tmp_path / "second"):
        resimulate_dataset([case], out, HANDHELD, seed=0, workers=1)
        shutil.move(out, out.with_name(f"{out.name}-moved"))
    first, second = (tmp_path / f"{name}-moved" for name in ("first", "second"))
    assert written(first) == written(second)
    (found,) = find_cases(DataSettings(path=first))
    assert (found.case_id, found.patient_id) == ("patient0001_2CH_ED", "patient0001")
    moved = found.read_labelled(SCHEMA)
    assert np.array_equal(moved.ground_truth, labelled.ground_truth)
    assert moved.case.geometry.spacing == pytest.approx((0.3, 4.0))


def test_a_mask_without_its_pixel_file_is_named(own_cases: Sequence[CaseFile], tmp_path: Path) -> None:
    mask = tmp_path / "mask.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((32, 32), np.uint8)), mask)
    mask.with_suffix(".raw").unlink()
    with pytest.raises(DataError, match=r"mask\.mhd: its pixel file mask\.raw does not lie beside it"):
        resimulate_dataset([replace(own_cases[0], label_path=mask)], tmp_path / "out", HANDHELD, seed=0, workers=1)


def test_a_mask_in_a_folder_of_its_own_goes_along(own_cases: Sequence[CaseFile], tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "IM0001").write_bytes(b"\0" * 128 + b"DICM and what follows")
    assert (
        resimulate_dataset([replace(own_cases[0], label_path=folder)], tmp_path / "out", HANDHELD, 0, workers=1) == []
    )
    copied = tmp_path / "out" / "labels" / own_cases[0].case_id
    assert hash_folder(copied) == hash_folder(folder)


def test_black_around_a_frame_changes_nothing_in_its_sector(own_cases: Sequence[CaseFile], tmp_path: Path) -> None:
    """The resolution is that of the depth of the sector: with the height of the frame it was finer on a padded one."""
    frame = own_cases[0].read()
    for name, margin in (("tight", 6), ("padded", 16)):
        image = sitk.GetImageFromArray(np.pad(frame.image[0].astype(np.uint8), margin))
        image.SetSpacing((5.0, 5.0))
        (tmp_path / name / "images").mkdir(parents=True)
        sitk.WriteImage(image, tmp_path / name / "images" / "p1_a.nii.gz")
        resimulate_dataset(
            find_cases(DataSettings(path=tmp_path / name)), tmp_path / f"{name} out", HANDHELD, seed=0, workers=1
        )
    tight, padded = (
        read_image(tmp_path / f"{name} out" / "images" / "p1_a.nii.gz")[0][0] for name in ("tight", "padded")
    )
    assert np.array_equal(padded[10:-10, 10:-10], tight)


def test_png_stays_png_and_without_spacing(own_cases: Sequence[CaseFile], tmp_path: Path) -> None:
    frame = own_cases[0].read()
    for suffix in ("png", "jpg"):
        path = tmp_path / f"frame.{suffix}"
        sitk.WriteImage(sitk.GetImageFromArray(frame.image[0].astype(np.uint8)), path)
        out = tmp_path / f"out-{suffix}"
        resimulate_dataset([CaseFile("frame", "frame", (path,))], out, HANDHELD, seed=0, workers=1)
        # JPEG would blur the speckle.
        assert [image.name for image in (out / "images").iterdir()] == ["frame.png"]
        assert read_image(out / "images" / "frame.png")[1].spacing is None


@pytest.mark.data
def test_native_camus_frames_are_simulated_with_their_masks(real_data: Path, tmp_path: Path) -> None:
    if not (real_data / "camus_native").is_dir():
        pytest.skip(f"{real_data / 'camus_native'} is not there")
    cases = find_cases(DataSettings(path=real_data / "camus_native"))
    resimulate_dataset(cases, tmp_path / "out", HANDHELD, seed=0, workers=1)
    found = find_cases(DataSettings(path=tmp_path / "out"))
    assert [case.case_id for case in found] == [case.case_id for case in cases]
    for ours, theirs in zip(found, cases, strict=True):
        shown, frame = ours.read_labelled(SCHEMA), theirs.read_labelled(SCHEMA)
        assert np.array_equal(shown.ground_truth, frame.ground_truth)
        assert shown.case.geometry.matches(frame.case.geometry)
        assert ((shown.case.image > 0) == (frame.case.image > 0)).mean() > 0.95
