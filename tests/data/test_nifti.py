from __future__ import annotations

import gzip
import logging
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medfm_rl.data.images import read_image, read_pixels, write_image, write_labels
from medfm_rl.data.labels import read_labels
from medfm_rl.errors import DataError
from medfm_rl.types import Geometry, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1})
SHAPE = (5, 4, 3)
FACTORS = {"mm": 1.0, "micron": 0.001, "meter": 1000.0, "unknown": 1.0}


def noise(*shape: int, dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 99, shape).astype(dtype)


def affine(
    turn: tuple[float, ...] = (0, 0, 0), spacing: tuple[float, ...] = (1.5, 1.5, 3), origin: tuple = (0, 0, 0)
) -> np.ndarray:
    made = np.eye(4)
    made[:3, :3] = Rotation.from_euler("xyz", turn).as_matrix() * spacing
    made[:3, 3] = origin
    return made


def write_nifti(
    path: Path,
    sform: np.ndarray | None,
    qform: np.ndarray | None,
    codes: tuple[int, int],
    pixels: np.ndarray | None = None,
) -> nib.Nifti1Image:
    """Writes a file with these statements, whether or not they agree; `codes` are those of sform and qform."""
    made = nib.Nifti1Image(noise(*SHAPE) if pixels is None else pixels, None)
    if sform is not None:
        made.set_sform(sform, codes[0])
    if qform is not None:
        made.set_qform(qform, codes[1])
    made.header["sform_code"], made.header["qform_code"] = codes
    nib.save(made, path)
    return made


def change_header(path: Path, change: Callable[[bytes], bytes]) -> None:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    else:
        path.write_bytes(change(path.read_bytes()))


def mask_of(path: Path) -> Path:
    """Reads an image and writes a mask of it."""
    pixels, geometry = read_image(path)
    mask = path.with_name(f"mask-{path.name}")
    write_labels(mask, (pixels[0] > 50).astype(np.uint8), geometry, SCHEMA)
    return mask


def places_in_nibabel(path: Path) -> np.ndarray:
    image = nib.load(path)
    corners = [(x, y, z, 1) for x in (0, 4) for y in (0, 3) for z in (0, 2)]
    return (image.affine @ np.array(corners, dtype=float).T).T[:, :3]


def places_in_itk(path: Path) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    corners = [(x, y, z) for x in (0, 4) for y in (0, 3) for z in (0, 2)]
    return np.array([image.TransformContinuousIndexToPhysicalPoint(corner) for corner in corners])


@settings(max_examples=40, deadline=None)
@given(
    turn=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 5)] * 3),
    moved=st.sampled_from([0.0, 0.0, 0.001, 12.0]),
    turned=st.sampled_from([0.0, 0.0, 0.2, 2.5]),
    stretched=st.sampled_from([1.0, 1.0, 1.3]),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    units=st.sampled_from(list(FACTORS)),
)
def test_a_mask_lies_on_its_image_in_itk_and_in_nibabel(
    tmp_path_factory: pytest.TempPathFactory,
    turn: tuple[float, ...],
    spacing: tuple[float, ...],
    moved: float,
    turned: float,
    stretched: float,
    codes: tuple[int, int],
    units: str,
) -> None:
    folder = tmp_path_factory.mktemp("nifti")
    path = folder / "a.nii.gz"
    qform = affine(turn, spacing, (10, -20, 30))
    sform = affine((turn[0] + turned, *turn[1:]), np.array(spacing) * stretched, (10 + moved, -20, 30))
    image = write_nifti(path, sform, qform, codes)
    image.header.set_xyzt_units(units, "sec")
    nib.save(image, path)
    refused = None
    try:
        mask = mask_of(path)
    except DataError as error:
        refused = str(error)
    if refused is not None:
        assert str(path) in refused
        assert turned == 2.5 or stretched != 1, f"refused for nothing: {refused}"
        return
    assert np.abs(places_in_nibabel(mask) - places_in_nibabel(path)).max() <= 1e-4
    assert np.abs(places_in_itk(mask) - places_in_itk(path)).max() <= 1e-4
    ours, theirs = nib.load(mask).header, nib.load(path).header
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert ours[field] == theirs[field]
    assert np.array_equal(nib.load(mask).get_fdata(), np.asarray(nib.load(path).dataobj) > 50)
    # Sizes are those of pixdim, or of the sform where the qform does not count, in mm.
    pixels, geometry = read_image(path)
    assert geometry.array_spacing is not None
    by_sform = codes[0] > 0 and codes[1] == 0
    stated = np.array(spacing) * (stretched if by_sform else 1)
    assert geometry.spacing == pytest.approx(stated * FACTORS[units], rel=1e-5)
    assert np.array_equal(read_labels(mask, SCHEMA, SHAPE[::-1], geometry), pixels[0] > 50)


