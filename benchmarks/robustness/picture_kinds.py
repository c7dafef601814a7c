"""PNG and BMP, images and masks: chunks and headers that contradict the pixels; Pillow is the oracle."""

from __future__ import annotations

import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.robustness.comparing import SCHEMA, Picture, arrays_disagree, images_disagree
from benchmarks.robustness.file_faults import FILES
from benchmarks.robustness.kind import Fault, Kind, UnknownError
from medfm_rl.data.images import read_image
from medfm_rl.data.labels import read_labels
from medfm_rl.types import Geometry

_SIZE = (6, 7)
_SIDES = (0, 1, 5, 6, 8, 100, 20000, 70000, 2**31 - 1, 2**31, 2**32 - 1)
_PNG = b"\x89PNG\r\n\x1a\n"
_COLOURS = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


def _make(folder: Path, name: str, mode: str, mask: bool) -> Path:
    rng = np.random.default_rng(0)
    most = 4 if mask or mode == "P" else 256
    shape = (*_SIZE, 3) if mode == "RGB" else _SIZE
    pixels = rng.integers(0, most, shape).astype(np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(pixels * 200 if mode == "I;16" else pixels)
    if mode == "P":
        image = image.convert("L")
        image.putpalette(_COLOURS)
    image.save(folder / name)
    return folder / name


def _chunks(content: bytes) -> list[tuple[bytes, bytes]] | None:
    """Names and contents of the chunks of a PNG; None where they cannot be told apart."""
    found, place = [], len(_PNG)
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4])
        if place + 12 + size > len(content):
            return None
        found.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    return found if content.startswith(_PNG) and found else None


def _write(path: Path, chunks: list[tuple[bytes, bytes]]) -> None:
    made = _PNG
    for name, content in chunks:
        made += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    path.write_bytes(made)


def other_header(path: Path, rng: np.random.Generator) -> None:
    """Width, height, bits, colours or interlacing are others, with a checksum that fits."""
    chunks = _chunks(path.read_bytes()) if path.is_file() else None
    if chunks is None or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        return
    fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
    place = int(rng.integers(7))
    values = _SIDES if place < 2 else (0, 1, 2, 3, 4, 6, 8, 16, 255)
    fields[place] = values[rng.integers(len(values))]
    _write(path, [(b"IHDR", struct.pack(">IIBBBBB", *fields)), *chunks[1:]])


def other_pixels(path: Path, rng: np.random.Generator) -> None:
    """The compressed pixels are fewer, more, damaged, or of a filter that there is not; checksums fit."""
    chunks = _chunks(path.read_bytes()) if path.is_file() else None
    if chunks is None:
        return
    packed = b"".join(content for name, content in chunks if name == b"IDAT")
    try:
        rows = zlib.decompress(packed)
    except zlib.error:
        return
    match rng.integers(6):
        case 0:
            packed = zlib.compress(rows[: rng.integers(len(rows) + 1)])
        case 1:
            packed = zlib.compress(rows + bytes(rows[: rng.integers(1, 50)]))
        case 2:
            packed = zlib.compress(bytes([rng.integers(256)]) + rows[1:])
        case 3:
            packed = packed[: rng.integers(len(packed))]
        case 4:
            packed = packed[:-4] + rng.bytes(4)
        case _:
            place = int(rng.integers(len(packed)))
            packed = packed[:place] + rng.bytes(1) + packed[place + 1 :]
    _write(path, [(name, packed if name == b"IDAT" else content) for name, content in chunks])


def other_chunks(path: Path, rng: np.random.Generator) -> None:
    """A chunk is missing, there twice, in another place, or one is added that changes how pixels are shown."""
    chunks = _chunks(path.read_bytes()) if path.is_file() else None
    if chunks is None:
        return
    place = int(rng.integers(len(chunks)))
    added = [
        *((b"tRNS", b"\0\1"), (b"tRNS", b"\0" * 6), (b"gAMA", struct.pack(">I", 1)), (b"PLTE", bytes(_COLOURS))),
        *(
            (b"sBIT", b"\1"),
            (b"bKGD", b"\0\1"),
            (b"ABCD", b"x"),
            (b"acTL", struct.pack(">2I", 2, 0)),
            (b"PLTE", b"\0\0"),
        ),
        *((b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 1000)), (b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10**7))),
    ]
    match rng.integers(4):
        case 0:
            del chunks[place]
        case 1:
            chunks.insert(place, chunks[place])
        case 2:
            chunks.insert(int(rng.integers(len(chunks))), chunks.pop(place))
        case _:
            chunks.insert(max(1, place), added[rng.integers(len(added))])
    _write(path, chunks)


