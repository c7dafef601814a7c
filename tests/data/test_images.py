from __future__ import annotations

import errno
import logging
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from medfm_rl.data.files import hash_file, hash_folder
from medfm_rl.data.images import hash_image, read_image, write_image, write_labels
from medfm_rl.data.labels import read_labels
from medfm_rl.data.text_headers import pixel_files
from medfm_rl.errors import DataError
from medfm_rl.types import Geometry, LabelSchema

GEOMETRY = Geometry((0.5, 0.8), (10.0, -3.0), (1.0, 0.0, 0.0, 1.0))
VOLUME = Geometry((0.5, 0.8, 2.0), (1.0, 2.0, 3.0), (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize(("shape", "geometry"), [((6, 7), GEOMETRY), ((3, 4, 5), VOLUME)])
def test_pixels_and_geometry_survive_every_format(
    tmp_path: Path, suffix: str, shape: tuple[int, ...], geometry: Geometry
) -> None:
    path = tmp_path / f"image{suffix}"
    write_image(path, ramp(*shape), geometry)
    pixels, read = read_image(path)
    assert np.array_equal(pixels, ramp(*shape)[None])
    assert read.matches(geometry)


def test_png_has_no_spacing(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", ramp(4, 5).astype(np.uint8), GEOMETRY)
    pixels, geometry = read_image(tmp_path / "a.png")
    assert geometry.spacing is None
    assert np.array_equal(pixels[0], ramp(4, 5))


def test_an_image_of_other_dimensions_than_its_grid_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the image is 3-D and its grid 2-D"):
        write_image(tmp_path / "image.nii.gz", np.zeros((1, 4, 5), dtype=np.float32), Geometry.unknown(2))
    assert not (tmp_path / "image.nii.gz").exists()


def test_png_refuses_real_values(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="8-bit"):
        write_image(tmp_path / "a.png", ramp(4, 5), GEOMETRY)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, 2)))
def test_label_maps_survive_the_way_through_a_file(tmp_path: Path, labels: np.ndarray) -> None:
    schema = LabelSchema(("background", "a", "b"), (0, 85, 170))
    path = tmp_path / "labels.nii.gz"
    write_labels(path, labels, GEOMETRY, schema)
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))) <= {0, 85, 170}
    assert np.array_equal(read_labels(path, schema, (5, 6), GEOMETRY), labels)


