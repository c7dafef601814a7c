"""Headers of MetaImage and NRRD: where their pixels are, and whether they agree with these, before ITK reads them.

ITK reads a number as far as it looks like one, takes the last of two values, ignores the checksum of compressed pixels,
makes room for whatever a header asks for, and ends the process on some headers that contradict their pixels.
MetaImage: https://itk.org/Wiki/ITK/MetaIO/Documentation, NRRD: https://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medfm_rl.data.files import cannot_be_read
from medfm_rl.errors import DataError

_BLOCK = 1 << 20
_LONGEST_LINE = 1 << 20
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INTEGER = re.compile(r"[+-]?\d+")
_MOST_AXES = 16
_META_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    # On every system of today a MET_LONG has 4 bytes in a file, as the format has it.
    **dict.fromkeys(("MET_LONG", "MET_ULONG"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_META_REALS = ("ElementSpacing", "ElementSize", "Offset", "Position", "Origin")
_META_AXES = ("TransformMatrix", "Rotation", "Orientation")
_META_FIELDS = (
    *("NDims", "DimSize", "ElementType", "ElementDataFile", "ElementNumberOfChannels", "HeaderSize", "BinaryData"),
    *("CompressedData", "CompressedDataSize", "BinaryDataByteOrderMSB", "ElementByteOrderMSB"),
    *(*_META_REALS, *_META_AXES),
)
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}
_NRRD_FIELDS = (
    *("dimension", "type", "block size", "blocksize", "encoding", "endian", "content", "number", "sample units"),
    *("sampleunits", "min", "max", "old min", "oldmin", "old max", "oldmax", "data file", "line skip", "byte skip"),
    *("sizes", "spacings", "thicknesses", "axis mins", "axismins", "axis maxs", "axismaxs", "centers", "centerings"),
    *("labels", "units", "kinds", "space", "space dimension", "space units", "space origin", "space directions"),
    "measurement frame",
)
"""Fields of the format; of another one ITK makes a message in a row of `_LONGEST_FIELD` characters, and beyond."""
_LONGEST_FIELD = 900
_OF_ANY_LENGTH = ("content", "sample units", "sampleunits")
_VECTORS = re.compile(r"\(([^()]*)\)|none", re.IGNORECASE)
_NO_NUMBER = ("nan", "none")
_MM_OR_TIME = ("", "mm", "millimeter", "none", "s", "sec", "ms")
_META_PIXELS = re.compile(r"\s*ElementDataFile\s*[=:]\s*(.*?)\s*$")
_NRRD_PIXELS = re.compile(r"data ?file:\s*(.*?)\s*$", re.IGNORECASE)
_GZIP = zlib.MAX_WBITS | 16


@dataclass(frozen=True)
class _Stored:
    """How pixels are stored: bytes that they take, bytes before them, and the window of zlib where it packed them."""

    size: int
    skip: int = 0
    window: int | None = None
    packed_size: int | None = None


def pixel_files(path: Path) -> list[Path]:
    """The files beside an image that hold its pixels, as a header of MetaImage or NRRD names them; they may be missing.

    Empty where the pixels lie in the file itself, as in every other format.

    Raises:
        DataError: The header cannot be read.
    """
    is_meta = _is_meta(path)
    if is_meta is None:
        return []
    field = _META_PIXELS if is_meta else _NRRD_PIXELS
    try:
        with path.open("rb") as file:
            header = _header_lines(file, is_meta)
            named = next((found[1] for line in header if (found := field.match(line))), "")
            listed = [*header, *map(_text, file if is_meta else ())] if named.startswith("LIST") else [named]
    except OSError as error:
        raise cannot_be_read(path, error) from error
    if is_meta and named.upper() == "LOCAL":
        return []
    names = [os.fsdecode(name.strip().encode("latin-1")) for name in listed if name.strip()]
    if names and "%" in names[0]:
        # One file for each slice: a pattern, and the first and last number.
        pattern = path.parent / names[0].split()[0]
        return sorted(pattern.parent.glob(re.sub(r"%\d*d", "*", glob.escape(pattern.name)))) or [pattern]
    return [path.parent / name for name in names]


def states_spacing(path: Path) -> bool:
    """Whether a sound header says how far apart pixels are: ITK puts 1 mm where it does not.

    Raises:
        DataError: It says so in another unit than mm, which ITK does not look at.
    """
    is_meta = bool(_is_meta(path))
    with path.open("rb") as file:
        fields = _fields(file, is_meta)
    if is_meta:
        return not fields.keys().isdisjoint(("ElementSpacing", "ElementSize"))
    units = {unit for name in ("space units", "units") for unit in re.findall(r'"([^"]*)"', fields.get(name, ""))}
    foreign = sorted(units.difference(_MM_OR_TIME))
    if foreign:
        raise DataError(
            f"{path}: gives distances in {', '.join(foreign)}, and tools that read NRRD take them for mm; write mm"
        )
    stated = fields.get("space directions") or fields.get("spacings")
    return stated is not None and "nan" not in stated.lower()


def require_sound_header(path: Path) -> None:
    """Refuses an image whose header is ambiguous or contradicts its pixels; of other formats nothing is looked at.

    Raises:
        DataError: A field stands twice or is no number, the pixels are fewer than the header says, their checksum is
            wrong, or they are compressed in a way that ITK does not know.
    """
    is_meta = _is_meta(path)
    if is_meta is None:
        return
    beside = pixel_files(path)
    try:
        with path.open("rb") as file:
            fields = _fields(file, is_meta)
            if fields.get("encoding", "").lower() in ("bzip2", "bz2"):
                raise DataError(f"{path}: is compressed by bzip2, which ITK does not read; write it with gzip, or raw")
            stored = (_stored_meta if is_meta else _stored_nrrd)(fields)
            if stored is not None:
                _require_pixels(stored, file, beside)
    except OSError as error:
        if error.filename is not None and Path(error.filename) != path:
            raise DataError(
                f"{path}: cannot be read; its pixels: {cannot_be_read(Path(error.filename), error)}"
            ) from error
        raise cannot_be_read(path, error) from error
    except (ValueError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read; the file is damaged, truncated or contradicts itself ({error})"
        ) from error


def _is_meta(path: Path) -> bool | None:
    """Whether a file is a MetaImage, by its name, and no NRRD; None where it is neither."""
    name = path.name.lower()
    return name.endswith((".mha", ".mhd")) if name.endswith((".mha", ".mhd", ".nrrd", ".nhdr")) else None


def _header_lines(file: BinaryIO, is_meta: bool) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE):
        text = _text(line)
        if not is_meta and not text.strip():
            return
        yield text
        if is_meta and _META_PIXELS.match(text):
            return


def _text(line: bytes) -> str:
    # Any byte is a character, so that names of files come back whatever encoding they are in.
    return line.decode("latin-1").strip("\r\n")


def _fields(file: BinaryIO, is_meta: bool) -> dict[str, str]:
    """The fields of a header, which the file is read to the end of.

    Raises:
        ValueError: A line is no field, or stands twice.
    """
    lines = list(_header_lines(file, is_meta))
    return _meta_fields(lines) if is_meta else _nrrd_fields(lines)


def _meta_fields(lines: Sequence[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    known = {name.lower(): name for name in _META_FIELDS}
    for line in lines:
        key, separator, value = (
            (part.strip() for part in re.split(r"([=:])", line, maxsplit=1))
            if re.search("[=:]", line)
            else (line, "", "")
        )
        if not separator:
            raise ValueError(f"{line[:40]!r} in its header is no field")
        if known.get(key.lower(), key) != key:
            raise ValueError(f"the field {known[key.lower()]} is written {key}")
        _add(fields, key, value)
    return fields


def _nrrd_fields(lines: Sequence[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in itertools.islice(lines, 1, None):
        if line.startswith("#"):
            continue
        key, separator, value = line.partition(":")
        if not separator:
            # Names of files follow the field that announces them.
            if fields.get("data file", "").startswith("LIST"):
                break
            raise ValueError(f"{line[:40]!r} in its header is no field")
        pair = value.startswith("=")
        name = key.strip() if pair else key.strip().lower()
        name = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}.get(name, name)
        if not pair and name not in _NRRD_FIELDS:
            raise ValueError(f"the format has no field {key[:40]!r}")
        if not pair and len(line) > _LONGEST_FIELD and name not in _OF_ANY_LENGTH:
            raise ValueError(f"the field {name} is {len(line)} characters long")
        _add(fields, name, value)
    return {name: value.strip() for name, value in fields.items()}


def _add(fields: dict[str, str], key: str, value: str) -> None:
    if key in fields:
        raise ValueError(f"the field {key[:40]} stands twice")
    fields[key] = value


def _stored_meta(fields: dict[str, str]) -> _Stored | None:
    """How the pixels of a MetaImage are stored; None where ITK has to say whether it can read them.

    Raises:
        ValueError: A field is wrong.
    """
    (ndim,) = _integers(fields, "NDims", 1)
    if not 1 <= ndim <= _MOST_AXES:
        raise ValueError(f"NDims is {ndim}")
    sizes = _integers(fields, "DimSize", ndim)
    channels = _integers(fields, "ElementNumberOfChannels", 1)[0] if "ElementNumberOfChannels" in fields else 1
    for name, count in (*((name, ndim) for name in _META_REALS), *((name, ndim * ndim) for name in _META_AXES)):
        if name in fields:
            _reals(fields[name].split(), name, count)
    for name in ("BinaryData", "CompressedData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB"):
        if fields.get(name, "True").lower() not in ("true", "false", "1", "0", "yes", "no", "t", "f"):
            raise ValueError(f"{name} is {fields[name]!r}, and neither True nor False")
    size = math.prod(_positive((*sizes, channels))) * _META_BYTES.get(fields.get("ElementType", ""), 0)
    skip = _integers(fields, "HeaderSize", 1)[0] if "HeaderSize" in fields else 0
    if not size or not _is_true(fields.get("BinaryData", "True")):
        return None
    if not _is_true(fields.get("CompressedData", "False")):
        return _Stored(size, max(0, skip))
    if "CompressedDataSize" not in fields:
        raise ValueError("its pixels are compressed and CompressedDataSize is missing")
    return _Stored(size, max(0, skip), zlib.MAX_WBITS, _integers(fields, "CompressedDataSize", 1)[0])


def _stored_nrrd(fields: dict[str, str]) -> _Stored | None:
    """The same of an NRRD."""
    (ndim,) = _integers(fields, "dimension", 1)
    if not 1 <= ndim <= _MOST_AXES:
        raise ValueError(f"dimension is {ndim}")
    sizes = _integers(fields, "sizes", ndim)
    for name in ("spacings", "thicknesses", "axis mins", "axis maxs"):
        if name in fields:
            _reals([word for word in fields[name].split() if word.lower() not in _NO_NUMBER], name)
    for name in ("space directions", "space origin"):
        text = fields.get(name, "")
        if _VECTORS.sub("", text).strip():
            raise ValueError(f"{name} is {text!r}")
        for vector in _VECTORS.finditer(text):
            words = (vector[1] or "").split(",") if vector[1] is not None else []
            _reals([word.strip() for word in words if word.strip().lower() not in _NO_NUMBER], name)
    size = math.prod(_positive(sizes)) * _NRRD_BYTES.get(fields.get("type", ""), 0)
    skips = [_integers(fields, name, 1)[0] if name in fields else 0 for name in ("line skip", "byte skip")]
    encoding = fields.get("encoding", "").lower()
    if not size or skips[0]:
        return None
    match encoding:
        case "raw":
            return _Stored(size, max(0, skips[1]))
        case "gzip" | "gz":
            return _Stored(size, 0, _GZIP) if not skips[1] else None
        case _:
            return None


def _require_pixels(stored: _Stored, here: BinaryIO, beside: Sequence[Path]) -> None:
    """Raises ValueError where the files beside, or the rest of this one, hold fewer pixels than a header says."""
    held, packed = (0, 0) if beside else _held(here, stored)
    for path in beside:
        try:
            with path.open("rb") as file:
                more, packed = _held(file, stored)
        except OSError as error:
            raise ValueError(f"its pixels are to lie in {path.name}, {error.strerror or error}") from error
        held += more
    if held < stored.size:
        raise ValueError(f"its header speaks of {stored.size} bytes of pixels, and there are {held}")
    if stored.packed_size is not None and stored.packed_size != packed:
        raise ValueError(
            f"CompressedDataSize is {stored.packed_size}, and the compressed pixels are {packed} bytes long"
        )


def _held(file: BinaryIO, stored: _Stored) -> tuple[int, int]:
    """How many bytes of pixels the rest of a file holds, and how long they are where they are compressed.

    Raises:
        zlib.error: They are damaged.
        ValueError: They are not complete.
    """
    start = file.tell() + stored.skip
    file.seek(0, 2)
    end = file.tell()
    if stored.window is None:
        return max(0, end - start), 0
    file.seek(start)
    unpacker = zlib.decompressobj(stored.window)
    held = read = 0
    while not unpacker.eof and (block := file.read(_BLOCK)):
        held += len(unpacker.decompress(block))
        read += len(block)
    if not unpacker.eof:
        raise ValueError("its compressed pixels end too early")
    return held, read - len(unpacker.unused_data)


def _integers(fields: dict[str, str], name: str, count: int) -> list[int]:
    words = fields.get(name, "").split()
    if len(words) != count or not all(_INTEGER.fullmatch(word) for word in words):
        raise ValueError(f"{name} is {fields.get(name, 'missing')!r}, and must be {count} integers")
    return [int(word) for word in words]


def _positive(sizes: Sequence[int]) -> Sequence[int]:
    if min(sizes) < 1:
        raise ValueError(f"its size is {tuple(sizes)}")
    return sizes


def _reals(words: Sequence[str], name: str, count: int | None = None) -> None:
    if not all(_NUMBER.fullmatch(word) for word in words) or (count is not None and len(words) != count):
        raise ValueError(f"{name} is {' '.join(words)!r}, and must be {'' if count is None else f'{count} '}numbers")


def _is_true(word: str) -> bool:
    return word.lower() in ("true", "1", "yes", "t")