def wrong_checksum(path: Path, rng: np.random.Generator) -> None:
    """The checksum of a chunk does not fit."""
    content = bytearray(path.read_bytes()) if path.is_file() else bytearray()
    chunks = _chunks(bytes(content))
    if chunks is None:
        return
    place = len(_PNG) + sum(12 + len(other) for _, other in chunks[: rng.integers(len(chunks)) + 1]) - 1
    content[place] ^= 0x5A
    path.write_bytes(content)


def other_format(path: Path, rng: np.random.Generator) -> None:
    """The file is of another format than its name says."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 4, _SIZE).astype(np.uint8))
    path.unlink(missing_ok=True)
    image.save(path, format=["JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "PNG"][rng.integers(7)])


_FAULTS: tuple[Fault, ...] = (
    *(other_header,) * 3,
    *(other_pixels,) * 3,
    *(other_chunks,) * 3,
    *(wrong_checksum, other_format, *FILES),
)


def bmp_header(path: Path, rng: np.random.Generator) -> None:
    """A field of the header of a BMP is another number."""
    content = bytearray(path.read_bytes()) if path.is_file() else bytearray()
    if len(content) < 54:
        return
    place, size = [(10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4)][rng.integers(9)]
    value = int([0, 1, 2, 4, 8, 24, 32, 20000, 2**31 - 1, 2**31, 2**32 - 1][rng.integers(11)]) % 2 ** (8 * size)
    content[place : place + size] = value.to_bytes(size, "little")
    path.write_bytes(content)


def _oracle(path: Path) -> Picture:
    with Image.open(path) as image:
        image.load()
        if image.mode not in ("L", "RGB", "P", "I;16", "1", "LA", "RGBA") or _is_16_bit_colour(path, image):
            raise UnknownError(image.mode)
        shown = image.convert("RGBA" if "transparency" in image.info else "RGB") if image.mode == "P" else image
        if image.format == "BMP" and image.mode == "L":
            # Its greys are a palette, which ITK shows.
            shown = image.convert("RGB")
        if b"sBIT" in path.read_bytes() or ("transparency" in image.info and image.mode != "P"):
            # The format leaves it to readers whether bits that mean nothing are taken away.
            raise UnknownError("significant bits, or a transparent colour")
        pixels = np.asarray(shown)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    return Picture(np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels)


def _is_16_bit_colour(path: Path, image: Image.Image) -> bool:
    """Pillow shows 8 of the bits."""
    return image.format == "PNG" and path.read_bytes()[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06")


def _mask_oracle(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()
        pixels = np.asarray(image)
        bits = path.read_bytes()[24] if image.format == "PNG" else 8
    if image.mode not in ("L", "P", "I;16") or (bits < 8 and image.mode == "L"):
        raise UnknownError(image.mode)
    return pixels


def _read_mask(path: Path) -> Any:
    return read_labels(path, SCHEMA, _SIZE, Geometry.unknown(2))


def kinds() -> list[Kind]:
    """Pictures of several kinds of pixels, and masks with and without a palette."""
    images = (("grey.png", "L"), ("colours.png", "RGB"), ("palette.png", "P"), ("deep.png", "I;16"))
    made = [
        Kind(
            f"PNG image, {mode}",
            partial(_make, name=name, mode=mode, mask=False),
            _FAULTS,
            read_image,
            _oracle,
            images_disagree,
        )
        for name, mode in images
    ]
    made += [
        Kind(
            f"PNG mask, {mode}",
            partial(_make, name=name, mode=mode, mask=True),
            _FAULTS,
            _read_mask,
            _mask_oracle,
            arrays_disagree,
        )
        for name, mode in (("mask.png", "L"), ("palette.png", "P"))
    ]
    bmp = Kind(
        "BMP image",
        partial(_make, name="grey.bmp", mode="L", mask=False),
        (*(bmp_header,) * 6, *FILES),
        read_image,
        _oracle,
        images_disagree,
    )
    return [*made, bmp]
