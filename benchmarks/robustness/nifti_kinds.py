"""NIfTI: fields of the header set to what contradicts the file; nibabel is the oracle."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.robustness.comparing import SCHEMA, Picture, arrays_disagree, images_disagree
from benchmarks.robustness.file_faults import FILES
from benchmarks.robustness.kind import Kind, UnknownError, UnreadableError
from medfm_rl.data.images import read_image
from medfm_rl.data.labels import read_labels
from medfm_rl.types import Geometry

_SHAPE = (5, 4, 3)
_AFFINE = np.array([[-1.5, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 3.0, 30], [0, 0, 0, 1]])
_INTEGERS = (0, 1, -1, 2, 3, 7, 8, 255, 2**15 - 1, -(2**15), 348, 540)
_REALS = (0.0, -1.0, 1.0, 1e-30, 1e30, 1e300, -1e9, float("nan"), float("inf"), 352.5, 0.5, 1024.0)
_FIELDS = (
    *("dim", "dim", "dim", "datatype", "bitpix", "pixdim", "pixdim", "vox_offset", "scl_slope", "scl_inter"),
    *("xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "magic", "sizeof_hdr", "intent_code", "dim_info"),
)
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def _make(folder: Path, name: str, kind: Any, mask: bool) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 4, _SHAPE).astype(np.uint8) if mask else rng.integers(-99, 999, _SHAPE).astype(np.int16)
    image = kind(pixels, _AFFINE)
    image.set_qform(_AFFINE, 1)
    image.set_sform(_AFFINE, 1)
    nib.save(image, folder / name)
    return folder / name


def _edit(path: Path, change: Callable[[bytearray], bytearray]) -> None:
    """Changes what a file holds, within its compression where it has one."""
    if not path.is_file():
        return
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return
        path.write_bytes(gzip.compress(bytes(change(bytearray(content))), mtime=0))
    else:
        path.write_bytes(bytes(change(bytearray(content))))


def _header_class(content: bytes | bytearray) -> Any:
    return nib.Nifti2Header if content[:4] in (struct.pack("<i", 540), struct.pack(">i", 540)) else nib.Nifti1Header


def set_field(path: Path, rng: np.random.Generator) -> None:
    """A field of the header, or one of its values, becomes an extreme one."""

    def change(content: bytearray) -> bytearray:
        kind = _header_class(content)
        if len(content) < kind.sizeof_hdr:
            return content
        header = kind(bytes(content[: kind.sizeof_hdr]), check=False)
        field = _FIELDS[rng.integers(len(_FIELDS))]
        values = np.atleast_1d(header.structarr[field]).copy()
        drawn = rng.integers(len(values))
        if values.dtype.kind == "f":
            values[drawn] = np.float64(_REALS[rng.integers(len(_REALS))]).astype(values.dtype)
        elif values.dtype.kind == "S":
            values[drawn] = [b"", b"ni1\0", b"n+2\0", b"abcd", b"n+1"][rng.integers(5)]
        else:
            limits = np.iinfo(values.dtype)
            number = int(_INTEGERS[rng.integers(len(_INTEGERS))])
            values[drawn] = number if limits.min <= number <= limits.max else limits.max
        header.structarr[field] = values.reshape(header.structarr[field].shape)
        content[: kind.sizeof_hdr] = header.structarr.tobytes()
        return content

    with np.errstate(over="ignore", invalid="ignore"):
        _edit(path, change)


def huge_size(path: Path, rng: np.random.Generator) -> None:
    """The header asks for terabytes, or for more than can be counted."""

    def change(content: bytearray) -> bytearray:
        if len(content) < 348:
            return content
        if _header_class(content) is nib.Nifti2Header:
            sizes = [(20000, 20000, 2500), (2**62, 4, 1), (2**31, 2**31, 2**31), (-(2**62), 2, 2)][rng.integers(4)]
            content[16:48] = struct.pack("<4q", 3, *sizes)
        else:
            sizes = [(20000, 20000, 2500), (32767, 32767, 32767), (32767, 1, 32767), (4, 4, 32767)][rng.integers(4)]
            content[40:48] = struct.pack("<4h", 3, *sizes)
        return content

    _edit(path, change)


def other_byte_order(path: Path, rng: np.random.Generator) -> None:
    """The header is in the other byte order than the pixels, or both are."""

    def change(content: bytearray) -> bytearray:
        kind = _header_class(content)
        if len(content) < kind.sizeof_hdr:
            return content
        header = kind(bytes(content[: kind.sizeof_hdr]), check=False)
        content[: kind.sizeof_hdr] = header.structarr.byteswap().tobytes()
        if rng.random() < 0.5:
            content[352:] = np.frombuffer(bytes(content[352:]), np.uint8)[::-1].tobytes()
        return content

    _edit(path, change)


def scaled(path: Path, rng: np.random.Generator) -> None:
    """The values are scaled."""

    def change(content: bytearray) -> bytearray:
        if len(content) >= 348 and _header_class(content) is nib.Nifti1Header:
            content[112:120] = struct.pack("<2f", rng.choice([0.5, -1, 1e-40, 3e38]), rng.choice([0, 100, -1e30]))
        return content

    with np.errstate(over="ignore"):
        _edit(path, change)


def other_transform(path: Path, rng: np.random.Generator) -> None:
    """Sform and qform differ: shifted, turned round, sheared, or without a code."""

    def change(content: bytearray) -> bytearray:
        if len(content) < 348 or _header_class(content) is not nib.Nifti1Header:
            return content
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
        matrix = _AFFINE.copy()
        place = tuple(rng.integers(0, (3, 4)))
        matrix[place] += float(rng.choice([0.001, 0.5, 5.0, -1.5, 1e6, np.nan]))
        header.structarr["srow_x"], header.structarr["srow_y"], header.structarr["srow_z"] = matrix[:3]
        header.structarr["sform_code"] = rng.integers(0, 5)
        header.structarr["qform_code"] = rng.integers(0, 5)
        content[:348] = header.structarr.tobytes()
        return content

    _edit(path, change)


def damage_within(path: Path, rng: np.random.Generator) -> None:
    """Bytes within the compression become others, or are missing."""

    def change(content: bytearray) -> bytearray:
        if rng.random() < 0.3:
            return content[: rng.integers(len(content) + 1)]
        for place in rng.integers(0, max(1, min(len(content), 360)), rng.integers(1, 5)):
            if content:
                content[place] = rng.integers(256)
        return content

    _edit(path, change)


def odd_extension(path: Path, rng: np.random.Generator) -> None:
    """An extension of the header is announced, with a size that it does not have."""

    def change(content: bytearray) -> bytearray:
        size = int(rng.choice([0, 8, 15, 16, 32, 2**31 - 1, -16]))
        return content[:348] + bytearray(struct.pack("<4B2i", 1, 0, 0, 0, size, 4)) + content[352:]

    _edit(path, change)


FAULTS = (
    *(set_field,) * 8,
    *(huge_size, other_byte_order, scaled, other_transform, other_transform, damage_within, odd_extension, *FILES),
)


def _oracle(path: Path) -> Picture:
    image: Any = nib.load(path)
    values = np.asanyarray(image.dataobj)
    if np.iscomplexobj(values) or values.ndim < 2:
        raise UnreadableError("no image")
    if values.dtype.names is not None:
        values = np.stack([values[name] for name in values.dtype.names], axis=-1)
    header = image.header
    if not np.isfinite(image.affine).all() or int(header["xyzt_units"]) & 7 not in _MM:
        raise UnreadableError("no grid")
    scale = np.diag([*(_MM[int(header["xyzt_units"]) & 7],) * 3, 1.0])
    coded = int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0
    return Picture(values.T, [_TO_LPS @ scale @ image.affine] if coded else None)


def _mask_oracle(path: Path) -> Any:
    values = np.asanyarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    if values.dtype.names is not None:
        raise UnknownError("colours")
    return np.round(values).T


def _read_mask(path: Path) -> Any:
    affine = _TO_LPS @ _AFFINE
    return read_labels(path, SCHEMA, _SHAPE[::-1], Geometry.from_affine(affine))


def kinds() -> list[Kind]:
    """Images and masks, compressed and not, of both versions."""
    made = [
        Kind(
            f"NIfTI image, {name}",
            partial(_make, name=file, kind=kind, mask=False),
            FAULTS,
            read_image,
            _oracle,
            images_disagree,
        )
        for name, file, kind in (
            (".nii", "image.nii", nib.Nifti1Image),
            (".nii.gz", "image.nii.gz", nib.Nifti1Image),
            ("version 2", "image2.nii", nib.Nifti2Image),
        )
    ]
    made += [
        Kind(
            f"NIfTI mask, {name}",
            partial(_make, name=file, kind=kind, mask=True),
            FAULTS,
            _read_mask,
            _mask_oracle,
            arrays_disagree,
        )
        for name, file, kind in (
            (".nii.gz", "mask.nii.gz", nib.Nifti1Image),
            ("version 2", "mask2.nii", nib.Nifti2Image),
        )
    ]
    return made