def test_a_volume_of_one_slice_is_an_image(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(ramp(1, 4, 5))
    image.SetSpacing((0.5, 0.8, 1.0))
    sitk.WriteImage(image, str(tmp_path / "a.mhd"))
    pixels, geometry = read_image(tmp_path / "a.mhd")
    assert pixels.shape == (1, 4, 5)
    assert geometry.spacing == pytest.approx((0.5, 0.8))


COSINE, SINE = np.cos(0.5), np.sin(0.5)
DIRECTIONS = {
    "axial": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "axial from the feet": (-1, 0, 0, 0, 1, 0, 0, 0, -1),
    "sagittal": (0, 0, -1, 1, 0, 0, 0, -1, 0),
    "coronal": (1, 0, 0, 0, 0, 1, 0, -1, 0),
    "oblique": (COSINE, 0, SINE, 0, 1, 0, -SINE, 0, COSINE),
}


def write_slice(path: Path, direction: tuple[float, ...], origin: tuple[float, ...] = (10, 20, 30)) -> sitk.Image:
    image = sitk.GetImageFromArray(ramp(1, 4, 5))
    image.SetSpacing((0.5, 0.8, 6.0))
    image.SetOrigin(origin)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return image


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_the_mask_of_a_slice_lies_where_the_slice_lies_in_the_body(
    tmp_path: Path, schema: LabelSchema, direction: tuple[float, ...], suffix: str
) -> None:
    image = write_slice(tmp_path / f"a{suffix}", direction)
    pixels, geometry = read_image(tmp_path / f"a{suffix}")
    mask = (pixels[0] > 9).astype(np.uint8)
    write_labels(tmp_path / "mask.nii.gz", mask, geometry, schema)
    written = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert written.GetSize() == (5, 4, 1)
    assert written.GetSpacing() == pytest.approx((0.5, 0.8, 6.0))
    for corner in [(0, 0, 0), (4, 0, 0), (0, 3, 0)]:
        there = image.TransformIndexToPhysicalPoint(corner)
        assert written.TransformIndexToPhysicalPoint(corner) == pytest.approx(there, abs=1e-4)
    assert np.array_equal(read_labels(tmp_path / "mask.nii.gz", schema, (4, 5), geometry), mask)


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_the_plane_of_a_slice_can_be_written_by_itself(tmp_path: Path, direction: tuple[float, ...]) -> None:
    write_slice(tmp_path / "a.mha", direction)
    pixels, geometry = read_image(tmp_path / "a.mha")
    write_image(tmp_path / "plane.nii.gz", pixels[0], geometry.plane)
    assert sitk.ReadImage(str(tmp_path / "plane.nii.gz")).GetSize() == (5, 4)
    again, plane = read_image(tmp_path / "plane.nii.gz")
    assert np.array_equal(again, pixels)
    assert plane.spacing == pytest.approx((0.5, 0.8))
    # A flat mask, such as a tool writes that knows of no third axis, is one of the slice.
    assert plane.matches(geometry)


def test_slices_at_other_places_are_not_on_one_grid(tmp_path: Path, schema: LabelSchema) -> None:
    write_slice(tmp_path / "a.nii.gz", DIRECTIONS["axial"])
    write_slice(tmp_path / "b.nii.gz", DIRECTIONS["axial"], origin=(10, 20, 36))
    with pytest.raises(DataError, match=r"b\.nii\.gz: the mask lies elsewhere .*30\.0.*direction"):
        read_labels(tmp_path / "b.nii.gz", schema, (4, 5), read_image(tmp_path / "a.nii.gz")[1])
    with pytest.raises(DataError, match="all channels of a case must lie on one grid"):
        read_image([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"])


def test_a_slice_is_drawn_flat_in_a_picture(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.nii.gz", DIRECTIONS["sagittal"])
    pixels, geometry = read_image(tmp_path / "a.nii.gz")
    write_image(tmp_path / "a.png", pixels[0].astype(np.uint8), geometry)
    assert np.array_equal(read_image(tmp_path / "a.png")[0], pixels)


def test_a_grid_that_no_file_can_hold_is_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    flat = Geometry((1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 1.0, 0.0))
    with pytest.raises(DataError, match=r"a\.nii\.gz: cannot be written.*\(1\.0, 0\.0, 1\.0, 0\.0\)"):
        write_image(tmp_path / "a.nii.gz", ramp(4, 5), flat)
    assert not list(tmp_path.iterdir())


def test_an_mhd_is_not_written_because_it_would_be_two_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.mhd: .*second file.*write \.mha"):
        write_image(tmp_path / "a.mhd", ramp(4, 5), GEOMETRY)
    assert not list(tmp_path.iterdir())


def test_files_become_channels(tmp_path: Path) -> None:
    for channel in range(2):
        write_image(tmp_path / f"a_{channel}.nii.gz", ramp(4, 5) + channel, GEOMETRY)
    pixels, _ = read_image([tmp_path / "a_0.nii.gz", tmp_path / "a_1.nii.gz"])
    assert pixels.shape == (2, 4, 5)
    assert np.array_equal(pixels[1], ramp(4, 5) + 1)


def write_series(folder: Path, depths: Sequence[float], axes: str = "1\\0\\0\\0\\1\\0") -> None:
    """Slices of 4 x 5 pixels at so many mm along z."""
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, depth in enumerate(depths):
        image = sitk.GetImageFromArray((ramp(1, 4, 5) + 100 * index).astype(np.int16))
        image.SetSpacing((0.5, 0.8, 2.0))
        image.SetOrigin((0, 0, depth))
        for tag, value in {
            "0008|0060": "MR",
            "0020|000e": "1.2.3.4",
            "0020|000d": "1.2.3",
            "0020|0032": f"0\\0\\{depth:.10g}",
            "0020|0037": axes,
            "0020|0013": str(index + 1),
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{index}.dcm"))
        writer.Execute(image)


def test_a_dicom_folder_is_one_case(tmp_path: Path) -> None:
    write_series(tmp_path, (0, 2, 4))
    pixels, geometry = read_image(tmp_path)
    assert pixels.shape == (1, 3, 4, 5)
    assert geometry.array_spacing == pytest.approx((2.0, 0.8, 0.5))


@pytest.mark.parametrize(
    ("depths", "axes", "message"),
    [
        ((0, 2, 4, 8, 10), "1\\0\\0\\0\\1\\0", r"from slice 2\.dcm to 3\.dcm it is 4 mm and usually 2 mm"),
        ((0, -2, -4, -7, -9), "1\\0\\0\\0\\1\\0", r"it is 3 mm and usually 2 mm"),
        ((0, 2, 2, 4, 6), "1\\0\\0\\0\\1\\0", r"1\.dcm and 2\.dcm lie at the same place \(5 slices at 4"),
        # A tilted gantry: along the normal, (0, .6, .8), it is .8 of the way along z.
        ((0, 5, 10, 20), "1\\0\\0\\0\\0.8\\-0.6", "it is 8 mm and usually 4 mm"),
    ],
)
def test_a_series_that_lacks_a_slice_is_refused(
    tmp_path: Path, depths: tuple[float, ...], axes: str, message: str
) -> None:
    write_series(tmp_path, depths, axes)
    with pytest.raises(DataError, match=message) as caught:
        read_image(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_positions_that_a_header_rounds_are_equal_steps(tmp_path: Path) -> None:
    write_series(tmp_path, [round(index / 3, 2) for index in range(5)])
    assert read_image(tmp_path)[1].array_spacing == pytest.approx((1 / 3, 0.8, 0.5), abs=0.01)


def test_sheared_axes_are_not_called_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_image(path, ramp(3, 4, 5), VOLUME)
    content = bytearray(path.read_bytes())
    # qform_code, sform_code and the three rows of the sform, in the NIfTI header: x grows with y by .02 mm.
    content[252:256] = struct.pack("<2h", 0, 1)
    content[280:328] = struct.pack("<12f", 1, 0.02, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii: cannot be read; its axes are sheared.*set its sform to the qform"):
        read_image(path)


def broken_truncated(path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    write_image(path, noise, GEOMETRY)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"not an image at all"), "cannot be read"),
        (broken_truncated, "cannot be read"),
        (lambda path: write_image(path, np.full((4, 5), 3.0, np.float32), GEOMETRY), "every pixel has the value 3"),
    ],
    ids=["missing", "empty", "garbage", "truncated", "constant"],
)
def test_a_bad_image_is_named_with_what_is_wrong(tmp_path: Path, make, message: str) -> None:
    path = tmp_path / "scan.nii.gz"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert "scan.nii.gz" in str(caught.value)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii.gz"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, suffix: str, value: float) -> None:
    pixels = ramp(4, 5)
    pixels[0, 0] = value
    write_image(tmp_path / f"scan{suffix}", pixels, GEOMETRY)
    with pytest.raises(DataError, match=rf"scan{re.escape(suffix)}: the image holds NaN or infinite"):
        read_image(tmp_path / f"scan{suffix}")


@pytest.mark.parametrize("suffix", [".nii", ".mha", ".nrrd", ".png"])
def test_every_format_notices_that_it_is_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    write_image(path, np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8), GEOMETRY)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz"])
def test_an_image_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(ramp(4, 5).astype(np.uint8)), str(tmp_path / name))

    def refusing(self: Path, *args: object, **kwargs: object) -> object:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(DataError, match=f"{name}: you have no permission to read it"):
        read_image(tmp_path / name)


def test_an_mhd_without_its_pixels_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(ramp(4, 5)), str(tmp_path / "a.mhd"))
    (tmp_path / "a.raw").unlink()
    with pytest.raises(DataError, match=r"a\.mhd: cannot be read"):
        read_image(tmp_path / "a.mhd")


HEADER = "NDims = 2\nDimSize = 5 4\nElementType = MET_UCHAR\nElementDataFile = "


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("pixels.bin", ["pixels.bin"]),
        ("my pixels.raw\r\n", ["my pixels.raw"]),
        ("../elsewhere/a.zraw", ["../elsewhere/a.zraw"]),
        ("LIST\nz1.raw\nz0.raw\n", ["z1.raw", "z0.raw"]),
        ("z%01d.raw 0 1 1\n", ["z0.raw", "z1.raw"]),
        ("LOCAL\nElementDataFile = none.raw", []),
    ],
)
def test_the_pixels_of_an_image_are_where_its_header_says(tmp_path: Path, field: str, expected: list[str]) -> None:
    (tmp_path / "a.mhd").write_bytes((HEADER + field).encode())
    for name in ("z0.raw", "z1.raw", "a.raw"):
        (tmp_path / name).write_bytes(b"pixels")
    assert pixel_files(tmp_path / "a.mhd") == [tmp_path / name for name in expected]


