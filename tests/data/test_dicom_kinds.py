"""DICOM of kinds with rules of their own: nuclear medicine, volumes of ultrasound, and compressions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import JPEGLSLossless, RLELossless
from support.dicom_files import AXIAL, edit_dicom, item, numbers, write_dicom

from medfm_rl.data.images import read_image, read_pixels
from medfm_rl.errors import DataError

NUCLEAR, ULTRASOUND_VOLUME = "1.2.840.10008.5.1.4.1.1.20", "1.2.840.10008.5.1.4.1.1.6.2"
SHAPE = (6, 5)


def noise(*shape: int, dtype: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


# Nuclear medicine: one position for all frames, and a vector that numbers the slice of each (PS3.3 C.8.4)


def write_tomogram(path: Path, slices: list[int], step: float, axes: tuple[float, ...] = AXIAL) -> np.ndarray:
    pixels = noise(len(slices), *SHAPE)
    write_dicom(
        path,
        pixels,
        spacing=(2.0, 3.0),
        sop=NUCLEAR,
        Modality="NM",
        ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"],
        SliceVector=slices,
        SpacingBetweenSlices=f"{step:g}",
        DetectorInformationSequence=[
            item(ImagePositionPatient=numbers((1, 2, 3)), ImageOrientationPatient=numbers(axes))
        ],
    )
    return pixels


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations([1, 2, 3, 4]),
    step=st.sampled_from([4.5, 0.7, -4.5]),
    axes=st.sampled_from([AXIAL, (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)]),
)
def test_slices_of_a_tomogram_lie_where_its_slice_vector_says(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], step: float, axes: tuple[float, ...]
) -> None:
    path = tmp_path_factory.mktemp("nm") / "a.dcm"
    stored = write_tomogram(path, order, step, axes)
    pixels, geometry = read_image(path)
    assert geometry.spacing == pytest.approx((2.0, 3.0, abs(step)))
    normal = np.cross(axes[:3], axes[3:])
    for place in range(4):
        centre = (geometry.affine @ (0, 0, place, 1))[:3]
        number = round(float((centre - (1, 2, 3)) @ normal) / step) + 1
        assert centre == pytest.approx(np.array([1, 2, 3]) + (number - 1) * step * normal)
        assert np.array_equal(pixels[0, place], stored[order.index(number)])


def test_a_tomogram_with_a_slice_left_out_or_in_several_phases_is_refused(tmp_path: Path) -> None:
    write_tomogram(tmp_path / "a.dcm", [1, 2, 4], 4.5)
    with pytest.raises(DataError, match=r"a\.dcm: .*are slices missing"):
        read_image(tmp_path / "a.dcm")
    write_tomogram(tmp_path / "b.dcm", [1, 2, 1, 2], 4.5)
    with pytest.raises(DataError, match=r"b\.dcm: 4 slices lie at 2 places, 2 at each .*phases"):
        read_image(tmp_path / "b.dcm")


def test_frames_of_a_camera_over_time_are_a_clip(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", noise(4, *SHAPE), sop=NUCLEAR, Modality="NM", TimeSliceVector=[1, 2, 3, 4])
    with pytest.raises(DataError, match=r"a\.dcm: holds 4 frames over time"):
        read_image(tmp_path / "a.dcm")


# Enhanced ultrasound: planes of a volume, in the frame of the probe (PS3.3 C.8.24.3)


def write_volume(path: Path, places: list[float], **shared: object) -> np.ndarray:
    pixels = noise(len(places), *SHAPE, dtype=np.uint8)
    measures = item(PixelSpacing=["0.4", "0.3"], SpacingBetweenSlices="0.5", SliceThickness="0.5")
    write_dicom(
        path,
        pixels,
        spacing=None,
        sop=ULTRASOUND_VOLUME,
        SharedFunctionalGroupsSequence=[
            item(
                PixelMeasuresSequence=[measures],
                PlaneOrientationVolumeSequence=[item(ImageOrientationVolume=list(AXIAL))],
                **shared,
            )
        ],
        PerFrameFunctionalGroupsSequence=[
            item(PlanePositionVolumeSequence=[item(ImagePositionVolume=[0.0, 0.0, place])]) for place in places
        ],
    )
    return pixels


def test_planes_of_an_ultrasound_volume_lie_where_their_groups_say(tmp_path: Path) -> None:
    stored = write_volume(tmp_path / "a.dcm", [1.0, 0.0, 1.5, 0.5])
    pixels, geometry = read_image(tmp_path / "a.dcm")
    assert geometry.spacing == pytest.approx((0.3, 0.4, 0.5))
    assert geometry.origin == (0, 0, 0)
    assert np.array_equal(pixels[0], stored[[1, 3, 0, 2]])


def test_an_ultrasound_volume_over_time_is_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.dcm", [0.0, 0.5, 0.0, 0.5, 0.0, 0.5])
    with pytest.raises(DataError, match=r"a\.dcm: 6 slices lie at 2 places, 3 at each"):
        read_image(tmp_path / "a.dcm")
    edit_dicom(tmp_path / "a.dcm", PerFrameFunctionalGroupsSequence=[item()])
    with pytest.raises(DataError, match=r"6 frames, and 1 items that say where they lie"):
        read_image(tmp_path / "a.dcm")


# Compressions


def shipped(name: str) -> Path:
    """A file that pydicom brings; others of its tests would have to be fetched."""
    found = get_testdata_file(name, download=False)
    if not isinstance(found, str):
        pytest.skip(f"this pydicom does not bring {name}")
    return Path(found)


@pytest.mark.parametrize(
    "name",
    [
        *("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"),
        *("MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm", "MR_small_padded.dcm"),
    ],
)
def test_one_image_is_the_same_in_every_lossless_form(name: str) -> None:
    plain, geometry = read_pixels(shipped("MR_small.dcm"))
    pixels, own = read_pixels(shipped(name))
    assert np.array_equal(pixels, plain)
    assert own == geometry
    assert (plain.min(), plain.max()) == (127, 2145)


def test_colours_in_lossless_jpeg_are_those_of_the_other_forms() -> None:
    plain, _ = read_pixels(shipped("SC_rgb_jpeg_gdcm.dcm"))
    assert plain.shape == (3, 100, 100)
    assert np.array_equal(plain, read_pixels(shipped("SC_rgb_rle.dcm"))[0])


@pytest.mark.parametrize(("name", "bits"), [("JPEGLSNearLossless_08.dcm", 8), ("JPEGLSNearLossless_16.dcm", 16)])
def test_jpeg_ls_with_a_bounded_loss_is_read(name: str, bits: int) -> None:
    pixels, geometry = read_pixels(shipped(name))
    assert geometry.spacing is None
    assert (pixels.min(), pixels.max()) == (0, 2**bits - 1)


def test_lossy_forms_that_no_decoder_here_knows_are_named() -> None:
    for name in ("JPGExtended.dcm", "JPEG-lossy.dcm"):
        with pytest.raises(DataError, match=rf"{name}: its pixels cannot be read .*Export it uncompressed") as caught:
            read_pixels(shipped(name))
        assert "\n" not in str(caught.value)


@settings(max_examples=20, deadline=None)
@given(
    frames=st.integers(1, 3),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int16]),
    syntax=st.sampled_from([JPEGLSLossless, RLELossless]),
    seed=st.integers(0, 99),
)
def test_values_survive_lossless_compression(
    tmp_path_factory: pytest.TempPathFactory, frames: int, dtype: type, syntax: str, seed: int
) -> None:
    limits, path = np.iinfo(dtype), tmp_path_factory.mktemp("compressed") / "a.dcm"
    # Ramps through all values: what looks like noise is too long for an encoder that reserves as much as there is.
    stored = np.linspace(limits.min, limits.max, frames * 31 * 33).astype(dtype).reshape(frames, 31, 33)
    stored = np.random.default_rng(seed).permutation(stored, axis=1)
    write_dicom(path, stored, (1, 2, 3), spacing=(2, 2), GridFrameOffsetVector=numbers(2.5 * np.arange(frames)))
    before = read_pixels(path)
    made = pydicom.dcmread(path)
    # The encoder of gdcm ends the whole process on some images.
    made.compress(syntax, encoding_plugin="pydicom" if syntax == RLELossless else "pyjpegls")
    made.save_as(path)
    pixels, geometry = read_pixels(path)
    assert np.array_equal(pixels, before[0])
    assert np.array_equal(pixels.reshape(stored.shape), stored)
    assert geometry == before[1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_grey_values_in_lossless_jpeg_are_read(tmp_path: Path, dtype: type) -> None:
    gdcm = pytest.importorskip("gdcm")
    limits = np.iinfo(dtype)
    stored = np.random.default_rng(0).integers(limits.min, limits.max, (8, 12), endpoint=True).astype(dtype)
    plain, path = write_dicom(tmp_path / "plain.dcm", stored), tmp_path / "a.dcm"
    for syntax in (gdcm.TransferSyntax.JPEGLosslessProcess14_1, gdcm.TransferSyntax.JPEGLosslessProcess14):
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(plain))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        assert np.array_equal(read_pixels(path)[0][0], stored)