def test_an_sform_and_a_qform_that_differ_by_a_shift_are_named_and_a_mask_may_lie_on_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.nii.gz"
    moved = affine(origin=(12, -7, 4))
    write_nifti(path, moved, affine(), (2, 1))
    with caplog.at_level(logging.WARNING):
        mask = mask_of(path)
    assert "sform (code 2) and qform (code 1) place a pixel up to 12 mm apart" in caplog.text
    assert np.array_equal(nib.load(mask).affine, moved)
    geometry = read_image(path)[1]
    for place in (moved, affine()):
        nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), place), tmp_path / "other.nii.gz")
        assert read_labels(tmp_path / "other.nii.gz", SCHEMA, SHAPE[::-1], geometry).all()
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), affine(origin=(5, 0, 0))), tmp_path / "other.nii.gz")
    with pytest.raises(DataError, match="the mask lies elsewhere"):
        read_labels(tmp_path / "other.nii.gz", SCHEMA, SHAPE[::-1], geometry)


SHEARED = np.array([[-1.5, 0.3, 0, 5], [0, -1.5, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("sform", "qform", "codes", "message"),
    [
        (SHEARED, None, (1, 0), r"axes are sheared, 11\.\d degrees from right angles"),
        (SHEARED, affine(), (1, 1), r"axes are sheared, 11\.\d degrees"),
        (
            affine() @ np.diag([-1, 1, 1, 1]),
            affine(),
            (2, 1),
            "left and right, or the axes themselves, may be exchanged",
        ),
        (
            affine(spacing=(2, 2, 3)),
            affine(),
            (2, 1),
            r"two sizes of its pixels, 2 x 2 x 3 mm and 1\.5 x 1\.5 x 3 mm",
        ),
        (np.zeros((4, 4)), None, (1, 0), "describes no grid"),
    ],
)
def test_statements_that_contradict_each_other_in_more_than_a_place_are_refused(
    tmp_path: Path, sform: np.ndarray, qform: np.ndarray | None, codes: tuple[int, int], message: str
) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, None if not sform.any() else sform, qform, codes)
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_distances_that_were_not_set_with_the_sform_do_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.nii"
    image = nib.Nifti1Image(noise(*SHAPE), affine())
    image.header["pixdim"][1:4] = 1
    nib.save(image, path)
    assert sitk.ReadImage(str(path)).GetSpacing() == (1, 1, 1)
    with caplog.at_level(logging.WARNING):
        assert read_image(path)[1].spacing == (1.5, 1.5, 3)
    assert "a pixel is 1 x 1 x 1 mm by its pixdim and 1.5 x 1.5 x 3 mm by its sform" in caplog.text
    mask = mask_of(path)
    assert np.array_equal(places_in_nibabel(mask), places_in_nibabel(path))
    assert np.array_equal(places_in_itk(mask), places_in_itk(path))


def test_cosines_that_a_header_rounds_are_no_shear(tmp_path: Path) -> None:
    turn = np.deg2rad(17.3)
    rounded = np.eye(4)
    rounded[:2, :2] = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).round(3) * 1.5
    image = write_nifti(tmp_path / "a.nii.gz", rounded, None, (1, 0))
    assert np.allclose(nib.load(mask_of(tmp_path / "a.nii.gz")).affine, image.affine)


