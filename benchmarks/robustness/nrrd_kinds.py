"""NRRD with its pixels in the file and beside it, and segmentations of 3D Slicer; the oracle is a reader of ours."""

from __future__ import annotations

import bz2
import re
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmarks.robustness import header_faults as of
from benchmarks.robustness.comparing import SCHEMA, Picture, arrays_disagree, images_disagree
from benchmarks.robustness.file_faults import FILES
from benchmarks.robustness.kind import Fault, Kind, UnknownError, UnreadableError
from medfm_rl.data.images import read_image
from medfm_rl.data.labels import read_labels
from medfm_rl.types import Geometry

_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_CHOICES: dict[bytes, tuple[bytes, ...]] = {
    b"sizes": (
        b"20000 20000 2500",
        b"5 4",
        b"5 4 3 2",
        b"0 4 3",
        b"-5 4 3",
        b"65536 65536 65536",
        b"5 4 2",
        b"60 1 1",
        b"3 4 5",
    ),
    b"dimension": (b"2", b"4", b"0", b"-1", b"17", b"1000000"),
    b"type": (
        *(name.encode() for name in ("uchar", "int64", "float", "double", "short")),
        b"block",
        b"string",
        b"complex",
    ),
    b"encoding": (b"raw", b"gzip", b"gz", b"ascii", b"hex", b"bzip2", b"zrl", b"other"),
    b"endian": (b"big", b"little", b"middle"),
    b"space directions": (
        *(b"(nan,0,0) (0,1,0) (0,0,1)", b"(0,0,0) (0,1,0) (0,0,1)", b"(1,0,0) (0,1,0)", b"none (0,1,0) (0,0,1)"),
        *(
            b"(0,0.7,0) (0.5,0,0) (0,0,2.5)",
            b"(1,0.5,0) (0,1,0) (0,0,1)",
            b"(1e30,0,0) (0,1,0) (0,0,1)",
            b"(1,0,0 (0,1,0)",
        ),
        *(b"(inf,0,0) (0,1,0) (0,0,1)", b"(1,0,0) (1,0,0) (0,0,1)", b"none none none", b"(-1,0,0) (0,1,0) (0,0,1)"),
    ),
    b"space origin": (b"(nan,0,0)", b"(1,2)", b"(inf,0,0)", b"(1e300,0,0)", b"none", b"(5,6,7)"),
    b"space": (b"left-anterior-superior", b"right-anterior-superior", b"scanner-xyz", b"other", b"3D-right-handed"),
    b"kinds": (
        b"list domain domain",
        b"domain domain list",
        b"vector domain domain",
        b"domain domain time",
        b"other a b",
    ),
    b"line skip": (b"1", b"-1", b"99999999999"),
    b"byte skip": (b"-1", b"7", b"-2", b"99999999999"),
    b"spacings": (b"1 1 1", b"nan 1 1", b"0 1 1", b"-1 1 1", b"1 1"),
    b"space units": (b'"mm" "mm" "mm"', b'"cm" "cm" "cm"', b'"" "" ""', b'"mm'),
    b"data file": (
        *(b"other.raw", b"LIST", b"image%02d.raw 1 3 1", b"../../../../etc/hostname", b".", b"LIST 2", b"a\0b.raw"),
        *(b"a" * 300, b"\xff\xfe.raw", b"image%s%n%d.raw 1 3 1", b"image%09999d.raw 1 2 1", b"%d %d %d", b"image.nhdr"),
    ),
}
_SEGMENT_CHOICES: dict[bytes, tuple[bytes, ...]] = {
    b"Segment0_LabelValue": (b"abc", b"-1", b"2", b"99999999999999999999", b"1.5", b""),
    b"Segment1_Layer": (b"-1", b"7", b"x", b"99999999999"),
    b"Segment2_Name": (b"LV", b"", b"\xff\xfe", b"a" * 5000, b"lv"),
    b"Segment99999999999999999999_Name": (b"MYO",),
    b"\xff\xfe": (b"a",),
    b"a" * 5000: (b"a" * 5000,),
    b"Segmentation_SourceRepresentation": (b"Fractional labelmap", b"Closed surface"),
}
_LONG: dict[bytes, tuple[bytes, ...]] = dict.fromkeys(
    (b"content", b"type", b"sizes", b"encoding", b"kinds", b"space", b"units", b"other", b"labels", b"centers"),
    (b"a" * 5000, b"1 " * 5000, b"(" * 5000, b'"' * 5001, b"%s%n" * 50),
)
_SHAPE = (3, 4, 5)
_SPACING, _ORIGIN = (0.5, 0.7, 2.5), (1.0, 2.0, 3.0)


