"""Headers of MetaImage and NRRD that ITK would take, misread, or end the process on."""

from __future__ import annotations

import bz2
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medfm_rl.data.images import read_image
from medfm_rl.data.labels import list_labels
from medfm_rl.errors import DataError

PIXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def write(path: Path, compressed: bool = False) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(PIXELS), str(path), useCompression=compressed)
    return path


def replace(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_itk_writes_is_read(tmp_path: Path, suffix: str, compressed: bool) -> None:
    pixels, _ = read_image(write(tmp_path / f"image{suffix}", compressed))
    assert np.array_equal(pixels[0], PIXELS)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"DimSize = 5 4 3", b"DimSize = 20000 20000 2500", "bytes of pixels"),
        (b"DimSize = 5 4 3", b"DimSize = 5 4 3\nDimSize = 5 4 2", "stands twice"),
        (b"DimSize = 5 4 3", b"DimSize = 5 4", "DimSize"),
        (b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 1 1,5", "ElementSpacing"),
        (b"Offset = 0 0 0", b"Offset = nan 0 0", "Offset"),
        (b"NDims = 3", b"NDims = 1000000", "NDims"),
    ],
)
def test_a_meta_image_that_contradicts_itself_is_refused(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    path = replace(write(tmp_path / "a.mha"), old, new)
    with pytest.raises(DataError, match=f"a\\.mha.*{said}"):
        read_image(path)


@pytest.mark.parametrize("field", [b"CompressedDataSize", b"DimSize"])
def test_compressed_pixels_that_are_not_as_said_are_refused_and_end_no_process(tmp_path: Path, field: bytes) -> None:
    path = write(tmp_path / "a.mha", compressed=True)
    line = next(line for line in path.read_bytes().split(b"\n") if line.startswith(field))
    replace(path, line, field + (b" = 10" if field == b"CompressedDataSize" else b" = 5 4 30"))
    with pytest.raises(DataError, match=r"a\.mha.*contradicts itself"):
        read_image(path)


def test_the_checksum_of_compressed_pixels_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mha", compressed=True)
    path.write_bytes(path.read_bytes()[:-1] + b"\x5a")
    with pytest.raises(DataError, match=r"a\.mha.*incorrect data check"):
        read_image(path)


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (b"sizes: 20000 20000 2500", "bytes of pixels"),
        (b"sizes: 5 4 3\nsizes: 5 4 2", "stands twice"),
        (b"sizes: 5 4 3\nnonsense: " + b"a" * 5000, "no field 'nonsense'"),
        (b"sizes: 5 4 3\nlabels: " + b"a" * 5000, "characters long"),
        (b"sizes: 1,5 4 3", "sizes"),
    ],
)
def test_an_nrrd_that_contradicts_itself_is_refused_and_ends_no_process(tmp_path: Path, new: bytes, said: str) -> None:
    path = replace(write(tmp_path / "a.nrrd"), b"sizes: 5 4 3", new)
    with pytest.raises(DataError, match=f"a\\.nrrd.*{said}"):
        read_image(path)


def test_raw_pixels_that_are_said_to_be_compressed_are_refused(tmp_path: Path) -> None:
    path = replace(write(tmp_path / "a.nrrd"), b"encoding: raw", b"encoding: gzip")
    with pytest.raises(DataError, match=r"a\.nrrd: cannot be read"):
        read_image(path)


def test_pixels_that_are_compressed_by_bzip2_are_refused_with_a_way_out(tmp_path: Path) -> None:
    path = replace(write(tmp_path / "a.nrrd"), b"encoding: raw", b"encoding: bzip2")
    head, _, pixels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(head + b"\n\n" + bz2.compress(pixels))
    with pytest.raises(
        DataError, match=r"a\.nrrd: is compressed by bzip2, which ITK does not read; write it with gzip"
    ):
        read_image(path)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii.gz"])
def test_a_fourth_axis_of_one_time_is_none(tmp_path: Path, suffix: str) -> None:
    image = sitk.JoinSeries([sitk.GetImageFromArray(PIXELS)])
    image.SetSpacing((0.5, 0.75, 2.0, 1.0))
    image.SetOrigin((1.0, 2.0, 3.0, 0.0))
    sitk.WriteImage(image, str(tmp_path / f"one{suffix}"))
    pixels, geometry = read_image(tmp_path / f"one{suffix}")
    assert np.array_equal(pixels[0], PIXELS)
    assert geometry.spacing == (0.5, 0.75, 2.0)
    assert np.allclose(geometry.origin, (1.0, 2.0, 3.0))
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(PIXELS)] * 2), str(tmp_path / f"two{suffix}"))
    with pytest.raises(DataError, match=f"two{suffix}: holds 2 .*over time"):
        read_image(tmp_path / f"two{suffix}")


def test_detached_pixels_are_found_beside_a_header_whose_ending_is_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(PIXELS.tobytes())
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 4 3\nendian: little\nencoding: raw\ndata file: a.raw\n"
    segment = "Segment0_Name:=LV\nSegment0_LabelValue:=7\nSegment0_Layer:=0\n"
    (tmp_path / "A.NHDR").write_text(head)
    assert np.array_equal(read_image(tmp_path / "A.NHDR")[0][0], PIXELS)
    (tmp_path / "B.NHDR").write_text(head + segment)
    with pytest.raises(DataError, match="holds 1, which belongs to none of its segments"):
        list_labels(tmp_path / "B.NHDR")