@pytest.mark.parametrize(("unit", "factor"), FACTORS.items())
def test_a_file_in_another_unit_is_counted_in_mm_and_its_mask_keeps_the_unit(
    tmp_path: Path, unit: str, factor: float
) -> None:
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(noise(5, 4, 1), np.diag([50.0, 50, 100, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    assert read_image(path)[1].spacing == pytest.approx((50 * factor, 50 * factor), rel=1e-6)
    header = nib.load(mask_of(path)).header
    assert header.get_zooms() == (50, 50, 100)
    assert header.get_xyzt_units()[0] == unit


def test_a_spacing_that_no_statement_gives_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    image = write_nifti(path, None, None, (0, 0))
    image.header["pixdim"][1:4] = 0
    nib.save(image, path)
    assert read_image(path)[1].spacing is None
    image.header["pixdim"][1:4] = (2, 3, 4)
    nib.save(image, path)
    assert read_image(path)[1].spacing == (2, 3, 4)
    assert np.array_equal(nib.load(mask_of(path)).affine, nib.load(path).affine)


@pytest.mark.parametrize(
    ("unit", "sides", "known"),
    [("unknown", (1, 1, 1), False), ("mm", (1, 1, 1), True), ("unknown", (1, 1, 2), True)],
)
def test_distances_that_nobody_has_set_are_unknown(
    tmp_path: Path, unit: str, sides: tuple[float, ...], known: bool
) -> None:
    path = tmp_path / "a.nii.gz"
    image = write_nifti(path, None, None, (0, 0))
    image.header["pixdim"][1:4] = sides
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    assert read_image(path)[1].spacing == (sides if known else None)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=3).filter(lambda sides: sorted(sides)[-2] > 1),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    placed=st.booleans(),
)
def test_what_is_unknown_is_written_and_read_back_as_unknown(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], suffix: str, placed: bool
) -> None:
    """Of a PNG, or of a DICOM file that says where it lies and not how large a pixel is."""
    ndim, path = len(shape), tmp_path_factory.mktemp("unknown") / f"m{suffix}"
    geometry = Geometry.unknown(ndim)
    if placed:
        geometry = replace(geometry, origin=(5.0,) * ndim)
    labels = (np.arange(np.prod(shape)) % 2).astype(np.uint8).reshape(shape)
    write_labels(path, labels, geometry, SCHEMA)
    pixels, read = read_pixels(path)
    assert read.spacing is None
    assert np.array_equal(pixels[0].squeeze(), labels.squeeze())
    header = nib.load(path).header
    assert header.get_xyzt_units()[0] == "unknown"
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).squeeze(), labels.squeeze())
    # A mask of it says the same, and lies on it.
    again = path.with_name(f"again{suffix}")
    write_labels(again, pixels[0].astype(np.uint8), read, SCHEMA)
    assert read_pixels(again)[1] == read


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, suffix: str, value: float) -> None:
    pixels = noise(*SHAPE).astype(np.float32)
    pixels[0, 0, 0] = value
    nib.save(nib.Nifti1Image(pixels, affine()), tmp_path / f"a{suffix}")
    with pytest.raises(DataError, match=rf"a\{suffix}: the image holds NaN or infinite values \(1 of 60\)"):
        read_image(tmp_path / f"a{suffix}")


def test_numbers_too_large_for_a_network_are_infinite(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.full(SHAPE, 1e300), affine()), tmp_path / "a.nii")
    with pytest.raises(DataError, match="NaN or infinite"):
        read_image(tmp_path / "a.nii")


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(noise(*SHAPE).astype(np.complex64), affine()), tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"a\.nii: holds complex numbers; write their magnitude"):
        read_image(tmp_path / "a.nii")


