from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, JPEGLosslessSV1
from scipy.spatial.transform import Rotation
from support.clip_files import region as tissue
from support.dicom_files import (
    AXIAL,
    CT,
    ENHANCED_MR,
    ULTRASOUND,
    ULTRASOUND_CLIP,
    edit_dicom,
    item,
    numbers,
    write_dicom,
)

from medfm_rl.data.dicom import SEGMENTATIONS
from medfm_rl.data.images import read_image, write_labels
from medfm_rl.errors import DataError
from medfm_rl.types import Geometry, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1})
ROWS, COLUMNS = 6, 5


def noise(*shape: int, dtype: type = np.int16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def places_in_headers(folder: Path) -> dict[int, np.ndarray]:
    """By instance number: where pydicom's header places the corners of a slice (PS3.3 C.7.6.2.1.1)."""
    places = {}
    for path in folder.glob("*.dcm"):
        header = pydicom.dcmread(path)
        rows, columns = np.reshape(np.array(header.ImageOrientationPatient, float), (2, 3))
        down, right = map(float, header.PixelSpacing)
        places[int(header.InstanceNumber)] = np.array(
            [
                np.array(header.ImagePositionPatient, float) + x * right * rows + y * down * columns
                for x in (0, header.Columns - 1)
                for y in (0, header.Rows - 1)
            ]
        )
    return places


def places_on_grid(geometry: Geometry, index: int) -> np.ndarray:
    corners = [(x, y, index, 1) for x in (0, COLUMNS - 1) for y in (0, ROWS - 1)]
    return np.array([geometry.affine @ corner for corner in corners])[:, :3]


def write_stack(folder: Path, positions: np.ndarray, axes: np.ndarray = AXIAL, shuffle: int = 0, **fields) -> Path:
    """Slice i holds noise and the value 1000 + i in its corner."""
    names = np.random.default_rng(shuffle).permutation(len(positions))
    for index, position in enumerate(positions):
        pixels = noise(ROWS, COLUMNS, seed=index)
        pixels[0, 0] = 1000 + index
        write_dicom(
            folder / f"{names[index]:03d}.dcm", pixels, position, np.ravel(axes), InstanceNumber=index + 1, **fields
        )
    return folder


@settings(max_examples=40, deadline=None)
@given(
    turn=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(st.floats(0.2, 3), st.floats(0.2, 3)),
    step=st.floats(0.3, 10),
    count=st.integers(2, 6),
    tilt=st.sampled_from([0.0, 0.0, 1e-5, 0.01, 0.2, -0.4]),
    jitter=st.sampled_from([0.0, 0.0, 1e-5, 1e-3, 0.05]),
    seed=st.integers(0, 1000),
)
def test_every_slice_lies_where_its_header_says_or_the_series_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
    turn: tuple[float, ...],
    spacing: tuple[float, float],
    step: float,
    count: int,
    tilt: float,
    jitter: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    axes = Rotation.from_euler("xyz", turn).as_matrix().T
    along = axes[2] + tilt * axes[1]
    positions = rng.uniform(-200, 200, 3) + np.outer(np.arange(count) * step, along)
    positions += rng.normal(0, jitter, positions.shape) if jitter else 0
    folder = write_stack(tmp_path_factory.mktemp("series"), positions, axes[:2], seed, spacing=spacing)
    side = min(*spacing, step)
    off = np.linalg.norm(positions - positions[0] - np.outer((positions - positions[0]) @ axes[2], axes[2]), axis=1)
    refused = None
    try:
        pixels, geometry = read_image(folder)
    except DataError as error:
        refused = str(error)
    if refused is not None:
        assert str(folder) in refused
        assert max(abs(tilt), jitter) >= 1e-4, f"refused for nothing: {refused}"
        return
    assert off.max() < 0.011 * side + 1e-3
    headers = places_in_headers(folder)
    for index in range(count):
        number = int(pixels[0, index, 0, 0]) - 1000 + 1
        error = np.linalg.norm(places_on_grid(geometry, index) - headers[number], axis=1).max()
        assert error <= 0.0101 * side
    # What is written lies there too, for ITK and for nibabel.
    write_labels(folder / "mask.nii.gz", (pixels[0] > 99).astype(np.uint8), geometry, SCHEMA)
    written = sitk.ReadImage(str(folder / "mask.nii.gz"))
    last = written.TransformIndexToPhysicalPoint((COLUMNS - 1, ROWS - 1, count - 1))
    assert np.allclose(last, places_on_grid(geometry, count - 1)[-1], atol=1e-2 * side + 1e-4)


def test_a_tilted_gantry_is_refused_with_its_angle_and_what_writes_it_upright(tmp_path: Path) -> None:
    axes = (1, 0, 0, 0, np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20)))
    write_stack(tmp_path, [(0, 0, 5 * index) for index in range(12)], axes, thickness=5)
    # 55 mm along z are 55 sin(20) beside the normal.
    with pytest.raises(DataError, match=r"sheared by 20 degrees \(a tilted gantry\).* 18\.8 mm from.*dcm2niix"):
        read_image(tmp_path)


