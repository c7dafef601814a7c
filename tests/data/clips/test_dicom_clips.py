from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import RLELossless
from support.clip_files import COUNT, SIZE, compress_as_jpeg, greys, region, write_clip
from support.dicom_files import AXIAL, ENHANCED_MR, edit_dicom, item, numbers, write_dicom

from medfm_rl.data.clips import reading
from medfm_rl.data.clips.reading import ClipKind, find_clip
from medfm_rl.data.clips.regions import tissue_region
from medfm_rl.data.images import read_image
from medfm_rl.errors import DataError
from medfm_rl.types import Clip

SECTOR = (8, 4, 55, 43)


def read(path: Path) -> Clip:
    found = find_clip(path)
    assert found is not None
    assert found.kind is ClipKind.DICOM
    return found.read("a", "p")


def coloured(frames: np.ndarray) -> np.ndarray:
    return np.repeat(frames[..., None], 3, axis=-1)


def real(name: str) -> Path:
    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip(f"pydicom was installed without {name}")
    return Path(found)


# Kinds of pixels


def test_frames_are_cropped_to_the_region_and_have_its_spacing_and_place(tmp_path: Path) -> None:
    frames = greys()
    clip = read(write_clip(tmp_path / "a.dcm", frames, SequenceOfUltrasoundRegions=[region(*SECTOR)]))
    assert np.array_equal(clip.frames[:, 0], frames[:, 4:44, 8:56])
    assert clip.geometry.spacing == (0.5, 0.5)
    assert clip.geometry.origin == (4.0, 2.0)
    assert clip.times == pytest.approx(np.arange(COUNT) * 0.04)
    case = clip.frame(3)
    assert (case.case_id, case.patient_id, case.frame) == ("a_frame003", "p", 3)
    assert np.array_equal(case.image, clip.frames[3])


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1", "RGB", "YBR_FULL", "PALETTE COLOR"])
@pytest.mark.parametrize("compressed", [False, True])
def test_greys_in_every_coding_are_the_same_greys(tmp_path: Path, kind: str, compressed: bool) -> None:
    frames, path = greys(), tmp_path / "a.dcm"
    match kind:
        case "MONOCHROME1":
            write_clip(path, 255 - frames, kind)
        case "RGB":
            write_clip(path, coloured(frames), kind)
        case "YBR_FULL":
            write_clip(path, np.stack([frames, np.full_like(frames, 128), np.full_like(frames, 128)], -1), kind)
        case "PALETTE COLOR":
            table = np.arange(255, -1, -1, dtype=np.uint8)
            tables = {f"{name}PaletteColorLookupTableData": table.tobytes() for name in ("Red", "Green", "Blue")}
            described = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 8] for name in ("Red", "Green", "Blue")}
            write_clip(path, 255 - frames, kind, **tables, **described)
        case _:
            write_clip(path, frames)
    if compressed:
        made = pydicom.dcmread(path)
        made.compress(RLELossless)
        made.save_as(path)
    assert np.abs(read(path).frames[:, 0] - frames).max() <= 1


def test_greys_in_jpeg_with_halved_colours_are_grey(tmp_path: Path) -> None:
    frames, path = greys(), tmp_path / "a.dcm"
    write_clip(path, coloured(frames), "RGB")
    compress_as_jpeg(path, coloured(frames))
    clip = read(path)
    assert clip.frames.shape == (COUNT, 1, *SIZE)
    assert np.abs(clip.frames[:, 0] - frames).mean() < 6


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    frames = greys().astype(np.uint16) * 200
    assert np.array_equal(read(write_clip(tmp_path / "a.dcm", frames)).frames[:, 0], frames)


# Regions


@pytest.mark.parametrize(
    ("fields", "spacing"),
    [
        ({"PhysicalDeltaY": -0.04}, (0.5, 0.4)),
        ({"PhysicalUnitsXDirection": 1}, None),
        ({"PhysicalUnitsYDirection": 4}, None),
        ({"PhysicalDeltaX": 0.0}, None),
    ],
)
def test_spacing_is_that_of_centimetres_of_either_sign(
    tmp_path: Path, fields: dict[str, Any], spacing: tuple[float, float] | None
) -> None:
    path = write_clip(tmp_path / "a.dcm", greys(), SequenceOfUltrasoundRegions=[region(*SECTOR, **fields)])
    clip = read(path)
    assert clip.geometry.spacing == pytest.approx(spacing)
    assert clip.frames.shape[2:] == (40, 48)


def test_without_a_region_the_whole_frame_is_taken_and_the_spacing_is_unknown(tmp_path: Path) -> None:
    clip = read(write_clip(tmp_path / "a.dcm", greys()))
    assert clip.frames.shape[2:] == SIZE
    assert clip.geometry.spacing is None


