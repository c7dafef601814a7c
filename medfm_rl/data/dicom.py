"""DICOM: a file, or a folder that holds the slices of one series.

Where each frame lies comes from its own header, and its values from its own rescale; a library that reads a series at
once takes both from the first slice.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medfm_rl.data.clips.regions import warn_of_surroundings
from medfm_rl.data.dicom_pixels import DAMAGED, read_values
from medfm_rl.data.dicom_spacing import Spacing, pixel_spacing, slice_thickness
from medfm_rl.data.files import cannot_be_read
from medfm_rl.data.stacks import Frame, grid_of_frames
from medfm_rl.errors import DataError
from medfm_rl.types import FloatArray, Geometry

DICOM_SUFFIX = ".dcm"
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of Segmentation and Label Map Segmentation: frames of these are masks and no images."""
_MOST_COMPRESSED = 5000
"""Bytes of pixels for which one byte of a compressed file can stand, by far."""
_ALWAYS_ALLOWED = 1 << 26
"""Bytes that any file may ask for."""
_MOSAIC = "MOSAIC"
"""Of Image Type, as Siemens writes it (https://nipy.org/nibabel/dicom/dicom_mosaic.html)."""
_MOST_SERIES = 5
"""Series of a folder that are named."""


class NoImageError(DataError):
    """A file that is sound and holds no image: a report, a plan or a presentation state."""


@dataclass(frozen=True, eq=False)
class _File:
    path: Path
    header: Dataset

    @property
    def series(self) -> str:
        return str(self.header.get("SeriesInstanceUID", ""))


def read_dicom(path: Path) -> tuple[FloatArray, Geometry]:
    """Reads pixels `(C, D, H, W)` and their grid `(x, y, z)`; `D` is 1 for a single image.

    Its spacing is None where the header does not say how large pixels are.

    Raises:
        DataError: A file is damaged, a folder holds no series or several, the frames are a clip, or no grid holds every
            slice where its header says.
    """
    with warnings.catch_warnings(), _decoded(path):
        # pydicom warns of every value that the standard would write in another way.
        warnings.simplefilter("ignore")
        files = _one_series(path) if path.is_dir() else [_File(path, read_header(path, stop_before_pixels=True))]
        frames = [frame for file in files for frame in _frames(file)]
        if len(frames) == 1:
            warn_of_surroundings(files[0].header, files[0].path)
        geometry, order = grid_of_frames(path, frames, slice_thickness(files[0].header, files[0].path))
        # Frames of different sizes or of a clip have been refused by now.
        values = [read_values(read_header(file.path, stop_before_pixels=False), file.path) for file in files]
    if len({frame.shape[1] for frame in values}) > 1:
        raise DataError(
            f"{path}: some of its slices are in grey values and others in colours; leave out those of one kind"
        )
    pixels = np.concatenate(values)
    if len(pixels) != len(frames):
        raise DataError(
            f"{path}: its headers speak of {len(frames)} frames and it holds {len(pixels)}; is it complete?"
        )
    return np.ascontiguousarray(np.moveaxis(pixels[order], 1, 0)), geometry


@dataclass(frozen=True, eq=False)
class DicomFrames:
    """What the header of one file says of its frames.

    Attributes:
        header: The header, without pixels.
        frames: Where each frame lies.
    """

    header: Dataset
    frames: list[Frame]


def read_frame_headers(path: Path) -> DicomFrames:
    """Reads what the header of one file says of its frames.

    Raises:
        DataError: It is damaged, or contradicts itself.
    """
    with warnings.catch_warnings(), _decoded(path):
        warnings.simplefilter("ignore")
        file = _File(path, read_header(path, stop_before_pixels=True))
        return DicomFrames(file.header, _frames(file))


@contextmanager
def open_frames(path: Path) -> Iterator[Dataset]:
    """A file with its pixels, still compressed, for `read_values` to decode frame by frame.

    Raises:
        DataError: It cannot be read; also what pydicom raises in the block.
    """
    with warnings.catch_warnings(), _decoded(path):
        warnings.simplefilter("ignore")
        yield read_header(path, stop_before_pixels=False)