def _image(mask: bool) -> Any:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4, _SHAPE).astype(np.uint8) if mask else rng.integers(-99, 999, _SHAPE).astype(np.int16)
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing(_SPACING)
    image.SetOrigin(_ORIGIN)
    return image


def _make(folder: Path, name: str, compressed: bool) -> Path:
    sitk.WriteImage(_image(False), str(folder / name), useCompression=compressed)
    return folder / name


def _make_segmentation(folder: Path) -> Path:
    image = _image(True)
    for index, name in enumerate(SCHEMA.structures):
        fields = {"ID": f"Segment_{index + 1}", "Name": name, "LabelValue": str(index + 1), "Layer": "0"}
        for field, value in fields.items():
            image.SetMetaData(f"Segment{index}_{field}", value)
    sitk.WriteImage(image, str(folder / "mask.seg.nrrd"))
    return folder / "mask.seg.nrrd"


def _faults(more: dict[bytes, tuple[bytes, ...]] | None = None) -> tuple[Fault, ...]:
    changes = [of.change_number] * 3 + [of.set_fields(_CHOICES)] * 6
    changes += [of.drop_field, of.repeat_field, of.move_field, of.other_case, of.other_line_ends]
    changes += [of.set_fields(_LONG)] * 2
    pairs = [of.in_header(b"", b":=", of.set_fields(more), "set_pair")] * 6 if more else []
    return (
        *pairs,
        *(of.in_header(b"", b":", change, getattr(change, "__name__", "set_fields")) for change in changes),
        *FILES,
    )


def _read(path: Path) -> tuple[dict[str, str], np.ndarray]:
    """Fields, also those of segments, and pixels `(*S)`."""
    lines, rest = of.split(path.read_bytes(), b"")
    if not lines or not re.fullmatch(rb"NRRD000[1-5]", lines[0].strip()):
        raise UnreadableError("no NRRD")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        text = line.decode("latin-1").rstrip("\r")
        if not text.strip() or text.startswith("#"):
            continue
        separator = ":=" if ":=" in text else ": " if ": " in text else ":"
        key, found, value = text.partition(separator)
        key = key.strip() if separator == ":=" else key.strip().lower().replace("datafile", "data file")
        if not found:
            raise UnreadableError(text)
        if key in fields:
            raise UnreadableError(f"{key} twice")
        fields[key] = value.strip()
    for name in ("dimension", "sizes", "type", "encoding"):
        if name not in fields:
            raise UnreadableError(f"no {name}")
    sizes = [int(word) for word in fields["sizes"].split()]
    if int(fields["dimension"]) != len(sizes) or min(sizes) < 1:
        raise UnreadableError("size")
    if fields["type"] not in _TYPES:
        raise UnknownError(fields["type"])
    skips = {fields.get(name, "0") for name in ("line skip", "lineskip", "byte skip", "byteskip")}
    if skips != {"0"} or {"list", "vector", "time"} & set(fields.get("kinds", "").lower().split()):
        raise UnknownError("skip or kinds")
    if "data file" in fields:
        where = fields["data file"].encode("latin-1")
        if where.split()[:1] == [b"LIST"] or b"%" in where:
            raise UnknownError(where)
        rest = (path.parent / where.decode()).read_bytes()
    match fields["encoding"].lower():
        case "raw":
            pass
        case "gzip" | "gz":
            unpacker = zlib.decompressobj(31)
            rest = unpacker.decompress(rest)
            if not unpacker.eof:
                raise UnreadableError("not complete")
        case "bzip2" | "bz2":
            rest = bz2.decompress(rest)
        case other:
            raise UnknownError(other)
    dtype = np.dtype(_TYPES[fields["type"]])
    if dtype.itemsize > 1 and fields.get("endian") not in ("little", "big"):
        raise UnreadableError("endian")
    dtype = dtype.newbyteorder(">" if fields.get("endian") == "big" else "<")
    count = int(np.prod(sizes))
    if len(rest) < count * dtype.itemsize:
        raise UnreadableError("fewer pixels")
    return fields, np.frombuffer(rest, dtype, count).reshape(sizes[::-1])