def test_the_largest_region_of_tissue_is_taken_whatever_else_lies_there(tmp_path: Path) -> None:
    regions = [
        region(0, 44, 63, 47, RegionSpatialFormat=4, RegionDataType=10),
        region(0, 0, 20, 16),
        region(*SECTOR),
        region(0, 0, 63, 47, RegionSpatialFormat=2),
    ]
    clip = read(write_clip(tmp_path / "a.dcm", greys(), SequenceOfUltrasoundRegions=regions))
    assert clip.frames.shape[2:] == (40, 48)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(0, 20), st.integers(50, 70), st.integers(40, 60))
def test_a_region_never_leaves_the_frame(x0: int, y0: int, x1: int, y1: int) -> None:
    header = item(Rows=SIZE[0], Columns=SIZE[1], SequenceOfUltrasoundRegions=[region(x0, y0, x1, y1)])
    found = tissue_region(header, Path("a.dcm"))
    rows, columns = found.box
    assert 0 <= rows.start < rows.stop <= SIZE[0]
    assert 0 <= columns.start < columns.stop <= SIZE[1]
    # Beyond by far along both axes: the frame was shrunk, and nobody knows by how much.
    assert (found.spacing is None) == (x1 + 1 - SIZE[1] > 2 and y1 + 1 - SIZE[0] > 2)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([region(0, 0, 30, 47), region(32, 0, 62, 47)], "shows 2 views side by side"),
        ([region(*SECTOR, RegionSpatialFormat=2)], "none of its 1 ultrasound regions is tissue in two dimensions"),
        ([region(60, 4, 63, 43)], "holds no picture"),
    ],
)
def test_frames_without_one_picture_of_tissue_are_refused(tmp_path: Path, regions: list[Any], message: str) -> None:
    path = write_clip(tmp_path / "a.dcm", greys(), SequenceOfUltrasoundRegions=regions)
    with pytest.raises(DataError, match=rf"a\.dcm.*{message}"):
        read(path)


# Colours


@pytest.mark.parametrize("in_header", [False, True])
def test_colour_doppler_is_refused_by_its_region_or_by_its_pixels(tmp_path: Path, in_header: bool) -> None:
    frames = coloured(greys())
    frames[5:, 10:22, 20:36] = (200, 30, 30)
    frames[5:, 22:30, 20:36] = (30, 30, 200)
    flow = [region(20, 10, 35, 29, RegionDataType=2)] if in_header else []
    path = write_clip(tmp_path / "a.dcm", frames, "RGB", SequenceOfUltrasoundRegions=[region(*SECTOR), *flow])
    with pytest.raises(DataError, match=r"a\.dcm, frame 5.*colour Doppler"):
        read(path)


def test_a_clip_that_cannot_be_read_is_decoded_once_and_anew_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = coloured(greys())
    frames[:, 10:22, 20:36] = (200, 30, 30)
    path = write_clip(tmp_path / "a.dcm", frames, "RGB")
    decoded: list[Path] = []
    decode = reading.read_dicom_clip
    monkeypatch.setattr(reading, "read_dicom_clip", lambda path: (decoded.append(path), decode(path))[1])
    for _ in range(3):
        with pytest.raises(DataError, match=r"a\.dcm, frame 0.*colour Doppler"):
            read(path)
    assert len(decoded) == 1
    write_clip(path, greys())
    assert read(path).frames.shape == (COUNT, 1, *SIZE)


def test_a_colour_box_without_colours_and_coloured_letters_outside_of_the_region_are_no_doppler(tmp_path: Path) -> None:
    frames = coloured(greys())
    frames[:, :4] = (200, 30, 30)
    regions = [region(*SECTOR), region(20, 10, 35, 29, RegionDataType=2)]
    clip = read(write_clip(tmp_path / "a.dcm", frames, "RGB", SequenceOfUltrasoundRegions=regions))
    assert np.array_equal(clip.frames[:, 0], greys()[:, 4:44, 8:56])


def test_a_tint_of_everything_is_grey(tmp_path: Path) -> None:
    frames = (coloured(greys()) * np.array([1.0, 0.75, 0.4])).astype(np.uint8)
    clip = read(write_clip(tmp_path / "a.dcm", frames, "RGB"))
    assert np.corrcoef(clip.frames[:, 0].ravel(), greys().ravel())[0, 1] > 0.999


# Times