def modality_and_frames(path: Path) -> tuple[str, int]:
    """What kind of image a file holds, such as "US", and in how many frames; ("", 0) where it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames", "Modality"])
            return str(header.get("Modality", "")), int(header.get("NumberOfFrames") or 1)
        except (OSError, InvalidDicomError, *DAMAGED):
            return "", 0


def holds_image(path: Path) -> bool:
    """Whether a DICOM file, or one of those in a folder, is of an image and of no report, plan, structure set or mask.

    One that cannot be read may be of an image: whoever reads it is told what is wrong.
    """
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError:
        return True
    others = 0
    for file in files:
        if file.name.startswith(".") or not file.is_file():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID", "Rows"])
                kind = UID(str(header.get("SOPClassUID", "")))
            except InvalidDicomError:
                if file.suffix.lower() == DICOM_SUFFIX:
                    return True
                continue
            except (OSError, *DAMAGED):
                return True
        if kind not in SEGMENTATIONS and (not kind or "Image" in kind.name or "Rows" in header):
            return True
        others += 1
    return not others


@contextmanager
def _decoded(path: Path) -> Iterator[None]:
    """Makes an error of pydicom one that names what was read: it decodes a value when somebody asks for it."""
    try:
        yield
    except OSError as error:
        raise cannot_be_read(path, error) from error
    except (InvalidDicomError, *DAMAGED) as error:
        raise DataError(f"{path}: cannot be read; a header is damaged ({error})") from error


def read_header(path: Path, stop_before_pixels: bool) -> Dataset:
    """Reads a file; one that is named .dcm may lack the preamble, as old ones do.

    Raises:
        InvalidDicomError: It is no DICOM file, and is not named as one.
        DataError: It is named as one and none, or cannot be read.
    """
    named = path.suffix.lower() == DICOM_SUFFIX
    try:
        header = pydicom.dcmread(path, stop_before_pixels=stop_before_pixels, force=named)
    except InvalidDicomError:
        raise
    except OSError as error:
        raise cannot_be_read(path, error) from error
    except DAMAGED as error:
        raise DataError(f"{path}: cannot be read; the file is damaged or truncated ({error})") from error
    if named and "Rows" not in header and "SOPClassUID" not in header:
        raise DataError(f"{path}: cannot be read; the file is damaged, truncated or not what its name says")
    _complete_syntax(header)
    return header


def _complete_syntax(header: Dataset) -> None:
    """Says how pixels are stored where the file does not, as old ones and those of some archives do.

    They are as the other values of the file, which pydicom has looked at, unless they lie in fragments as compressed
    ones do: what these are compressed by, nobody knows.
    """
    if header.file_meta.get("TransferSyntaxUID"):
        return
    if "PixelData" in header and header["PixelData"].is_undefined_length:
        return
    implicit, little = header.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _one_series(folder: Path) -> list[_File]:
    """The images of a folder, in the order of their names; reports, plans, masks and others are not looked at.

    Raises:
        DataError: They are none, or of several series.
    """
    files = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            header = read_header(path, stop_before_pixels=True)
        except InvalidDicomError:
            continue
        if "Rows" in header and header.get("SOPClassUID") not in SEGMENTATIONS:
            files.append(_File(path, header))
    series: dict[str, list[_File]] = {}
    for file in files:
        series.setdefault(file.series, []).append(file)
    if len(series) != 1:
        found = [
            f"{len(series[first.series])} of {first.header.get('Modality', 'an unknown modality')} "
            f"{str(first.header.get('SeriesDescription', '')) or 'without a description'} ({first.path.name}, ...)"
            for first, *_ in series.values()
        ]
        if not found:
            raise DataError(
                f"{folder}: holds no DICOM image; leave it out. Files of old kinds, which lack the preamble, are known "
                "by the ending .dcm alone"
            )
        more = f" and {len(found) - _MOST_SERIES} more" if len(found) > _MOST_SERIES else ""
        raise DataError(
            f"{folder}: a DICOM case is a folder with one series, this one holds {len(series)}: "
            f"{'; '.join(found[:_MOST_SERIES])}{more}. Give each series a folder of its own"
        )
    return files


def _frames(file: _File) -> list[Frame]:
    """The frames of a file, each with the place that its header gives it.

    Raises:
        NoImageError: It is of no image.
        DataError: The header contradicts itself, or holds a word where a number is wanted.
    """
    header, path = file.header, file.path
    if not header.get("Rows") or not header.get("Columns"):
        # Of an image that was cut off the same is missing.
        of_image = "Image" in UID(str(header.get("SOPClassUID", ""))).name
        raise (DataError if of_image else NoImageError)(
            f"{path}: holds no image (it says neither Rows nor Columns); leave it out"
        )
    if header.get("SOPClassUID") in SEGMENTATIONS:
        raise NoImageError(f"{path}: is a DICOM SEG, which holds masks and no image; give it as a mask")
    if _MOSAIC in (header.get("ImageType") or ()):
        raise DataError(
            f"{path}: is a mosaic (Image Type), the slices of a volume side by side in one picture; write it as a "
            "volume first, with dcm2niix for example"
        )
    try:
        count = int(header.get("NumberOfFrames") or 1)
        _require_room(file, count)
        groups = _groups(header, count)
        return [_frame(file, groups[index], index, count) for index in range(count)]
    except DAMAGED as error:
        raise DataError(f"{path}: where its frames lie cannot be read from its header ({error}); correct it") from error


def _require_room(file: _File, count: int) -> None:
    """Raises ValueError where a file is too small for the frames of its header, however it is compressed."""
    header, held = file.header, file.path.stat().st_size
    bits = int(header.get("BitsAllocated") or 1) * int(header.get("SamplesPerPixel") or 1)
    size = count * int(header.Rows) * int(header.Columns) * bits // 8
    if not 1 <= count <= held or size > max(_ALWAYS_ALLOWED, _MOST_COMPRESSED * held):
        raise ValueError(f"it speaks of {count} frames and {size} bytes of pixels, and the file holds {held} bytes")


def _groups(header: Dataset, count: int) -> list[list[Dataset]]:
    """For each frame, what may say something of it: its own group, the shared one, and the header."""
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    own = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    if own and len(own) != count:
        raise ValueError(f"{count} frames, and {len(own)} items that say where they lie")
    return [[*own[index : index + 1], *shared, header] for index in range(count)]


_POSITIONS = (
    ("PlanePositionSequence", "ImagePositionPatient"),
    ("PlanePositionVolumeSequence", "ImagePositionVolume"),
    ("DetectorInformationSequence", "ImagePositionPatient"),
    (None, "ImagePositionPatient"),
)
_ORIENTATIONS = (
    ("PlaneOrientationSequence", "ImageOrientationPatient"),
    ("PlaneOrientationVolumeSequence", "ImageOrientationVolume"),
    ("DetectorInformationSequence", "ImageOrientationPatient"),
    (None, "ImageOrientationPatient"),
)
"""Where positions and orientations stand: in a sequence of a group, or, None, in the header itself."""


def _frame(file: _File, groups: Sequence[Dataset], index: int, count: int) -> Frame:
    header = file.header
    name = file.path.name if count == 1 else f"{file.path.name}, frame {index + 1}"
    position, axes = _stated(groups, _POSITIONS, 3), _stated(groups, _ORIENTATIONS, 6)
    decimals, spacing = 0, _spacing(groups, file.path)
    place = vectors = None
    if position is not None and axes is not None:
        decimals = max(len(str(value).partition(".")[2]) for value in position)
        place, vectors = np.array(position, dtype=np.float64), np.reshape(np.array(axes, dtype=np.float64), (2, 3))
        if not np.isfinite(place).all() or not np.isfinite(vectors).all():
            raise ValueError(f"position {position} and orientation {axes} are to be numbers")
        place = place + _along_stack(header, index) * np.cross(*vectors)
    return Frame(name, (int(header.Columns), int(header.Rows)), spacing, place, vectors, decimals)


def _stated(groups: Sequence[Dataset], places: Sequence[tuple[str | None, str]], length: int) -> Sequence[float] | None:
    """The first statement that is there and not empty."""
    for sequence, keyword in places:
        for group in groups:
            items = [group] if sequence is None else list(group.get(sequence) or [])
            value = items[0].get(keyword) if items else None
            if value:
                if len(value) != length:
                    raise ValueError(f"{keyword} has {len(value)} values, and {length} are needed")
                return list(value)
    return None


def _spacing(groups: Sequence[Dataset], path: Path) -> Spacing | None:
    for group in groups[:-1]:
        measures = list(group.get("PixelMeasuresSequence") or [])
        if measures and "PixelSpacing" in measures[0]:
            return pixel_spacing(measures[0], path)
    return pixel_spacing(groups[-1], path)


def _along_stack(header: Dataset, index: int) -> float:
    """How far in mm a frame lies along the normal from the position in the header, in files that say it once.

    Those are dose grids (Grid Frame Offset Vector, PS3.3 C.8.8.3.2) and reconstructed slices of nuclear medicine (Slice
    Vector and Spacing Between Slices, PS3.3 C.8.4.15). All frames of other files lie where that position says.
    """
    offsets: npt.ArrayLike | None = header.get("GridFrameOffsetVector")
    if offsets is not None:
        # pydicom gives a single value of a list as a number.
        values = np.atleast_1d(np.asarray(offsets, dtype=np.float64))
        return float(values[index] - values[0])
    slices = header.get("SliceVector")
    if slices is not None and header.get("SpacingBetweenSlices") is not None:
        numbers = [int(slices)] if isinstance(slices, int) else [int(number) for number in slices]
        return float((numbers[index] - 1) * float(header.SpacingBetweenSlices))
    return 0.0
