"""Pictures that ITK reads otherwise than they are stored, and masks in PNG, BMP and TIFF with palettes and few bits."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from medfm_rl.errors import DataError
from medfm_rl.types import IntArray

PICTURES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Endings of the formats that hold a picture, and no place in space."""
_JPEG: Final = b"\xff\xd8\xff"
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = 258, 262, 274, 277
"""The TIFF fields Bits per Sample, Photometric Interpretation, Orientation (one of EXIF too) and Samples per Pixel."""
_RGBA = 4
_NEGATIVE: Final = 0
_TURNED: Final = range(2, 9)
"""Orientations that are not as the pixels are stored."""
TIFF: Final = (".tif", ".tiff")
"""Formats of pages, which may be slices, times, sizes of one picture or pictures that have nothing in common."""
_WHITE: Final = 255
_COLOURED: Final = ("LA", "RGB", "RGBA")
_MODES: Final = ("1", "L", "P", *_COLOURED)
"""What Pillow calls pictures of up to 8 bits a value."""
_SHOWN: Final = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}
"""As what pictures of one bit, greys, palettes and colours are read, by their modes."""
_MOST_COLOURS = 4
"""Colours of a picture that are named."""
_WHOLE: Final = (".png", ".bmp", ".jpg", ".jpeg")
"""Formats that Pillow reads all of; of TIFF there is more than it knows."""
_UNREADABLE: Final = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises where a picture is damaged, or larger than it takes for one."""
_LOSSY: Final = ("jpeg", "tiff_jpeg", "webp", "jpeg2000")


def several_pages(path: Path, count: int) -> DataError:
    """What to raise where a file of pages has more than one."""
    return DataError(
        f"{path}: has {count} pages, and nothing says whether they are slices of a volume, times, or sizes of one "
        "picture. Write a volume to a format that holds its spacing (.nii.gz, .mha), and pictures to a file each"
    )


def is_picture(path: Path) -> bool:
    """Whether a file is of a kind that holds a picture, and no place in space."""
    return path.suffix.lower() in PICTURES


def require_whole_picture(path: Path) -> None:
    """Refuses a picture that is damaged or not complete: ITK fills what is missing with whatever is in memory.

    Raises:
        DataError: Pillow cannot read all of it, or it is turned.
    """
    if path.suffix.lower() not in _WHOLE:
        return
    try:
        with warnings.catch_warnings():
            # It warns of pictures from 89 million pixels on.
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                picture.load()
                _require_upright(picture, path)
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read; the picture is damaged, truncated or too large ({error})") from error


def read_picture(path: Path) -> npt.NDArray[np.uint8] | None:
    """Pixels `(C, H, W)` of a picture that ITK does not read as it is stored; None of others.

    Those are greys with an opacity in PNG, and TIFF of up to 8 bits: where it is tiled, in planes, of one bit, a
    palette or a negative, ITK reads other colours, or four in place of one.

    Raises:
        DataError: It is transparent in part, or a TIFF that is turned, a negative of more than 8 bits, or of several
            pages. Whether a PNG is turned, `require_whole_picture` says.
    """
    suffix = path.suffix.lower()
    if suffix not in (".png", *TIFF):
        return None
    try:
        with warnings.catch_warnings():
            # It warns of pictures from 89 million pixels on.
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                bits = _bits(picture, path)
                if suffix in TIFF:
                    _require_upright(picture, path)
                    return _pixels_of_tiff(picture, path, bits)
                has_opacity = picture.mode == "LA" or (picture.mode == "L" and "transparency" in picture.info)
                if bits > 8 or not has_opacity:
                    return None
                grey, opacity = np.moveaxis(np.asarray(picture.convert("LA")), -1, 0)
    except _UNREADABLE:
        return None  # Reading it with ITK says why.
    if opacity.min() < _WHITE:
        raise transparent(path)
    found: npt.NDArray[np.uint8] = grey[None]
    return found


def _pixels_of_tiff(picture: Image.Image, path: Path, bits: int) -> npt.NDArray[np.uint8] | None:
    """The same of a TIFF; those with an opacity, or of channels that are no colours, are left to ITK."""
    fields = getattr(picture, "tag_v2", {})
    if bits > 8 and fields.get(_PHOTOMETRIC) == _NEGATIVE:
        raise DataError(
            f"{path}: is stored as a negative (MinIsWhite), which some tools turn round and others do not; write it "
            "again with black as 0"
        )
    if bits > 8 or picture.mode not in _SHOWN or fields.get(_SAMPLES, 1) != len(picture.getbands()):
        return None
    if (count := getattr(picture, "n_frames", 1)) > 1:
        raise several_pages(path, count)
    pixels = np.asarray(picture.convert(_SHOWN[picture.mode]))
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def transparent(where: Path | str) -> DataError:
    """What to raise where a picture shows what lies behind it."""
    return DataError(f"{where}: is transparent in part, so what it shows depends on what lies behind; flatten it")


def require_as_stored(path: Path, pixels: npt.NDArray[Any]) -> None:
    """Refuses a TIFF that ITK has turned into colours and opacity of 8 bits, and that does not hold these.

    Args:
        path: The file.
        pixels: What ITK reads, `(C, H, W)`.

    Raises:
        DataError: It has.
    """
    if path.suffix.lower() not in TIFF or len(pixels) != _RGBA or pixels.dtype != np.uint8:
        return
    try:
        with Image.open(path) as picture:
            stored = _bits(picture, path) <= 8 and getattr(picture, "tag_v2", {}).get(_SAMPLES, 1) == _RGBA
    except _UNREADABLE:
        stored = False
    if not stored:
        raise DataError(
            f"{path}: cannot be read as it is stored, in tiles or in planes of more than 8 bits; write it again as a "
            "plain TIFF (in strips), or as PNG or .mha"
        )


def _require_upright(picture: Image.Image, path: Path) -> None:
    """Refuses a picture that is to be shown in another orientation than it is stored in.

    Viewers and some libraries turn it, others do not: a mask that was drawn on what is shown would lie elsewhere.

    Raises:
        DataError: It is.
        OSError: Its pixels are damaged; or what else Pillow raises then.
    """
    if path.suffix.lower() not in TIFF:
        # What PNG says of it may lie behind the pixels; Pillow turns a TIFF when it loads that.
        picture.load()
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except _UNREADABLE:
        return
    if orientation in _TURNED:
        raise DataError(
            f"{path}: is stored turned or mirrored (orientation {orientation}), and tools differ in whether they turn "
            "it back, so that masks would lie elsewhere; write it upright, such as by `magick mogrify -auto-orient` or "
            "ImageOps.exif_transpose of Pillow, and check that its mask lies on it"
        )


def require_as_shown(path: Path, pixels: npt.NDArray[Any]) -> None:
    """Refuses a BMP of whose colours ITK and Pillow say different things, for its header contradicts itself.

    Args:
        path: The file.
        pixels: What ITK reads, `(C, H, W)`.

    Raises:
        DataError: They do.
    """
    if path.suffix.lower() != ".bmp" or len(pixels) != 3:
        return
    with Image.open(path) as picture:
        shown = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
    if not np.array_equal(shown, pixels):
        raise DataError(f"{path}: cannot be read; its header contradicts its pixels. Write it again, as PNG")


def refuse_lossy_picture(path: Path) -> None:
    """Refuses a picture whose compression changes pixels, also where what it shows would do as labels.

    Raises:
        DataError: It is a JPEG, whatever its name, or a TIFF with such pixels; or cannot be read.
    """
    try:
        with path.open("rb") as file:
            lossy = file.read(len(_JPEG)) == _JPEG
        if not lossy and path.suffix.lower() in TIFF:
            with Image.open(path) as picture:
                lossy = picture.info.get("compression") in _LOSSY
    except _UNREADABLE:
        # Who reads the pixels says why.
        return
    if lossy:
        raise DataError(
            f"{path}: is compressed as JPEG, which changes labels near every contour, whatever the quality; write the "
            "mask again as PNG, NIfTI or .mha, from the tool that made it"
        )


def readings_of_picture(path: Path) -> list[IntArray] | None:
    """The integers that the pixels of a picture may mean, each `(H, W)`.

    A palette of colours numbers the pixels. One of greys stands for the greys; where they only spread the numbers from
    black to white, the numbers can be meant as well. So they can where a pixel has fewer than 8 bits, which are shown
    as greys up to 255. Equal colours are one grey, and what is opaque needs no channel that says so.

    Returns:
        The numbers first, then the greys, where both can be meant; None for 16 bits and more, where pixels are values
        and any reader will do.

    Raises:
        DataError: Colours differ, labelled pixels are transparent, a pixel has a number that the palette lacks, it is
            turned, or there are several pages.
    """
    if not is_picture(path):
        return None
    try:
        with Image.open(path) as picture:
            _require_upright(picture, path)
            bits, mode, palette = _bits(picture, path), picture.mode, picture.getpalette("RGB")
            if bits > 8 or mode not in _MODES:
                return None
            count = getattr(picture, "n_frames", 1)
            pixels = np.asarray(picture).astype(np.int64)
    except _UNREADABLE:
        # Who reads the pixels says why.
        return None
    if count > 1:
        raise several_pages(path, count)
    if mode == "P":
        return _of_palette(pixels, np.reshape(palette or [], (-1, 3)), path)
    if mode in ("1", "L") and bits < 8:
        highest = 2**bits - 1
        numbers = pixels if mode == "1" else pixels * highest // _WHITE
        return [numbers, numbers * _WHITE // highest]
    return [only_value(np.moveaxis(pixels, -1, 0), path, mode in ("LA", "RGBA")) if mode in _COLOURED else pixels]


def only_value(channels: npt.NDArray[Any], path: Path, has_opacity: bool = False) -> npt.NDArray[Any]:
    """The channel that a mask `(C, *S)` has, or that all its channels repeat, `(*S)`.

    Args:
        channels: All of them.
        path: The file, for the message.
        has_opacity: Whether the last one says how opaque a pixel is.

    Raises:
        DataError: They differ, or a labelled pixel is transparent.
    """
    values = channels[:-1] if has_opacity else channels
    # What is no number differs from itself, and is for those to refuse who want integers.
    if len(values) > 1 and (values != values[0]).any():
        colours = np.unique(np.reshape(values, (len(values), -1)), axis=1).T[:_MOST_COLOURS].astype(int).tolist()
        raise DataError(
            f"{path}: a mask has one value for each pixel, this file has {len(values)} that differ (colours such as "
            f"{', '.join(map(str, map(tuple, colours)))}); write one integer for each structure, "
            "and where structures overlap for each set of them"
        )
    if has_opacity and (values[0][channels[-1] < channels[-1].max()] != 0).any():
        raise DataError(f"{path}: labelled pixels are transparent; write the mask again with one value a pixel")
    only: npt.NDArray[Any] = values[0]
    return only


def _of_palette(numbers: IntArray, palette: IntArray, path: Path) -> list[IntArray]:
    if numbers.max() >= len(palette):
        raise DataError(f"{path}: a pixel has number {numbers.max()}, and the palette {len(palette)} colours")
    if (palette != palette[:, :1]).any():
        return [numbers]
    greys = palette[:, 0][numbers]
    white = int(np.argmax(palette[:, 0] == _WHITE))
    return [numbers, greys] if white and np.array_equal(greys, numbers * _WHITE // white) else [greys]


def _bits(picture: Image.Image, path: Path) -> int:
    """Bits of a sample in the file; Pillow shows 8 for 2 and 4."""
    if picture.format == "PNG":
        # The header of a PNG begins with width and height, and the number of bits follows.
        with path.open("rb") as file:
            return file.read(25)[24]
    if picture.mode == "1":
        return 1
    tags = getattr(picture, "tag_v2", {})
    found = tags.get(_BITS, 8)
    return int(found[0] if isinstance(found, tuple) else found)
