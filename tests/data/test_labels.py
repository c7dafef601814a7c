"""How a mask was stored decides how it is compared: the same mask comes back of every file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from support.mask_files import (
    FLAT,
    PLACED,
    VOLUME,
    a_hair_off,
    by_itk,
    dicom_image,
    dicom_seg,
    itk,
    of_palette,
    slicer,
    source_slices,
)

from medfm_rl.data.images import hash_image, image_stem, read_image
from medfm_rl.data.labels import as_label_ids, read_label_ids, read_labels
from medfm_rl.data.mask_labels import parse_mask_labels
from medfm_rl.data.text_headers import pixel_files
from medfm_rl.errors import DataError
from medfm_rl.types import Geometry, LabelMap, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})
ALONE = LabelSchema.from_structures({"LV": 1})
NOWHERE = Geometry.unknown(2)
SLICE = Geometry.slice_of(VOLUME)
FIGURE = np.array([[0, 1, 1, 0, 0], [0, 1, 2, 2, 0], [0, 0, 3, 3, 0], [0, 0, 0, 0, 0]], dtype=np.uint8)
some = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@pytest.mark.parametrize("way", FLAT)
@some
@given(mask=hnp.arrays(np.uint8, (4, 8), elements=st.integers(0, 3)))
def test_a_flat_mask_comes_back_however_it_was_stored(tmp_path: Path, way: str, mask: LabelMap) -> None:
    path = FLAT[way](emptied(tmp_path / "masks"), mask)
    assert np.array_equal(read_labels(path, SCHEMA, mask.shape, NOWHERE), mask)
    assert np.array_equal(read_label_ids(path, SCHEMA, mask.shape, NOWHERE), mask)


@pytest.mark.parametrize("way", PLACED)
@some
@given(mask=hnp.arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 3)))
def test_a_volume_comes_back_however_it_was_stored(tmp_path: Path, way: str, mask: LabelMap) -> None:
    # A SEG without a single pixel has no place in space.
    mask[1, 2, 3] = 1
    path = PLACED[way](emptied(tmp_path / "masks"), mask)
    assert np.array_equal(read_labels(path, SCHEMA, mask.shape, VOLUME), mask)


@pytest.mark.parametrize("way", ["seg", "label map seg", "slicer", "slicer, layers", "slicer, cropped"])
def test_a_mask_of_one_slice_belongs_to_its_flat_image(tmp_path: Path, way: str) -> None:
    path = PLACED[way](tmp_path, FIGURE)
    assert np.array_equal(read_labels(path, SCHEMA, FIGURE.shape, SLICE), FIGURE)


def test_a_label_map_of_a_dicom_image_is_read_as_its_pixels(tmp_path: Path) -> None:
    path = dicom_image(tmp_path, FIGURE)
    _, geometry = read_image(path)
    assert np.array_equal(read_labels(path, SCHEMA, FIGURE.shape, geometry), FIGURE)


def test_a_mask_of_slicer_belongs_to_a_picture_too(tmp_path: Path) -> None:
    path = slicer(cropped=True)(tmp_path, FIGURE)
    image = sitk.ReadImage(str(path))
    image.SetSpacing((1, 1, 1))
    image.SetOrigin((1, 0, 0))
    sitk.WriteImage(image, str(path))
    assert np.array_equal(read_labels(path, SCHEMA, FIGURE.shape, NOWHERE), FIGURE)


# Integers with a little on top.


def test_reals_are_labels_within_what_their_header_can_store(tmp_path: Path) -> None:
    """As nibabel stored the integers 0 to 2: 1 as 127.5 steps of 2 / 255, rounded to 128."""
    assert as_label_ids([0.0, 256 / 255, 2.0], "a", step=2 / 255).tolist() == [0, 1, 2]
    assert as_label_ids([1.9999999, 2.0000001], "a").tolist() == [2, 2]
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(a_hair_off(tmp_path, FIGURE))))
    assert (values != FIGURE).any()


@pytest.mark.parametrize("step", [0.0, 2 / 255, 1.0, 3.0])
def test_an_interpolated_mask_is_refused_whatever_its_header_can_store(step: float) -> None:
    with pytest.raises(DataError, match="a: a mask holds integers, this one does not; was it interpolated"):
        as_label_ids([0.0, 0.5, 1.0], "a", step)
    with pytest.raises(DataError, match="a: a mask holds integers, this one NaN or infinity too"):
        as_label_ids([0.0, np.nan], "a", step)


def test_a_number_beyond_all_integers_is_refused_without_a_warning() -> None:
    with pytest.raises(DataError, match="a mask holds integers, this one does not"):
        as_label_ids(np.array([0.0, 1e30]), "mask")


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 255), min_size=2, max_size=20), bits=st.sampled_from([8, 16]))
def test_labels_come_back_from_every_scale_of_a_header(labels: list[int], bits: int) -> None:
    """The rule of nibabel: the least value becomes the least integer, the greatest the greatest."""
    low, high = min(labels), max(labels)
    step = (high - low) / (2**bits - 1) or 1.0
    stored = np.round((np.array(labels) - low) / step)
    assert as_label_ids(stored * step + low, "a", step).tolist() == labels


# Pictures.


def test_a_mask_of_one_bit_is_the_label_or_the_white_that_is_expected(tmp_path: Path) -> None:
    mask = (FIGURE == 1).astype(np.uint8)
    for suffix in (".png", ".bmp", ".tif"):
        Image.fromarray(mask > 0).save(tmp_path / f"a{suffix}")
        for white in (1, 255):
            schema = LabelSchema.from_structures({"LV": white})
            assert np.array_equal(read_labels(tmp_path / f"a{suffix}", schema, mask.shape, NOWHERE), mask)
    both = LabelSchema.from_structures({"LV": 1, "LA": 255})
    with pytest.raises(DataError, match=r"a\.png: its pixels can be the labels \[0, 1\] or \[0, 255\]"):
        read_labels(tmp_path / "a.png", both, mask.shape, NOWHERE)


def test_a_palette_of_black_and_white_the_other_way_round_is_not_turned_over(tmp_path: Path) -> None:
    mask = (FIGURE == 1).astype(np.uint8)
    of_palette(1 - mask, [255, 255, 255, 0, 0, 0]).save(tmp_path / "a.png")
    schema = LabelSchema.from_structures({"LV": 255})
    assert np.array_equal(read_labels(tmp_path / "a.png", schema, mask.shape, NOWHERE), mask)
    with pytest.raises(DataError, match=r"a\.png: label 255 is not one of those that are expected"):
        read_labels(tmp_path / "a.png", ALONE, mask.shape, NOWHERE)


def test_colours_are_named_and_not_taken_for_labels(tmp_path: Path) -> None:
    of_palette(FIGURE).convert("RGB").save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: a mask has one value for each pixel.*\(0, 0, 0\), .*\(128, 0, 0\)"):
        read_labels(tmp_path / "a.png", SCHEMA, FIGURE.shape, NOWHERE)


def test_labelled_pixels_that_are_transparent_are_refused(tmp_path: Path) -> None:
    grey = Image.fromarray(FIGURE)
    Image.merge("LA", (grey, Image.fromarray(np.where(FIGURE, 255, 0).astype(np.uint8)))).save(tmp_path / "a.png")
    assert np.array_equal(read_labels(tmp_path / "a.png", SCHEMA, FIGURE.shape, NOWHERE), FIGURE)
    Image.merge("LA", (grey, Image.fromarray(np.where(FIGURE, 0, 255).astype(np.uint8)))).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: labelled pixels are transparent"):
        read_labels(tmp_path / "a.png", SCHEMA, FIGURE.shape, NOWHERE)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.png"])
@pytest.mark.parametrize("values", ["fitting", "others"])
def test_a_jpeg_is_no_mask_also_where_its_values_would_do(tmp_path: Path, name: str, values: str) -> None:
    mask = np.zeros((16, 16), np.uint8) if values == "fitting" else np.kron(FIGURE, np.full((4, 4), 80, np.uint8))
    Image.fromarray(mask).save(tmp_path / name, format="JPEG")
    with pytest.raises(DataError, match=rf"{name}: is compressed as JPEG, which changes labels.*PNG, NIfTI or \.mha"):
        read_labels(tmp_path / name, ALONE, mask.shape, NOWHERE)


def test_a_tiff_with_pixels_of_jpeg_is_no_mask(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "a.tif", compression="jpeg")
    with pytest.raises(DataError, match=r"a\.tif: is compressed as JPEG"):
        read_labels(tmp_path / "a.tif", ALONE, (16, 16), NOWHERE)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_mask_that_is_to_be_shown_turned_is_refused(tmp_path: Path, suffix: str) -> None:
    turned = Image.Exif()
    turned[274] = 3
    Image.fromarray(FIGURE).save(tmp_path / f"a{suffix}", exif=turned)
    with pytest.raises(DataError, match=rf"a\{suffix}: is stored turned or mirrored \(orientation 3\)"):
        read_labels(tmp_path / f"a{suffix}", SCHEMA, FIGURE.shape, NOWHERE)


def test_nan_in_a_mask_is_called_so(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = by_itk(".nii.gz", np.float32)(tmp_path, np.where(FIGURE, np.nan, 0)[None])
    with pytest.raises(DataError, match="a mask holds integers, this one NaN"):
        read_labels(path, SCHEMA, FIGURE.shape, SLICE)
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


# Segments with names.


@pytest.mark.parametrize("writer", [dicom_seg, slicer])
def test_segments_go_by_their_names_and_not_by_their_numbers(tmp_path: Path, writer, caplog) -> None:
    path = writer(names=("LA", "m-y o", "lv"))(tmp_path, FIGURE)
    expected = np.array([0, 3, 2, 1], np.uint8)[FIGURE]
    assert np.array_equal(read_labels(path, SCHEMA, FIGURE.shape, SLICE), expected)
    assert not caplog.records


@pytest.mark.parametrize("writer", [dicom_seg, slicer])
def test_a_segment_of_no_structure_is_refused_and_can_be_said_by_its_number(tmp_path: Path, writer) -> None:
    path = writer(names=("ventricle", "MYO", "LA"))(tmp_path, FIGURE)
    with pytest.raises(DataError, match=r"segment 'ventricle' is none of.*1 'ventricle', 2 'MYO', 3 'LA'.*LV=1"):
        read_labels(path, SCHEMA, FIGURE.shape, SLICE)
    told = parse_mask_labels("LV=1,MYO=2,LA=3", SCHEMA)
    assert np.array_equal(read_labels(path, SCHEMA, FIGURE.shape, SLICE, told), FIGURE)
    # Prompts ask where the structures are, and no more.
    assert np.array_equal(read_label_ids(path, SCHEMA, FIGURE.shape, SLICE), np.where(FIGURE == 1, 0, FIGURE))


@pytest.mark.parametrize("writer", [dicom_seg, slicer])
def test_a_structure_without_a_segment_is_absent_and_a_warning_says_so(tmp_path: Path, writer, caplog) -> None:
    mask = np.where(FIGURE == 1, 1, 0).astype(np.uint8)
    path = writer(names=("LV",))(tmp_path, mask)
    assert np.array_equal(read_labels(path, SCHEMA, FIGURE.shape, SLICE), mask)
    assert "has no segment MYO and no LA; taken to be absent" in caplog.text


def test_segments_that_overlap_are_refused(tmp_path: Path) -> None:
    path = slicer(layered=True)(tmp_path, FIGURE)
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    array[0, 0, 1, 1] = 1
    changed = itk(array, vector=True)
    for key in image.GetMetaDataKeys():
        changed.SetMetaData(key, image.GetMetaData(key))
    sitk.WriteImage(changed, str(path))
    with pytest.raises(DataError, match="segment MYO overlaps another one"):
        read_labels(path, SCHEMA, FIGURE.shape, SLICE)
    both = read_labels(path, LabelSchema.of_regions(("LV", "MYO", "LA")), FIGURE.shape, SLICE)
    expected = np.array([0, 1, 2, 4])[FIGURE]
    expected[0, 1] |= 2
    assert np.array_equal(both, expected)


@pytest.mark.parametrize("writer", [dicom_seg, slicer])
def test_a_mask_on_another_grid_or_of_another_image_is_refused(tmp_path: Path, writer) -> None:
    path = writer()(tmp_path, FIGURE)
    shifted = Geometry.slice_of(Geometry(VOLUME.spacing, (1.25, 2.0, 3.0), VOLUME.direction))
    with pytest.raises(DataError, match="lies on another grid than its image"):
        read_labels(path, SCHEMA, FIGURE.shape, shifted)
    coarser = Geometry.slice_of(Geometry((0.25, 0.7, 2.5), VOLUME.origin, VOLUME.direction))
    with pytest.raises(DataError, match="lies on another grid than its image"):
        read_labels(path, SCHEMA, (4, 10), coarser)
    elsewhere = Geometry.slice_of(Geometry(VOLUME.spacing, (-9.0, 2.0, 3.0), VOLUME.direction))
    with pytest.raises(DataError, match="lie outside its image"):
        read_labels(path, SCHEMA, FIGURE.shape, elsewhere)


def test_an_image_that_runs_the_other_way_gets_its_mask_the_other_way(tmp_path: Path) -> None:
    mask = np.stack([FIGURE, np.zeros_like(FIGURE), FIGURE[::-1]])
    path = dicom_seg()(tmp_path, mask)
    turned = Geometry(VOLUME.spacing, (3.0, 2.0, 8.0), (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    assert np.array_equal(read_labels(path, SCHEMA, mask.shape, turned), mask[::-1, :, ::-1])


def test_shares_of_pixels_are_refused(tmp_path: Path) -> None:
    path = dicom_seg("FRACTIONAL")(tmp_path, FIGURE)
    with pytest.raises(DataError, match="holds shares of pixels"):
        read_labels(path, SCHEMA, FIGURE.shape, SLICE)


def test_a_structure_set_is_refused_by_name_with_a_way_out(tmp_path: Path) -> None:
    data = source_slices((1, 4, 5))[0]
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    del data.PixelData, data.Rows, data.Columns, data.BitsAllocated
    pydicom.dcmwrite(tmp_path / "a.dcm", data)
    with pytest.raises(DataError, match=r"a\.dcm: is an RT structure set \(RTSTRUCT\).*DICOM SEG or NIfTI"):
        read_labels(tmp_path / "a.dcm", SCHEMA, (4, 5), SLICE)


@pytest.mark.parametrize("place", ["series/1-1.dcm", "series/IM0001", "IM0001"])
def test_segments_go_by_their_names_wherever_an_archive_puts_the_file(tmp_path: Path, place: str) -> None:
    mask = np.where(FIGURE == 1, 2, 0).astype(np.uint8)
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    dicom_seg(names=("MYO",))(tmp_path, np.where(FIGURE == 1, 1, 0).astype(np.uint8)).rename(path)
    given = path.parent if path.parent != tmp_path else path
    assert np.array_equal(read_labels(given, SCHEMA, FIGURE.shape, SLICE), mask)
    if given.is_dir():
        shutil.copy(path, path.with_name("other"))
        with pytest.raises(DataError, match=r"series: holds 2 DICOM SEG \(.*other.*\), and a mask is one file"):
            read_labels(given, SCHEMA, FIGURE.shape, SLICE)


def test_a_seg_without_dimensions_is_refused_by_name(tmp_path: Path) -> None:
    path = dicom_seg()(tmp_path, np.stack([FIGURE, FIGURE]))
    data = pydicom.dcmread(path)
    del data.DimensionIndexSequence, data.DimensionOrganizationSequence
    data.save_as(path)
    with pytest.raises(DataError, match=r"mask\.dcm: is a DICOM SEG that is not as the standard wants it"):
        read_labels(path, SCHEMA, (2, *FIGURE.shape), VOLUME)


def test_a_seg_without_a_list_of_segments_is_refused(tmp_path: Path) -> None:
    data = source_slices((1, 4, 5))[0]
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    pydicom.dcmwrite(tmp_path / "a.dcm", data)
    with pytest.raises(
        DataError, match=r"a\.dcm: is a DICOM SEG that is not as the standard wants it \(it lacks \w+\)"
    ):
        read_labels(tmp_path / "a.dcm", SCHEMA, (4, 5), SLICE)


@pytest.mark.parametrize("how", ["syntax", "flag"])
def test_a_dicom_mask_that_was_compressed_with_loss_is_refused(tmp_path: Path, how: str) -> None:
    data = source_slices((1, 4, 5))[0]
    if how == "flag":
        data.LossyImageCompression = "01"
    else:
        data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
    pydicom.dcmwrite(tmp_path / "a.dcm", data)
    with pytest.raises(DataError, match=r"a\.dcm: the pixels are compressed with loss"):
        read_labels(tmp_path / "a.dcm", SCHEMA, (4, 5), SLICE)


# Files that lie in two.


def test_a_header_of_metaimage_can_name_its_pixels_whatever_its_ending(tmp_path: Path) -> None:
    (tmp_path / "p.raw").write_bytes(bytes(range(4)))
    head = "ObjectType = Image\nNDims = 2\nDimSize = 2 2\nElementType = MET_UCHAR\nElementDataFile = "
    for ending, expected in {"p.raw\n": ["p.raw"], "LIST\np.raw\n": ["p.raw"], "LOCAL\nabcd": []}.items():
        for suffix in (".mhd", ".mha"):
            path = tmp_path / f"a{suffix}"
            path.write_text(head + ending)
            assert pixel_files(path) == [tmp_path / name for name in expected]


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_the_hash_of_a_header_covers_its_pixels(tmp_path: Path, suffix: str) -> None:
    path = by_itk(suffix)(tmp_path, FIGURE)
    (pixels,) = pixel_files(path)
    before = hash_image(path)
    content = bytearray(pixels.read_bytes())
    content[-1] ^= 1
    pixels.write_bytes(bytes(content))
    assert hash_image(path) != before


def test_a_header_of_nrrd_can_name_its_pixels_in_three_ways(tmp_path: Path) -> None:
    head = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
    for number in (1, 2):
        (tmp_path / f"p{number}.raw").write_bytes(b"\0\1\2\3")
    both = [tmp_path / "p1.raw", tmp_path / "p2.raw"]
    for field, expected in {
        "data file: p1.raw": both[:1],
        "datafile: LIST\np1.raw\np2.raw": both,
        "data file: p%d.raw 1 2 1": both,
    }.items():
        (tmp_path / "a.nhdr").write_text(f"{head}{field}\n")
        assert pixel_files(tmp_path / "a.nhdr") == expected
    (tmp_path / "c.nhdr").write_text(f"{head}data file: q%d.raw 1 2 1\n")
    assert pixel_files(tmp_path / "c.nhdr") == [tmp_path / "q%d.raw"]
    # Beyond the header there are pixels, whatever they look like.
    (tmp_path / "b.nrrd").write_bytes(f"{head}\n".encode() + b"\ndata file: x")
    assert pixel_files(tmp_path / "b.nrrd") == []


def test_a_segmentation_of_slicer_has_the_name_of_its_image() -> None:
    assert image_stem(Path("p1_ED.seg.nrrd")) == "p1_ED"


@pytest.mark.parametrize("writer", [dicom_seg, slicer])
def test_segments_of_overlapping_structures_are_read_by_their_names(tmp_path: Path, writer) -> None:
    schema = LabelSchema.of_regions(("MYO", "LA", "LV"))
    found = read_labels(writer()(tmp_path, FIGURE), schema, FIGURE.shape, SLICE)
    assert np.array_equal(found, np.array([0, 4, 1, 2])[FIGURE])
    with pytest.raises(DataError, match="segment 'LA' is none of the structures"):
        read_labels(writer()(tmp_path, FIGURE), LabelSchema.of_regions(("MYO", "LV")), FIGURE.shape, SLICE)