def test_the_hash_of_an_image_changes_with_its_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "image"
    folder.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(ramp(4, 5)), str(folder / "a.mhd"))
    before = hash_image(folder / "a.mhd")
    assert before == hash_folder(folder)
    sitk.WriteImage(sitk.GetImageFromArray(ramp(4, 5) + 1), str(folder / "a.mhd"))
    assert before != hash_image(folder / "a.mhd") == hash_folder(folder)
    (folder / "a.raw").unlink()
    with pytest.raises(DataError, match=r"a\.raw: there is no such file"):
        hash_image(folder / "a.mhd")


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_the_hash_of_an_image_in_one_file_is_that_of_the_file(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", ramp(4, 5), GEOMETRY)
    assert hash_image(tmp_path / f"a{suffix}") == hash_file(tmp_path / f"a{suffix}")
    assert hash_image(tmp_path) == hash_folder(tmp_path)


@pytest.mark.parametrize(
    ("shape", "geometry", "message"),
    [
        ((4, 6), GEOMETRY, r"size \(4, 5\), its image \(4, 6\)"),
        ((4, 5), Geometry((0.5, 0.9), (10.0, -3.0), (1.0, 0.0, 0.0, 1.0)), "elsewhere in space.*only the header"),
    ],
)
def test_a_mask_that_does_not_belong_to_its_image_is_refused(
    tmp_path: Path, schema: LabelSchema, shape: tuple[int, ...], geometry: Geometry, message: str
) -> None:
    write_labels(tmp_path / "m.nii.gz", np.zeros((4, 5), np.uint8), GEOMETRY, schema)
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / "m.nii.gz", schema, shape, geometry)