def test_times_of_a_vector_are_sums_of_its_steps(tmp_path: Path) -> None:
    steps = [0, *([30] * 5), *([50] * 6)]
    path = write_clip(tmp_path / "a.dcm", greys(), FrameTimeVector=steps, FrameIncrementPointer=0x00181065)
    assert read(path).times == pytest.approx(np.cumsum(steps) / 1000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"FrameTimeVector": [0, 30]}, f"gives 2 times for {COUNT} frames"),
        ({"FrameTimeVector": [0, *([0] * 11)]}, "do not grow"),
    ],
)
def test_times_that_cannot_be_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = write_clip(tmp_path / "a.dcm", greys(), **fields)
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_rate_gives_times_and_without_any_they_are_unknown(tmp_path: Path) -> None:
    assert read(write_clip(tmp_path / "a.dcm", greys(), CineRate="25")).times == pytest.approx(np.arange(COUNT) / 25)
    assert read(write_clip(tmp_path / "b.dcm", greys(), CineRate=None)).times is None


# A clip or a volume


def mr_cine(path: Path, places: list[float]) -> Path:
    groups = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=numbers((0, 0, place)))],
            PlaneOrientationSequence=[item(ImageOrientationPatient=numbers(AXIAL))],
            CardiacSynchronizationSequence=[item(NominalCardiacTriggerDelayTime=40.0 * index)],
        )
        for index, place in enumerate(places)
    ]
    return write_dicom(
        path,
        greys(len(places)),
        sop=ENHANCED_MR,
        Modality="MR",
        PerFrameFunctionalGroupsSequence=groups,
    )


def test_an_enhanced_mr_cine_is_a_clip_and_a_stack_of_the_same_kind_a_volume(tmp_path: Path) -> None:
    clip = read(mr_cine(tmp_path / "cine.dcm", [0.0] * 5))
    assert clip.times == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    assert clip.geometry.spacing == (1.0, 1.0)
    stack = mr_cine(tmp_path / "stack.dcm", [0.0, 1.0, 2.0, 3.0, 4.0])
    assert find_clip(stack) is None
    assert read_image(stack)[1].ndim == 3


def test_frames_of_no_time_and_no_place_are_no_clip_and_one_frame_is_an_image(tmp_path: Path) -> None:
    assert find_clip(write_clip(tmp_path / "a.dcm", greys(), Modality="OT", CineRate=None)) is None
    assert find_clip(write_clip(tmp_path / "b.dcm", greys()[0])) is None


def test_a_clip_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.dcm", greys())
    edit_dicom(path, PixelData=pydicom.dcmread(path).PixelData[:-5000])
    with pytest.raises(DataError, match=r"a\.dcm: its pixels cannot be read"):
        read(path)


@pytest.mark.parametrize("coding", ["native", "RLE", "JPEG", "JPEG without a table"])
def test_more_frames_than_the_header_says_are_refused(tmp_path: Path, coding: str) -> None:
    path = write_clip(
        tmp_path / "a.dcm",
        coloured(greys()) if "JPEG" in coding else greys(),
        "RGB" if "JPEG" in coding else "MONOCHROME2",
    )
    if coding == "RLE":
        made = pydicom.dcmread(path)
        made.compress(RLELossless)
        made.save_as(path)
    elif coding != "native":
        compress_as_jpeg(path, coloured(greys()))
    if coding in ("RLE", "JPEG without a table"):
        fragments = pydicom.dcmread(path).PixelData
        frames = list(generate_frames(fragments, number_of_frames=COUNT))
        edit_dicom(path, PixelData=encapsulate(frames, has_bot=False))
    assert read(path).frames.shape == (COUNT, 1, *SIZE)
    edit_dicom(path, NumberOfFrames=COUNT - 4)
    with pytest.raises(DataError, match=rf"a\.dcm: holds {COUNT} frames, and its header says {COUNT - 4}"):
        read(path)


# Real files that pydicom ships


def test_a_real_clip_whose_region_exceeds_a_shrunk_frame_has_unknown_spacing() -> None:
    # The depth of 19 cm that is written in it needs 1.07 mm a pixel, and the region says 0.51.
    clip = read(real("examples_ybr_color.dcm"))
    assert clip.frames.shape == (30, 1, 240, 320)
    assert clip.geometry.spacing is None
    assert clip.times is not None
    assert clip.times[-1] == pytest.approx(29 * 0.033333)


def test_the_region_of_a_real_frame_in_a_palette_is_cut_with_the_frame() -> None:
    header = pydicom.dcmread(real("examples_palette.dcm"), stop_before_pixels=True)
    found = tissue_region(header, Path("a.dcm"))
    assert found.box == (slice(60, 350), slice(120, 800))
    assert found.spacing == pytest.approx((0.26229, 0.26229), abs=1e-4)
