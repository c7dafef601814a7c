"""Pictures are read as they are stored, and refused where tools would see different things in them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfm_rl.data.images import read_image
from medfm_rl.errors import DataError

GREY = np.random.default_rng(0).integers(0, 200, (18, 20)).astype(np.uint8)
RGB = np.random.default_rng(1).integers(0, 200, (18, 20, 3)).astype(np.uint8)


def write_tiff(
    path: Path, rows: np.ndarray, photometric: int = 1, tiled: bool = False, in_planes: bool = False
) -> None:
    """A TIFF as scanners and microscopes write it: uncompressed, in one strip or tile for each plane."""
    samples = rows.shape[2] if rows.ndim == 3 else 1
    height, width = rows.shape[:2]
    planes = [rows[..., index] for index in range(samples)] if in_planes else [rows]
    if tiled:
        planes = [np.pad(plane, ((0, 32 - height), (0, 32 - width), *[(0, 0)] * (plane.ndim - 2))) for plane in planes]
    parts = [plane.tobytes() for plane in planes]
    bits = 8 * rows.dtype.itemsize
    offsets = [8 + sum(map(len, parts[:index])) for index in range(len(parts))]
    place, count = (324, 325) if tiled else (273, 279)
    fields: dict[int, tuple[int, list[int]]] = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [bits] * samples),
        259: (3, [1]),
        262: (3, [photometric]),
        277: (3, [samples]),
        284: (3, [2 if in_planes else 1]),
        place: (4, offsets),
        count: (4, [len(part) for part in parts]),
        **({322: (3, [32]), 323: (3, [32])} if tiled else {278: (3, [height])}),
    }
    start = 8 + sum(map(len, parts))
    beyond = start + 2 + 12 * len(fields) + 4
    entries, more = b"", b""
    for tag, (kind, values) in sorted(fields.items()):
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            entries += struct.pack("<HHII", tag, kind, len(values), beyond + len(more))
            more += packed
        else:
            entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    directory = struct.pack("<H", len(fields)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + b"".join(parts) + directory + more)


@pytest.mark.parametrize("form", [{}, {"tiled": True}])
def test_a_grey_tiff_is_grey_however_it_is_laid_out(tmp_path: Path, form: dict[str, bool]) -> None:
    write_tiff(tmp_path / "a.tif", GREY, **form)
    assert np.array_equal(read_image(tmp_path / "a.tif")[0], GREY[None])


@pytest.mark.parametrize("form", [{}, {"tiled": True}, {"in_planes": True}])
def test_a_tiff_in_colours_has_three_however_it_is_laid_out(tmp_path: Path, form: dict[str, bool]) -> None:
    write_tiff(tmp_path / "a.tif", RGB, photometric=2, **form)
    assert np.array_equal(read_image(tmp_path / "a.tif")[0], np.moveaxis(RGB, -1, 0))


def test_a_palette_of_a_tiff_gives_the_colours_that_it_gives_in_png(tmp_path: Path) -> None:
    picture = Image.fromarray(GREY % 4, "P")
    picture.putpalette([0, 0, 0, 200, 10, 0, 0, 100, 0, 7, 8, 9])
    for name in ("a.tif", "a.png"):
        picture.save(tmp_path / name)
    assert np.array_equal(read_image(tmp_path / "a.tif")[0], read_image(tmp_path / "a.png")[0])


def test_pixels_of_one_bit_are_black_and_white(tmp_path: Path) -> None:
    for name in ("a.tif", "a.png"):
        Image.fromarray(GREY > 100).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name)[0][0], (GREY > 100) * 255)


def test_a_negative_is_turned_round_or_refused(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", 255 - GREY, photometric=0)
    assert np.array_equal(read_image(tmp_path / "a.tif")[0][0], GREY)
    write_tiff(tmp_path / "b.tif", GREY.astype(np.uint16), photometric=0)
    with pytest.raises(DataError, match=r"b\.tif: is stored as a negative"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize(("form", "pixels"), [({"tiled": True}, GREY), ({"in_planes": True}, RGB)])
def test_many_bits_that_would_become_8_are_refused(tmp_path: Path, form: dict[str, bool], pixels: np.ndarray) -> None:
    write_tiff(tmp_path / "a.tif", 300 * pixels.astype(np.uint16), photometric=1 if pixels is GREY else 2, **form)
    with pytest.raises(DataError, match=r"a\.tif: cannot be read as it is stored.*plain TIFF"):
        read_image(tmp_path / "a.tif")


def opaque(picture: Image.Image) -> Image.Image:
    return picture.convert("LA")


def one_value_transparent(picture: Image.Image) -> Image.Image:
    picture.info["transparency"] = 255
    return picture


@pytest.mark.parametrize("change", [opaque, one_value_transparent])
def test_an_opacity_that_hides_nothing_is_dropped(tmp_path: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    change(Image.fromarray(GREY)).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png")[0], GREY[None])
    Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(GREY))).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: is transparent in part"):
        read_image(tmp_path / "b.png")


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 6, 9])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_picture_that_is_to_be_shown_turned_is_refused(tmp_path: Path, suffix: str, orientation: int) -> None:
    said, path = Image.Exif(), tmp_path / f"a{suffix}"
    said[274] = orientation
    Image.fromarray(GREY).save(path, exif=said)
    if orientation in (2, 3, 6):
        with pytest.raises(DataError, match=rf"a\{suffix}: is stored turned or mirrored \(orientation {orientation}\)"):
            read_image(path)
    else:
        assert read_image(path)[0].shape == (1, *GREY.shape)


def test_words_in_exif_that_cannot_be_read_cost_no_picture(tmp_path: Path) -> None:
    written = io.BytesIO()
    Image.fromarray(GREY).save(written, "JPEG", exif=b"Exif\0\0nothing of the kind")
    (tmp_path / "a.jpg").write_bytes(written.getvalue())
    assert read_image(tmp_path / "a.jpg")[0].shape == (1, *GREY.shape)