@settings(max_examples=20, deadline=None)
@given(slope=st.floats(1e-3, 50), intercept=st.floats(-2000, 2000), dtype=st.sampled_from([np.uint8, np.int16]))
def test_values_are_scaled_as_the_header_says(
    tmp_path_factory: pytest.TempPathFactory, slope: float, intercept: float, dtype: type
) -> None:
    path, stored = tmp_path_factory.mktemp("scaled") / "a.nii", noise(*SHAPE, dtype=dtype)
    image = nib.Nifti1Image(stored, affine())
    image.header.set_slope_inter(slope, intercept)
    nib.save(nib.Nifti1Image(stored * slope + intercept, affine(), image.header), path)
    # What a tool stores may differ; what the file means does not.
    assert np.allclose(read_image(path)[0][0].T, stored * slope + intercept, atol=slope, rtol=1e-3)
    raw = nib.Nifti1Image(stored, affine())
    content = bytearray(raw.to_bytes())
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(content)
    assert np.allclose(
        read_image(path)[0][0].T, stored * float(np.float32(slope)) + float(np.float32(intercept)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 4), (1, 4, 5)),
        ((5, 4, 1), (1, 4, 5)),
        ((5, 4, 1, 1), (1, 4, 5)),
        ((5, 4, 3), (1, 3, 4, 5)),
        ((5, 4, 3, 1), (1, 3, 4, 5)),
        ((5, 4, 3, 1, 2), (2, 3, 4, 5)),
        ((5, 4, 1, 1, 3), (3, 4, 5)),
    ],
)
def test_last_axes_of_one_are_no_axes_and_a_fifth_is_one_of_channels(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    stored = noise(*shape)
    nib.save(nib.Nifti1Image(stored, affine()), tmp_path / "a.nii.gz")
    pixels, _ = read_image(tmp_path / "a.nii.gz")
    assert pixels.shape == expected
    assert np.array_equal(
        pixels[-1].T.squeeze(), stored.reshape(*shape[:3], -1)[..., -1].squeeze() if len(shape) > 2 else stored
    )
    assert np.allclose(nib.load(mask_of(tmp_path / "a.nii.gz")).affine, affine())


@pytest.mark.parametrize(("shape", "what"), [((5, 4, 1, 7), "7 images"), ((5, 4, 3, 2), "2 volumes")])
def test_several_times_are_a_clip(tmp_path: Path, shape: tuple[int, ...], what: str) -> None:
    nib.save(nib.Nifti1Image(noise(*shape), affine()), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=rf"a\.nii\.gz: holds {what} over time.*a clip and no volume"):
        read_image(tmp_path / "a.nii.gz")


def test_colours_are_channels(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype(np.uint8)
    colours = np.zeros((5, 4, 1), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for index, name in enumerate("RGB"):
        colours[name][..., 0] = picture[..., index].T
    nib.save(nib.Nifti1Image(colours, affine()), tmp_path / "a.nii.gz")
    assert np.array_equal(read_image(tmp_path / "a.nii.gz")[0], np.moveaxis(picture, -1, 0))
    sitk.WriteImage(sitk.GetImageFromArray(picture, isVector=True), str(tmp_path / "b.nii.gz"))
    pixels, geometry = read_image(tmp_path / "b.nii.gz")
    assert np.array_equal(pixels, np.moveaxis(picture, -1, 0))
    assert geometry.volume is None


def test_a_newer_header_is_read_and_masks_are_written_for_every_tool(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(noise(*SHAPE), affine((0.1, 0.2, 0.3))), tmp_path / "a.nii.gz")
    mask = mask_of(tmp_path / "a.nii.gz")
    assert isinstance(nib.load(mask), nib.Nifti1Image)
    assert np.allclose(nib.load(mask).affine, affine((0.1, 0.2, 0.3)), atol=1e-6)
    assert sitk.ReadImage(str(mask)).GetSize() == SHAPE


def test_a_mask_carries_no_words_of_its_image(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(*SHAPE), affine())
    image.header["descrip"], image.header["db_name"] = b"Name^Patient", b"1234567"
    nib.save(image, tmp_path / "a.nii")
    assert b"Patient" not in mask_of(tmp_path / "a.nii").read_bytes()


def test_real_values_keep_the_header_too(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", affine(origin=(1, 2, 3)), affine(), (4, 1))
    pixels, geometry = read_image(tmp_path / "a.nii.gz")
    write_image(tmp_path / "rewards.nii.gz", pixels[0] / 7, geometry)
    assert np.array_equal(places_in_nibabel(tmp_path / "rewards.nii.gz"), places_in_nibabel(tmp_path / "a.nii.gz"))
    assert np.allclose(read_image(tmp_path / "rewards.nii.gz")[0], pixels / 7)
    write_image(tmp_path / "plane.mha", pixels[0], geometry)
    assert read_image(tmp_path / "plane.mha")[1].matches(geometry, SHAPE[::-1])


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_asks_for_terabytes_is_refused_without_making_room(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_nifti(path, affine(), affine(), (1, 1))
    change_header(path, lambda content: content[:42] + np.array([20000, 20000, 2500], "<i2").tobytes() + content[48:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="its header asks for 2000000000352 bytes"):
        read_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_what_follows_the_pixels_is_not_kept_and_its_checksum_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, affine(), affine(), (1, 1))
    expected, _ = read_image(path)
    change_header(path, lambda content: content + bytes(10_000_000))
    assert np.array_equal(read_image(path)[0], expected)
    path.write_bytes(path.read_bytes()[:-8] + b"damage!!")
    with pytest.raises(DataError, match="damaged or truncated"):
        read_image(path)


@pytest.mark.parametrize("size", [0, 4, 100, 347])
def test_less_than_a_header_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, affine(), affine(), (1, 1))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"a\.nii"):
        read_image(path)


@pytest.mark.parametrize("pixdim", [3.0, float("nan")])
def test_a_qform_that_is_none_is_refused(tmp_path: Path, pixdim: float) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, None, affine(), (0, 1))
    change_header(path, lambda content: content[:76] + np.float32(pixdim).tobytes() + content[80:])
    with pytest.raises(DataError, match=r"a\.nii: (its header describes no grid|cannot be read)"):
        read_image(path)


def test_an_origin_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, affine(origin=(float("nan"), 0, 0)), None, (1, 0))
    with pytest.raises(DataError, match=r"a\.nii"):
        read_image(path)


def test_masks_of_version_2_are_read(tmp_path: Path) -> None:
    pixels = noise(*SHAPE, dtype=np.uint8) % 2
    nib.save(nib.Nifti2Image(pixels, affine()), tmp_path / "mask.nii")
    _, geometry = read_image(tmp_path / "mask.nii")
    assert np.array_equal(read_labels(tmp_path / "mask.nii", SCHEMA, SHAPE[::-1], geometry), pixels.T)


@pytest.mark.parametrize("version", [nib.Nifti1Header, nib.Nifti2Header])
def test_a_header_in_the_other_order_of_bytes_is_read(tmp_path: Path, version: type) -> None:
    image = nib.Nifti1Image if version is nib.Nifti1Header else nib.Nifti2Image
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nib.save(image(values, np.diag([2.0, 2.0, 3.0, 1.0]), version(endianness=">")), tmp_path / "a.nii")
    pixels, geometry = read_image(tmp_path / "a.nii")
    assert np.array_equal(pixels[0].T, values)
    assert geometry.spacing == (2.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("written", "named", "said"),
    [
        ("a.nii.gz", "b.nii", r"b\.nii: is compressed.*\.nii\.gz"),
        ("a.nii", "b.nii.gz", r"b\.nii\.gz: is not compressed"),
    ],
)
def test_a_name_that_says_otherwise_of_compression_is_no_damage(
    tmp_path: Path, written: str, named: str, said: str
) -> None:
    nib.save(nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)), tmp_path / written)
    (tmp_path / written).rename(tmp_path / named)
    with pytest.raises(DataError, match=said):
        read_image(tmp_path / named)


def test_distances_below_zero_are_refused_since_tools_mirror_them_or_not(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nib.save(nib.Nifti1Image(values, np.diag([-2.0, 2, 3, 1])), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    header["pixdim"][1] = -2
    content[:348] = header.binaryblock
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii: its pixdim \[-2\.0, 2\.0, 3\.0\] is negative.*mirrored"):
        read_image(tmp_path / "a.nii")