def test_an_interpolated_mask_is_refused(tmp_path: Path, schema: LabelSchema) -> None:
    write_image(tmp_path / "m.nii.gz", ramp(4, 5) / 7, GEOMETRY)
    with pytest.raises(DataError, match="interpolated"):
        read_labels(tmp_path / "m.nii.gz", schema, (4, 5), GEOMETRY)


def test_a_full_disk_leaves_the_old_file_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii.gz"
    write_image(path, ramp(4, 5), GEOMETRY)
    before = path.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        write_image(path, ramp(4, 5) + 1, GEOMETRY)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


META = "ObjectType = Image\nNDims = 2\nDimSize = 5 4\n{}ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
NRRD = "NRRD0004\ntype: uchar\ndimension: {}\nsizes: 5 4 {}\n{}encoding: raw\n\n"
BYTES = bytes(range(20))


@pytest.mark.parametrize(
    ("name", "header", "spacing"),
    [
        ("a.mha", META.format(""), None),
        ("a.mha", META.format("ElementSpacing = 0.5 0.8\n"), (0.5, 0.8)),
        ("a.nrrd", NRRD.format(2, "", ""), None),
        ("a.nrrd", NRRD.format(2, "", "spacings: nan nan\n"), None),
        ("a.nhdr", NRRD.format(2, "", ""), None),
        ("a.nrrd", NRRD.format(2, "", "spacings: 0.5 0.8\n"), (0.5, 0.8)),
    ],
)
def test_a_spacing_that_no_header_gives_is_unknown(
    tmp_path: Path, name: str, header: str, spacing: tuple | None
) -> None:
    (tmp_path / name).write_bytes(header.encode() + BYTES)
    assert read_image(tmp_path / name)[1].spacing == spacing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("space directions: (1,0.2,0) (0,2,0) (0,0,3)\n", r"axes are sheared, 11\.3 degrees"),
        (
            'space directions: (1,0,0) (0,2,0) (0,0,3)\nspace units: "um" "um" "um"\n',
            "gives distances in um, and tools that read NRRD take them for mm",
        ),
    ],
)
def test_axes_and_units_that_tools_pass_over_are_refused(tmp_path: Path, fields: str, message: str) -> None:
    header = NRRD.format(3, "1", f"space: left-posterior-superior\n{fields}space origin: (1,2,3)\n")
    (tmp_path / "a.nrrd").write_bytes(header.encode() + BYTES)
    with pytest.raises(DataError, match=rf"a\.nrrd: .*{message}"):
        read_image(tmp_path / "a.nrrd")