def _oracle(path: Path) -> Picture:
    fields, pixels = _read(path)
    return Picture(pixels, _affine(fields, pixels.ndim))


def _affine(fields: dict[str, str], ndim: int) -> list[np.ndarray] | None:
    if "space directions" not in fields:
        return None
    vectors = [
        re.fullmatch(r"\(([^()]*)\)", word)
        for word in fields["space directions"].replace(" ", "").replace(")(", ") (").split()
    ]
    if len(vectors) != ndim or None in vectors or ndim != 3:
        raise UnknownError(fields["space directions"])
    steps = np.array([[float(number) for number in vector[1].split(",")] for vector in vectors if vector])
    origin = re.fullmatch(r"\(([^()]*)\)", fields.get("space origin", "(0,0,0)"))
    place = np.array([float(number) for number in origin[1].split(",")]) if origin else np.zeros(3)
    if not np.isfinite(steps).all() or not np.isfinite(place).all():
        raise UnreadableError("no grid")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps.T, place
    signs = {
        **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
        **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
        **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
    }
    space = fields.get("space", "").lower()
    if space not in signs:
        return None
    return [np.diag([*signs[space], 1]) @ affine]


def _read_mask(path: Path) -> Any:
    geometry = Geometry(_SPACING, _ORIGIN, tuple(np.eye(3).ravel().tolist()))
    return read_labels(path, SCHEMA, _SHAPE, geometry)


def _mask_oracle(path: Path) -> np.ndarray:
    """Class indices by the names of the segments; the integers themselves where none is named."""
    fields, pixels = _read(path)
    numbers = sorted({int(found[1]) for key in fields if (found := re.match(r"Segment(\d+)_", key))})
    if not numbers:
        return pixels
    labels = np.zeros(pixels.shape, dtype=np.int64)
    for number in numbers:
        name = fields.get(f"Segment{number}_Name", "").strip().lower()
        value, layer = int(fields.get(f"Segment{number}_LabelValue", "1")), fields.get(f"Segment{number}_Layer", "0")
        if layer != "0":
            raise UnreadableError("layer")
        structures = [structure for structure in SCHEMA.structures if structure.lower() == name]
        if (pixels == value).any():
            if not structures:
                raise UnreadableError(f"segment {name}")
            labels[pixels == value] = SCHEMA.index_of(structures[0])
    return labels


def kinds() -> list[Kind]:
    """Images of one file, compressed and not, and of two; a segmentation."""
    made = [
        Kind(
            f"NRRD, {name}",
            partial(_make, name=file, compressed=compressed),
            _faults(),
            read_image,
            _oracle,
            images_disagree,
        )
        for name, file, compressed in (
            (".nrrd", "image.nrrd", False),
            (".nrrd, compressed", "packed.nrrd", True),
            (".nhdr", "image.nhdr", False),
        )
    ]
    segmentation = Kind(
        "segmentation of Slicer",
        _make_segmentation,
        _faults(_SEGMENT_CHOICES),
        _read_mask,
        _mask_oracle,
        arrays_disagree,
    )
    return [*made, segmentation]
