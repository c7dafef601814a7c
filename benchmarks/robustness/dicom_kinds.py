"""DICOM: one slice, several frames, compressed frames, and a series; pydicom is the oracle."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless

from benchmarks.robustness.comparing import Picture, images_disagree
from benchmarks.robustness.file_faults import BYTES, FILES
from benchmarks.robustness.kind import Fault, Kind, UnknownError, UnreadableError
from medfm_rl.data.images import read_image

_SIZE = (6, 5)
_SPACING = (0.7, 0.5)
_STEP = 2.5
_CT = "1.2.840.10008.5.1.4.1.1.2"
_MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.2.1"
_VALUES: dict[str, tuple[Any, ...]] = {
    "Rows": (0, 1, 5, 7, 60, 65535),
    "Columns": (0, 1, 6, 4, 65535),
    "BitsAllocated": (1, 8, 12, 16, 32, 64, 0, 65535),
    "BitsStored": (0, 1, 8, 12, 17, 65535),
    "HighBit": (0, 7, 16),
    "PixelRepresentation": (0, 1, 2, 65535),
    "SamplesPerPixel": (0, 1, 2, 3, 65535),
    "PhotometricInterpretation": ("RGB", "MONOCHROME1", "PALETTE COLOR", "YBR_FULL", "OTHER", ""),
    "NumberOfFrames": ("0", "1", "2", "3", "-1", "1000000000", "2147483647", "1.5", "abc", ""),
    "ImagePositionPatient": (
        ["0", "0", "0"],
        ["1", "2"],
        ["nan", "0", "0"],
        ["1e300", "0", "0"],
        ["a", "b", "c"],
        "",
        ["1", "2", "3"],
    ),
    "ImageOrientationPatient": (
        *(
            ["1", "0", "0", "1", "0", "0"],
            ["0"] * 6,
            ["1", "0", "0", "0", "1"],
            ["nan"] * 6,
            ["0", "1", "0", "1", "0", "0"],
        ),
        *(["1", "0", "0", "0.5", "1", "0"], ["-1", "0", "0", "0", "1", "0"], ["2", "0", "0", "0", "2", "0"], ""),
    ),
    "PixelSpacing": (
        ["0", "0"],
        ["-1", "1"],
        ["1"],
        ["nan", "1"],
        ["1e300", "1"],
        ["a", "b"],
        "",
        ["1", "1", "1"],
        ["3", "3"],
    ),
    "RescaleSlope": ("0", "-1", "2.5", "nan", "inf", "1e300", "abc", "", ["1", "2"], "1e-320"),
    "RescaleIntercept": ("-1024", "nan", "1e30", "abc", "", ["1", "2"]),
    "SliceThickness": ("0", "-1", "nan", "abc", "1e300"),
    "SpacingBetweenSlices": ("0", "-3", "nan", "abc"),
    "SeriesInstanceUID": ("1.2.3", "", "a" * 70, "not a uid"),
    "Modality": ("US", "CR", "", "RTSTRUCT"),
    "SpecificCharacterSet": ("ISO_IR 192", "OTHER", "ISO 2022 IR 87", "\\\\"),
    "PlanarConfiguration": (0, 1, 7),
    "SOPClassUID": ("1.2.840.10008.5.1.4.1.1.481.3", "1.2.840.10008.5.1.4.1.1.66.4", "", "1"),
    "GridFrameOffsetVector": (["0", "2"], ["0"], ["nan", "1", "2"], ["0", "2.5", "5"]),
    "SmallestImagePixelValue": (0, 65535),
}
_SYNTAXES = (
    *(
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.5",
    ),
    *(
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.70",
        "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.4.80",
        "1.2.3",
        "",
    ),
)


def _dataset(index: int, frames: int = 1) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(_CT if frames == 1 else _MULTI_FRAME)
    meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.4.{index + 1}")
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.SeriesInstanceUID, made.Modality, made.PatientName = "1.2.3.9", "CT", "Test^Case"
    made.ImagePositionPatient = ["1", "2", str(3 + index * _STEP)]
    made.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    made.PixelSpacing, made.SliceThickness = [str(side) for side in _SPACING], str(_STEP)
    made.RescaleSlope, made.RescaleIntercept = "2", "-1024"
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = _SIZE
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation = 15, 1
    if frames > 1:
        made.NumberOfFrames = frames
        made.GridFrameOffsetVector = [str(frame * _STEP) for frame in range(frames)]
    pixels = np.random.default_rng(index).integers(-99, 999, (frames, *_SIZE)).astype(np.int16)
    made.PixelData = pixels.tobytes()
    return made


def _make(folder: Path, frames: int, packed: bool = False) -> Path:
    made = _dataset(0, frames)
    if packed:
        made.compress(RLELossless)
    path = folder / "image.dcm"
    pydicom.dcmwrite(path, made, enforce_file_format=True)
    return path


def _make_series(folder: Path) -> Path:
    series = folder / "series"
    series.mkdir()
    for index in range(4):
        pydicom.dcmwrite(series / f"{3 - index}.dcm", _dataset(index), enforce_file_format=True)
    return series


def _edit(path: Path, change: Callable[[Dataset], None]) -> None:
    try:
        made = pydicom.dcmread(path, force=True)
        change(made)
        # Whatever the standard says of it.
        with pydicom.config.disable_value_validation():
            pydicom.dcmwrite(path, made)
    except Exception:  # noqa: BLE001 - what cannot be written any more is damaged in other ways
        return


def set_element(path: Path, rng: np.random.Generator) -> None:
    """An element has an extreme value, one of another length, or a word where a number belongs."""
    names = sorted(_VALUES)
    name = names[rng.integers(len(names))]
    value = _VALUES[name][rng.integers(len(_VALUES[name]))]
    vr = pydicom.datadict.dictionary_VR(name)

    def change(made: Dataset) -> None:
        made[name] = pydicom.DataElement(name, vr if " or " not in vr else "US", value, validation_mode=0)

    _edit(path, change)


def remove_element(path: Path, rng: np.random.Generator) -> None:
    """An element is missing."""

    def change(made: Dataset) -> None:
        tags = sorted(made.keys())
        del made[tags[rng.integers(len(tags))]]

    _edit(path, change)


def other_syntax(path: Path, rng: np.random.Generator) -> None:
    """The file says another transfer syntax than it is written in."""
    content = path.read_bytes() if path.is_file() else b""
    old = next((syntax for syntax in (b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1\0") if syntax in content), None)
    if old is None:
        return
    new = _SYNTAXES[rng.integers(len(_SYNTAXES))].encode()
    new += b"\0" * (len(new) % 2)
    place = content.index(old)
    length = struct.pack("<H", len(new))
    path.write_bytes(content[: place - 2] + length + new + content[place + len(old) :])


def other_length(path: Path, rng: np.random.Generator) -> None:
    """An element says another length than it has: none, odd, longer than the file, or undefined."""
    content = bytearray(path.read_bytes()) if path.is_file() else bytearray()
    places = [place for place in range(132, len(content) - 8) if content[place + 4 : place + 6] in _SHORT]
    if not places:
        return
    place = places[rng.integers(len(places))]
    content[place + 6 : place + 8] = [b"\0\0", b"\1\0", b"\xff\xff", b"\xfe\xff", b"\x10\x27"][rng.integers(5)]
    path.write_bytes(content)


def pixel_length(path: Path, rng: np.random.Generator) -> None:
    """The pixels say another length than they have."""
    content = bytearray(path.read_bytes()) if path.is_file() else bytearray()
    place = content.find(b"\xe0\x7f\x10\x00")
    if place < 0:
        return
    lengths = (0, 1, 59, 2**31, 2**32 - 2, 2**32 - 1, 10**6)
    content[place + 8 : place + 12] = struct.pack("<I", lengths[rng.integers(len(lengths))])
    path.write_bytes(content)


def nested_sequences(path: Path, _: np.random.Generator) -> None:
    """Sequences lie in sequences, a thousand deep."""
    content = path.read_bytes() if path.is_file() else b""
    place = content.find(b"\xe0\x7f\x10\x00")
    if place >= 0:
        opening = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        path.write_bytes(content[:place] + opening * 3000 + content[place:])


def fewer_pixels(path: Path, rng: np.random.Generator) -> None:
    """Pixels are missing, or there are more than the header says."""

    def change(made: Dataset) -> None:
        data = bytes(made.PixelData)
        made.PixelData = data[: rng.integers(len(data)) & ~1] if rng.random() < 0.6 else data + b"\1\0" * 20

    _edit(path, change)


_SHORT = (b"US", b"DS", b"IS", b"CS", b"UI", b"PN", b"LO")
_ELEMENTS: tuple[Fault, ...] = (
    *(set_element,) * 12,
    *(
        remove_element,
        remove_element,
        other_syntax,
        other_syntax,
        other_length,
        other_length,
        pixel_length,
        pixel_length,
    ),
    *(nested_sequences, fewer_pixels),
)


def _in_one(fault: Fault) -> Fault:
    """The fault in one file of a series."""

    def in_one(path: Path, rng: np.random.Generator) -> None:
        files = sorted(other for other in path.glob("*") if other.is_file())
        if files:
            fault(files[rng.integers(len(files))], rng)

    in_one.__name__ = f"{getattr(fault, '__name__', 'fault')} in one file"
    return in_one


def stranger(path: Path, rng: np.random.Generator) -> None:
    """A file that does not belong to the series lies among its slices."""
    match rng.integers(4):
        case 0:
            (path / "notes.txt").write_text("notes")
        case 1:
            (path / "4.dcm").write_bytes(rng.bytes(500))
        case 2:
            (path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
        case _:
            (path / "copy.dcm").write_bytes((path / "0.dcm").read_bytes() if (path / "0.dcm").exists() else b"")


def _values(path: Path) -> tuple[np.ndarray, Dataset]:
    made = pydicom.dcmread(path, force=True)
    if made.PhotometricInterpretation not in ("MONOCHROME2",) or made.SamplesPerPixel != 1:
        raise UnknownError(made.PhotometricInterpretation)
    stored = made.pixel_array.reshape(-1, made.Rows, made.Columns).astype(np.float64)
    return stored * float(made.get("RescaleSlope", 1)) + float(made.get("RescaleIntercept", 0)), made


def _oracle(path: Path) -> Picture:
    values, made = _values(path)
    if len(values) > 1:
        offsets = made.get("GridFrameOffsetVector")
        if offsets is None or [float(offset) for offset in offsets] != [_STEP * frame for frame in range(len(values))]:
            raise UnknownError("frames in another place")
    return Picture(values, _affine(made))


def _affine(made: Dataset) -> list[np.ndarray] | None:
    axes = [float(value) for value in made.get("ImageOrientationPatient") or []]
    place = [float(value) for value in made.get("ImagePositionPatient") or []]
    sides = [float(value) for value in made.get("PixelSpacing") or []]
    if len(axes) != 6 or len(place) != 3 or len(sides) != 2:
        return None
    if not np.isfinite(sides).all() or min(sides) <= 0:
        # The size of its pixels is then unknown.
        return None
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = np.array(axes[:3]) * sides[1], np.array(axes[3:]) * sides[0]
    affine[:3, 2], affine[:3, 3] = np.cross(axes[:3], axes[3:]) * _STEP, place
    if not np.isfinite(affine).all():
        raise UnreadableError("no grid")
    if (
        abs(np.linalg.norm(axes[:3]) - 1) > 1e-3
        or made.get("SpacingBetweenSlices")
        or made.get("SliceThickness") != _STEP
    ):
        return None
    return [affine]


def _series_oracle(path: Path) -> Picture:
    slices = []
    for file in sorted(path.iterdir()):
        try:
            made = pydicom.dcmread(file, force=file.suffix == ".dcm")
        except pydicom.errors.InvalidDicomError:
            continue
        if "Rows" in made:
            slices.append(file)
    read = [_values(file) for file in slices]
    normal = [0.0, 0.0, 1.0]
    ordered = sorted(read, key=lambda one: float(np.dot(np.array(one[1].ImagePositionPatient, dtype=float), normal)))
    if any(float(one.ImageOrientationPatient[0]) != 1 or float(one.ImageOrientationPatient[4]) != 1 for _, one in read):
        raise UnknownError("another direction")
    return Picture(np.concatenate([values for values, _ in ordered]), None)


def kinds() -> list[Kind]:
    """Of one file, of several frames, compressed, and a folder of slices."""
    made = [
        Kind(f"DICOM, {name}", make, (*_ELEMENTS, *FILES), read_image, _oracle, images_disagree)
        for name, make in (
            ("one slice", partial(_make, frames=1)),
            ("several frames", partial(_make, frames=3)),
            ("compressed frames", partial(_make, frames=3, packed=True)),
        )
    ]
    in_one = (*(_in_one(fault) for fault in (*_ELEMENTS, *BYTES)), stranger, stranger)
    return [*made, Kind("DICOM series", _make_series, in_one, read_image, _series_oracle, images_disagree)]