@pytest.mark.parametrize("count", [2, 20])
def test_slices_of_one_place_are_a_clip_and_no_volume(tmp_path: Path, count: int) -> None:
    write_stack(tmp_path, [(0, 0, 0)] * count)
    with pytest.raises(DataError, match=rf"holds {count} frames over time.*a clip and no volume.*files of their own"):
        read_image(tmp_path)


def test_planes_turned_about_one_place_are_neither_clip_nor_volume(tmp_path: Path) -> None:
    for index, angle in enumerate((0, 30, 60)):
        axes = Rotation.from_euler("z", angle, degrees=True).as_matrix().T
        write_dicom(tmp_path / f"{index}.dcm", noise(ROWS, COLUMNS), (0, 0, 0), np.ravel(axes[:2]))
    with pytest.raises(DataError, match=r"1\.dcm is turned against 0\.dcm"):
        read_image(tmp_path)


def test_two_phases_in_one_series_are_refused(tmp_path: Path) -> None:
    write_stack(tmp_path, [(0, 0, 8 * (index // 2)) for index in range(12)])
    with pytest.raises(DataError, match=r"12 slices lie at 6 places, 2 at each .*several phases"):
        read_image(tmp_path)


def test_pictures_without_a_place_are_no_volume(tmp_path: Path) -> None:
    for index in range(3):
        write_dicom(tmp_path / f"{index}.dcm", noise(ROWS, COLUMNS))
    with pytest.raises(DataError, match="a clip and no volume"):
        read_image(tmp_path)


def change_place(folder: Path) -> None:
    edit_dicom(folder / "001.dcm", ImagePositionPatient=["0.1", "0", "2"])


def change_turn(folder: Path) -> None:
    edit_dicom(folder / "001.dcm", ImageOrientationPatient=["1", "0", "0", "0", "0", "-1"])


def change_size(folder: Path) -> None:
    write_dicom(folder / "001.dcm", noise(ROWS, COLUMNS + 1), (0, 0, 2))


def change_spacing(folder: Path) -> None:
    edit_dicom(folder / "001.dcm", PixelSpacing=["1.01", "1"])


def lose_place(folder: Path) -> None:
    edit_dicom(folder / "001.dcm", ImagePositionPatient=None)


def lose_spacing(folder: Path) -> None:
    for path in folder.iterdir():
        edit_dicom(path, PixelSpacing=None)


def copy_slice(folder: Path) -> None:
    (folder / "copy.dcm").write_bytes((folder / "001.dcm").read_bytes())


def add_series(folder: Path) -> None:
    write_dicom(folder / "x.dcm", noise(ROWS, COLUMNS), (0, 0, 9), series="1.2.3.10", SeriesDescription="T2 axial")


def skew(folder: Path) -> None:
    for path in folder.iterdir():
        edit_dicom(path, ImageOrientationPatient=["1", "0", "0", "0.1", "0.995", "0"])


def break_place(folder: Path) -> None:
    edit_dicom(folder / "001.dcm", ImagePositionPatient=["0", "2"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_place, r"slice 001\.dcm lies 0\.1 mm from its place .* 0\.1 of a pixel; 0\.01 is allowed"),
        (change_turn, r"001\.dcm is turned against 000\.dcm .*is it a localizer"),
        (change_size, r"5 x 6 pixels and 001\.dcm 6 x 6; slices of a volume are of one size"),
        (change_spacing, r"slice 001\.dcm lies 0\.05 mm from its place"),
        (lose_place, r"001\.dcm does not say where it lies"),
        (lose_spacing, "Pixel Spacing is missing"),
        (copy_slice, r"001\.dcm and copy\.dcm lie at the same place \(6 slices at 5 places\); is one a copy"),
        (add_series, r"one series, this one holds 2: 5 of CT .*; 1 of CT T2 axial \(x\.dcm"),
        (skew, "84.3 degrees to each other, and not at right angles"),
        (break_place, r"001\.dcm: .*ImagePositionPatient has 2 values, and 3 are needed"),
    ],
)
def test_a_slice_that_does_not_fit_is_named(tmp_path: Path, change, message: str) -> None:
    for index in range(5):
        write_dicom(tmp_path / f"{index:03d}.dcm", noise(ROWS, COLUMNS), (0, 0, 2 * index))
    assert read_image(tmp_path)[0].shape == (1, 5, ROWS, COLUMNS)
    change(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        read_image(tmp_path)
    assert tmp_path.name in str(caught.value)


def test_what_else_lies_in_a_folder_is_no_slice(tmp_path: Path) -> None:
    write_stack(tmp_path, [(0, 0, 2 * index) for index in range(3)])
    (tmp_path / "README.txt").write_text("no slice")
    report = pydicom.dcmread(tmp_path / "000.dcm")
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    report.SeriesInstanceUID = "1.2.3.11"
    report.save_as(tmp_path / "report.dcm")
    mask = pydicom.dcmread(tmp_path / "000.dcm")
    mask.SOPClassUID, mask.SeriesInstanceUID = SEGMENTATIONS[0], "1.2.3.12"
    mask.save_as(tmp_path / "mask.dcm")
    assert read_image(tmp_path)[0].shape == (1, 3, ROWS, COLUMNS)
    with pytest.raises(DataError, match=r"mask\.dcm: is a DICOM SEG, which holds masks and no image"):
        read_image(tmp_path / "mask.dcm")
    (tmp_path / "damaged.dcm").write_bytes(b"no DICOM at all" * 20)
    with pytest.raises(DataError, match=r"damaged\.dcm: .*damaged"):
        read_image(tmp_path)


def test_the_frames_of_one_file_are_placed_and_rescaled_one_by_one(tmp_path: Path) -> None:
    stored = noise(4, ROWS, COLUMNS, dtype=np.uint16)
    order, slopes = [2, 0, 3, 1], [1, 0.5, 0.01, 2]
    write_dicom(
        tmp_path / "a.dcm",
        stored,
        spacing=None,
        sop=ENHANCED_MR,
        SharedFunctionalGroupsSequence=[
            item(
                PixelMeasuresSequence=[item(PixelSpacing=["0.8", "0.5"], SliceThickness="9")],
                PlaneOrientationSequence=[item(ImageOrientationPatient=numbers(AXIAL))],
            )
        ],
        PerFrameFunctionalGroupsSequence=[
            item(
                PlanePositionSequence=[item(ImagePositionPatient=numbers((1, 2, 3 * place)))],
                PixelValueTransformationSequence=[item(RescaleSlope=str(slope), RescaleIntercept="-3")],
            )
            for place, slope in zip(order, slopes, strict=True)
        ],
    )
    pixels, geometry = read_image(tmp_path / "a.dcm")
    assert geometry.spacing == pytest.approx((0.5, 0.8, 3))
    assert geometry.origin == (1, 2, 0)
    for frame, (place, slope) in enumerate(zip(order, slopes, strict=True)):
        assert np.allclose(pixels[0, place], stored[frame] * float(slope) - 3, atol=1e-4)


def test_a_dose_grid_says_its_place_once(tmp_path: Path) -> None:
    write_dicom(
        tmp_path / "a.dcm", noise(3, ROWS, COLUMNS), (1, 2, 3), spacing=(2, 2), GridFrameOffsetVector=["0", "2.5", "5"]
    )
    assert read_image(tmp_path / "a.dcm")[1].spacing == (2, 2, 2.5)
    edit_dicom(tmp_path / "a.dcm", GridFrameOffsetVector=["0", "2.5", "7.5"])
    with pytest.raises(DataError, match="are slices missing"):
        read_image(tmp_path / "a.dcm")


def test_a_clip_in_one_file_is_no_volume_and_one_of_a_single_frame_is_an_image(tmp_path: Path) -> None:
    picture = noise(ROWS, COLUMNS, dtype=np.uint8)
    write_dicom(tmp_path / "a.dcm", np.stack([picture] * 4), spacing=None, sop=ULTRASOUND_CLIP)
    with pytest.raises(DataError, match=r"a\.dcm: holds 4 frames over time"):
        read_image(tmp_path / "a.dcm")
    write_dicom(tmp_path / "b.dcm", picture[None], spacing=None, sop=ULTRASOUND_CLIP)
    assert np.array_equal(read_image(tmp_path / "b.dcm")[0][0], picture)


def test_the_rescale_of_each_slice_is_its_own(tmp_path: Path) -> None:
    stored, slopes = noise(6, ROWS, COLUMNS, dtype=np.uint16), [1, 0.01, 0.013, 0.02, 0.017, 0.011]
    for index, slope in enumerate(slopes):
        write_dicom(
            tmp_path / f"{index}.dcm",
            stored[index],
            (0, 0, 4 * index),
            RescaleSlope=str(slope),
            RescaleIntercept=str(index),
        )
    pixels, _ = read_image(tmp_path)
    true = stored * np.array(slopes)[:, None, None] + np.arange(6)[:, None, None]
    assert np.allclose(pixels[0], true, atol=1e-4)


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 12), (np.int16, 12), (np.int16, 16)])
def test_a_negative_is_turned_round(tmp_path: Path, dtype: type, bits: int) -> None:
    picture = noise(ROWS, COLUMNS, dtype=dtype)
    largest = -1 if np.issubdtype(dtype, np.signedinteger) else 2**bits - 1
    write_dicom(tmp_path / "m1.dcm", (largest - picture).astype(dtype), photometric="MONOCHROME1", BitsStored=bits)
    assert np.array_equal(read_image(tmp_path / "m1.dcm")[0][0], picture)


@pytest.mark.parametrize("empty", [("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept",)])
def test_a_rescale_that_was_emptied_says_nothing(tmp_path: Path, empty: tuple[str, ...]) -> None:
    fields = {"RescaleSlope": "2", "RescaleIntercept": "-5", **dict.fromkeys(empty)}
    stored = noise(ROWS, COLUMNS)
    path = write_dicom(tmp_path / "a.dcm", stored, (0, 0, 0), **fields)
    assert np.array_equal(read_image(path)[0][0], stored * (1 if "RescaleSlope" in empty else 2))


@pytest.mark.parametrize(
    ("preamble", "implicit", "little"),
    # pydicom takes files with a preamble for little endian.
    [(True, True, True), (True, False, True), (False, True, True), (False, False, True), (False, False, False)],
)
def test_a_file_that_does_not_say_how_it_is_stored_is_read_as_it_is(
    tmp_path: Path, preamble: bool, implicit: bool, little: bool
) -> None:
    stored = noise(ROWS, COLUMNS)
    path = write_dicom(tmp_path / "a.dcm", stored, (0, 0, 0))
    data = pydicom.dcmread(path)
    data["PixelData"].VR = "OW"
    data.PixelData = stored.astype("<i2" if little else ">i2").tobytes()
    del data.file_meta.TransferSyntaxUID
    if not preamble:
        data.preamble, data.file_meta = None, pydicom.dataset.FileMetaDataset()
    pydicom.dcmwrite(path, data, implicit_vr=implicit, little_endian=little, force_encoding=True)
    assert np.array_equal(read_image(path)[0][0], stored)


def test_compressed_pixels_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", noise(ROWS, COLUMNS), (0, 0, 0))
    data = pydicom.dcmread(path)
    data.PixelData = encapsulate([noise(ROWS, COLUMNS).tobytes()])
    data["PixelData"].is_undefined_length = True
    del data.file_meta.TransferSyntaxUID
    pydicom.dcmwrite(path, data, implicit_vr=False, little_endian=True)
    with pytest.raises(DataError, match=r"a\.dcm: its pixels cannot be read \(.*Transfer Syntax"):
        read_image(path)


def test_an_orientation_that_was_emptied_is_no_direction(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", noise(ROWS, COLUMNS), (0, 0, 0), [0] * 6)
    with pytest.raises(DataError, match=r"Image Orientation of a\.dcm is \[0\.0, .*which is no direction"):
        read_image(path)


def test_a_folder_without_an_image_says_so(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(b"no preamble")
    with pytest.raises(DataError, match=r"holds no DICOM image.*ending \.dcm alone"):
        read_image(tmp_path)


def test_a_mosaic_is_no_flat_image(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", noise(ROWS, COLUMNS), (0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"])
    with pytest.raises(DataError, match=r"a\.dcm: is a mosaic .*slices of a volume.*dcm2niix"):
        read_image(path)


def test_hounsfield_units_say_the_same_however_they_are_shown(tmp_path: Path) -> None:
    picture = noise(ROWS, COLUMNS)
    for name in ("MONOCHROME1", "MONOCHROME2"):
        path = tmp_path / f"{name}.dcm"
        write_dicom(path, picture, photometric=name, RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU")
        assert np.array_equal(read_image(path)[0][0], picture - 1024.0)


def test_unused_bits_are_no_part_of_a_value(tmp_path: Path) -> None:
    picture = noise(ROWS, COLUMNS, dtype=np.uint16)
    overlay = np.uint16(0x8000) * (picture % 2)
    write_dicom(tmp_path / "a.dcm", picture | overlay, BitsStored=12)
    assert np.array_equal(read_image(tmp_path / "a.dcm")[0][0], picture)


def test_a_modality_table_is_applied(tmp_path: Path) -> None:
    picture = noise(ROWS, COLUMNS, dtype=np.uint8)
    table = (np.arange(256) ** 2).astype(np.uint16)
    lut = item(LUTDescriptor=[256, 0, 16], ModalityLUTType="US", LUTData=table.tobytes())
    write_dicom(tmp_path / "a.dcm", picture, ModalityLUTSequence=[lut])
    assert np.array_equal(read_image(tmp_path / "a.dcm")[0][0], picture.astype(float) ** 2)


def grey_as(photometric: str, picture: np.ndarray) -> np.ndarray:
    even = np.full_like(picture, 128)
    return np.stack([picture] * 3 if photometric == "RGB" else [picture, even, even], axis=-1)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_a_grey_picture_in_colour_has_equal_colours(tmp_path: Path, photometric: str) -> None:
    picture = noise(ROWS, COLUMNS, dtype=np.uint8)
    write_dicom(
        tmp_path / "a.dcm", grey_as(photometric, picture), spacing=None, sop=ULTRASOUND, photometric=photometric
    )
    assert np.array_equal(read_image(tmp_path / "a.dcm")[0], np.stack([picture] * 3))


def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    picture = noise(ROWS, COLUMNS, dtype=np.uint8)
    fields = {}
    for colour, factor in (("Red", 1), ("Green", 0), ("Blue", 1)):
        fields[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        fields[f"{colour}PaletteColorLookupTableData"] = (np.arange(256) * factor << 8).astype(np.uint16).tobytes()
    write_dicom(tmp_path / "a.dcm", picture, photometric="PALETTE COLOR", **fields)
    assert np.array_equal(read_image(tmp_path / "a.dcm")[0], np.stack([picture, 0 * picture, picture]))


def test_compressed_pixels_are_read(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(16), 4 * np.arange(16)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(smooth).save(content, "JPEG", quality=100)
    path = write_dicom(tmp_path / "a.dcm", smooth, sop=ULTRASOUND)
    made = pydicom.dcmread(path)
    made.PixelData = encapsulate([content.getvalue()])
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.save_as(path)
    assert np.allclose(read_image(path)[0][0], smooth, atol=2)
    made.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    made.PixelData = encapsulate([b"\xff\xd8no picture"])
    made.save_as(path)
    with pytest.raises(DataError, match=r"a\.dcm: its pixels cannot be read"):
        read_image(path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", noise(64, 64))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"a\.dcm: (its pixels )?cannot be read"):
        read_image(path)


def region(delta: float, form: int = 1, units: int = 3):
    return item(
        RegionSpatialFormat=form,
        RegionDataType=1,
        PhysicalUnitsXDirection=units,
        PhysicalUnitsYDirection=units,
        PhysicalDeltaX=delta,
        PhysicalDeltaY=-2 * delta,
    )


@pytest.mark.parametrize(
    ("fields", "spacing", "said"),
    [
        ({}, None, None),
        ({"PixelSpacing": ["0.8", "0.5"]}, (0.5, 0.8), None),
        ({"PixelSpacing": ["0", "0"]}, None, None),
        ({"SequenceOfUltrasoundRegions": [region(0.02)]}, (0.2, 0.4), None),
        ({"SequenceOfUltrasoundRegions": [region(0.02), region(3, form=3), region(7, units=4)]}, (0.2, 0.4), None),
        ({"SequenceOfUltrasoundRegions": [region(0.02), region(0.03)]}, None, "different sizes"),
        ({"SequenceOfUltrasoundRegions": [region(0.02, units=0)]}, None, None),
        ({"Modality": "CR", "ImagerPixelSpacing": ["0.2", "0.1"]}, (0.1, 0.2), "at the detector"),
        (
            {"Modality": "DX", "ImagerPixelSpacing": ["0.2", "0.2"], "PixelSpacing": ["0.2", "0.2"]},
            (0.2, 0.2),
            "at the d",
        ),
        ({"Modality": "DX", "ImagerPixelSpacing": ["0.2", "0.2"], "PixelSpacing": ["0.1", "0.1"]}, (0.1, 0.1), None),
        (
            {
                "Modality": "MG",
                "ImagerPixelSpacing": ["0.12", "0.12"],
                "EstimatedRadiographicMagnificationFactor": "1.2",
            },
            (0.1, 0.1),
            None,
        ),
        ({"NominalScannedPixelSpacing": ["0.3", "0.3"]}, (0.3, 0.3), None),
    ],
)
def test_the_spacing_is_what_the_header_says_and_unknown_where_it_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fields: dict, spacing: tuple | None, said: str | None
) -> None:
    write_dicom(tmp_path / "a.dcm", noise(ROWS, COLUMNS), spacing=None, sop=ULTRASOUND, **fields)
    with caplog.at_level(logging.WARNING):
        geometry = read_image(tmp_path / "a.dcm")[1]
    assert geometry.spacing == (None if spacing is None else pytest.approx(spacing))
    assert (said in caplog.text) if said else not caplog.text


def test_letters_around_the_tissue_of_a_still_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, end, said in (("part", 30, True), ("whole", 60, False)):
        caplog.clear()
        whole = [tissue(0, 0, end - 1, 39)]
        write_dicom(
            tmp_path / f"{name}.dcm",
            noise(40, 60),
            spacing=None,
            sop=ULTRASOUND,
            SequenceOfUltrasoundRegions=whole,
        )
        with caplog.at_level(logging.WARNING):
            pixels, geometry = read_image(tmp_path / f"{name}.dcm")
        # Its mask lies on the whole picture.
        assert pixels.shape[-2:] == (40, 60)
        assert geometry.spacing == pytest.approx((0.5, 0.5))
        assert ("crop image and mask to it" in caplog.text) is said


def test_a_still_that_was_shrunk_has_no_spacing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, beyond, spacing in (
        ("shrunk", 40, None),
        ("by three", 2, None),
        ("by two", 1, (0.5, 0.5)),
        ("counted", 0, (0.5, 0.5)),
    ):
        caplog.clear()
        whole = [tissue(0, 0, COLUMNS + beyond, ROWS + beyond)]
        path = tmp_path / f"{name}.dcm"
        write_dicom(path, noise(ROWS, COLUMNS), spacing=None, sop=ULTRASOUND, SequenceOfUltrasoundRegions=whole)
        with caplog.at_level(logging.WARNING):
            found = read_image(path)[1].spacing
        assert found == (None if spacing is None else pytest.approx(spacing))
        assert ("it was shrunk" in caplog.text) is (spacing is None)


def test_two_spacings_of_one_picture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(
        path, noise(ROWS, COLUMNS), spacing=(0.2, 0.2), sop=ULTRASOUND, SequenceOfUltrasoundRegions=[region(0.02)]
    )
    with pytest.raises(DataError, match=r"\(0\.2, 0\.4\) mm by its ultrasound regions and \(0\.2, 0\.2\) mm by"):
        read_image(path)


def test_a_single_slice_lies_where_its_header_says(tmp_path: Path) -> None:
    axes = Rotation.from_euler("xyz", (0.3, 0.2, 0.1)).as_matrix().T
    write_stack(tmp_path, [(10, 20, 30)], axes[:2], spacing=(0.5, 0.8), SpacingBetweenSlices="6", sop=CT)
    pixels, geometry = read_image(tmp_path)
    assert pixels.shape == (1, ROWS, COLUMNS)
    assert geometry.volume is not None
    assert geometry.volume.spacing == (0.5, 0.8, 6)
    assert np.allclose(places_on_grid(geometry.volume, 0), places_in_headers(tmp_path)[1], atol=1e-6)