def test_complex_numbers_and_several_times_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(ramp(4, 5).astype(np.complex64)), str(tmp_path / "a.nrrd"))
    with pytest.raises(DataError, match=r"a\.nrrd: holds complex numbers; write their magnitude"):
        read_image(tmp_path / "a.nrrd")
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(ramp(3, 4, 5))] * 2), str(tmp_path / "b.nrrd"))
    with pytest.raises(DataError, match=r"b\.nrrd: holds 2 .*over time.*a clip and no volume"):
        read_image(tmp_path / "b.nrrd")


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".tif"])
def test_two_real_numbers_a_pixel_may_be_complex_and_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(ramp(4, 5).astype(np.complex64)), str(path))
    with pytest.raises(DataError, match=rf"a\{suffix}: holds two real .* complex .*magnitude.*CASE_0000"):
        read_image(path)
    # Colours, displacements along three axes and pairs of integers are no complex numbers.
    for pixels in (ramp(4, 5, 3), ramp(4, 5, 2).astype(np.uint8)):
        sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(path))
        assert np.array_equal(read_image(path)[0], np.moveaxis(pixels, -1, 0))


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".TIF"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pages_of_a_tiff_may_be_anything_and_are_refused(tmp_path: Path, suffix: str, dtype: type) -> None:
    pages, path = [Image.fromarray(ramp(4, 5).astype(dtype) + index) for index in range(3)], tmp_path / f"a{suffix}"
    pages[0].save(path, format="TIFF", save_all=True, append_images=pages[1:])
    for read in (read_image, lambda path: read_labels(path, LabelSchema.from_structures({"LV": 1}), (3, 4, 5), VOLUME)):
        with pytest.raises(DataError, match=r"has 3 pages, and nothing says .*\.nii\.gz.*pictures to a file each"):
            read(path)
    pages[0].save(path, format="TIFF")
    assert read_image(path)[0].shape == (1, 4, 5)


@pytest.mark.parametrize(
    ("origin", "spacing", "turn", "said"),
    [(0.002, 0, 0, None), (0.05, 0, 0, "0.032"), (0, 4e-5, 0, None), (0, 0, 1.1e-3, "0.1")],
)
def test_a_mask_a_hair_off_its_image_is_on_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, origin: float, spacing: float, turn: float, said: str | None
) -> None:
    """The image of 96 pixels of 1.5625 mm, and what headers round of it."""
    schema, image = LabelSchema.from_structures({"LV": 1}), Geometry((1.5625, 1.5625), (3.0, 4.0), (1.0, 0.0, 0.0, 1.0))
    turned = (float(np.cos(turn)), -float(np.sin(turn)), float(np.sin(turn)), float(np.cos(turn)))
    beside = Geometry((1.5625 + spacing,) * 2, (3 + origin, 4 + origin), turned)
    write_labels(tmp_path / "m.mha", np.ones((96, 96), np.uint8), beside, schema)
    with caplog.at_level(logging.WARNING):
        assert read_labels(tmp_path / "m.mha", schema, (96, 96), image).all()
    assert (f"m.mha: lies {said}" in caplog.text) if said else not caplog.text
