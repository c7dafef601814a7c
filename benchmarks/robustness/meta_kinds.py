"""MetaImage; the oracle is a reader of a few lines, for no other library reads it."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from benchmarks.robustness import header_faults as of
from benchmarks.robustness.comparing import Picture, images_disagree
from benchmarks.robustness.file_faults import FILES, remove, truncate
from benchmarks.robustness.kind import Fault, Kind, UnknownError, UnreadableError
from medfm_rl.data.images import read_image

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_CHOICES: dict[bytes, tuple[bytes, ...]] = {
    b"DimSize ": (
        b"20000 20000 2500",
        b"5 4 3000000",
        b"5 4",
        b"5 4 3 2",
        b"-5 -4 3",
        b"65536 65536 65536",
        b"5 4 2",
        b"60 1 1",
    ),
    b"NDims ": (b"2", b"4", b"0", b"-3", b"11", b"1000000"),
    b"ElementType ": (
        *(name.encode() for name in _TYPES),
        b"MET_OTHER",
        b"MET_STRING",
        b"MET_UCHAR_ARRAY",
        b"MET_FLOAT_ARRAY",
    ),
    b"CompressedData ": (b"True", b"False", b"2"),
    b"CompressedDataSize ": (b"10", b"99999999", b"-1", b"0"),
    b"BinaryData ": (b"False", b"True"),
    b"BinaryDataByteOrderMSB ": (b"True", b"False"),
    b"HeaderSize ": (b"-1", b"0", b"10", b"99999999", b"-7"),
    b"ElementNumberOfChannels ": (b"0", b"2", b"3", b"-1", b"100000000"),
    b"ElementSpacing ": (b"1 1 1", b"0 1 1", b"-1 1 1", b"nan 1 1", b"1 1", b"inf 1 1", b"1e-300 1 1", b"1 1 1 1"),
    b"Offset ": (b"nan 0 0", b"inf 0 0", b"1e300 0 0", b"5 6 7", b"1 2"),
    b"TransformMatrix ": (
        *(b"0 1 0 1 0 0 0 0 1", b"0 0 0 0 0 0 0 0 0", b"1 0.5 0 0 1 0 0 0 1", b"nan 0 0 0 1 0 0 0 1", b"1 0 0 0 1 0"),
        *(b"2 0 0 0 2 0 0 0 2", b"0 0 1 1 0 0 0 1 0"),
    ),
    b"ElementDataFile ": (
        *(
            b"LOCAL",
            b"other.raw",
            b"LIST",
            b"image%02d.raw 1 3 1",
            b"../../../../etc/hostname",
            b"",
            b".",
            b"image.mhd",
        ),
        *(b"a" * 300, b"\xff\xfe.raw", b"a\0b.raw", b"LIST 2", b"image%s%n%d.raw 1 3 1", b"image%09999d.raw 1 2 1"),
    ),
}


def _make(folder: Path, name: str, compressed: bool) -> Path:
    rng = np.random.default_rng(0)
    image = sitk.GetImageFromArray(rng.integers(-99, 999, (3, 4, 5)).astype(np.int16))
    image.SetSpacing((0.5, 0.7, 2.5))
    image.SetOrigin((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(folder / name), useCompression=compressed)
    return folder / name


def _pixels_of(fault: Fault) -> Fault:
    """The fault in the file with the pixels."""

    def of_pixels(path: Path, rng: np.random.Generator) -> None:
        for other in sorted(path.parent.glob("*raw")):
            fault(other, rng)

    of_pixels.__name__ = f"{fault.__name__} in the pixels"
    return of_pixels


def _faults() -> tuple[Fault, ...]:
    changes = [of.change_number] * 3 + [of.set_fields(_CHOICES)] * 6
    changes += [of.drop_field, of.repeat_field, of.move_field, of.other_case, of.other_line_ends]
    made = [
        of.in_header(b"ElementDataFile", b"=", change, getattr(change, "__name__", "set_fields")) for change in changes
    ]
    return (*made, *FILES)


def _oracle(path: Path) -> Picture:
    lines, rest = of.split(path.read_bytes(), b"ElementDataFile")
    fields: dict[str, str] = {}
    for line in lines:
        key, equals, value = line.decode("latin-1").partition("=")
        if not equals:
            raise UnknownError(line)
        if key.strip() in fields:
            raise UnreadableError(f"{key} twice")
        fields[key.strip()] = value.strip()
    for name in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if name not in fields:
            raise UnreadableError(f"no {name}")
    ndim = int(fields["NDims"])
    sizes = [int(word) for word in fields["DimSize"].split()]
    if ndim not in (2, 3) or len(sizes) != ndim or min(sizes) < 1:
        raise UnreadableError("size")
    if fields.get("HeaderSize", "0") not in ("0", "-1") or fields.get("BinaryData", "True") != "True":
        raise UnknownError("HeaderSize or text")
    if fields["ElementType"] not in _TYPES:
        raise UnknownError(fields["ElementType"])
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    where = fields["ElementDataFile"]
    if where.split()[:1] == ["LIST"] or "%" in where:
        raise UnknownError(where)
    if where != "LOCAL":
        rest = (path.parent / where).read_bytes()
    flags = {fields.get(name, "False") for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")}
    if flags - {"True", "False"} or fields.get("CompressedData", "False") not in ("True", "False"):
        raise UnknownError("a flag")
    if fields.get("CompressedData") == "True":
        rest = zlib.decompress(rest)
    dtype = np.dtype((">" if "True" in flags else "<") + _TYPES[fields["ElementType"]])
    count = int(np.prod(sizes)) * channels
    if channels < 1 or len(rest) < count * dtype.itemsize:
        raise UnreadableError("fewer pixels")
    if fields.get("HeaderSize") == "-1":
        rest = rest[-count * dtype.itemsize :]
    pixels = np.frombuffer(rest, dtype, count).reshape((*reversed(sizes), channels))
    return Picture(np.moveaxis(pixels, -1, 0), _affine(fields, ndim))


def _affine(fields: dict[str, str], ndim: int) -> list[np.ndarray] | None:
    def numbers(names: tuple[str, ...], default: list[float]) -> np.ndarray:
        found = [fields[name] for name in names if name in fields]
        if len(found) > 1:
            raise UnknownError("two names of one field")
        values = np.array([float(word) for word in found[0].split()] if found else default)
        if len(values) != len(default) or not np.isfinite(values).all():
            raise UnreadableError(f"{names}: {values}")
        return values

    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        return None
    spacing = numbers(("ElementSpacing",) if "ElementSpacing" in fields else ("ElementSize",), [1.0] * ndim)
    axes = numbers(("TransformMatrix", "Rotation", "Orientation"), np.eye(ndim).ravel().tolist())
    affine = np.eye(4)
    affine[:ndim, :ndim] = axes.reshape(ndim, ndim).T * spacing
    affine[:ndim, 3] = numbers(("Offset", "Position", "Origin"), [0.0] * ndim)
    return [affine]


def kinds() -> list[Kind]:
    """Of one file, compressed and not, and of two."""
    return [
        Kind(
            f"MetaImage, {name}",
            partial(_make, name=file, compressed=compressed),
            (*_faults(), *((_pixels_of(truncate), _pixels_of(remove)) if file.endswith("mhd") else ())),
            read_image,
            _oracle,
            images_disagree,
        )
        for name, file, compressed in (
            (".mha", "image.mha", False),
            (".mha, compressed", "packed.mha", True),
            (".mhd", "image.mhd", False),
        )
    ]
