"""What is a clip, and reading one: the one place that decides between a clip and a volume or an image.

Frames of one place at several times are a clip (`data.stacks.arrangement` for DICOM and for axes of time), as are
videos. Planes stacked along a third axis are a volume, unless their name is that of a CAMUS sequence or the user has
said that they are times.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path

import numpy as np

from medfm_rl.data.clips.dicom import find_dicom_clip, read_dicom_clip
from medfm_rl.data.clips.regions import Region, grey_of
from medfm_rl.data.clips.sequences import find_sequence, read_sequence
from medfm_rl.data.clips.video import count_video_frames, read_video
from medfm_rl.data.dicom import DICOM_SUFFIX
from medfm_rl.data.images import hash_image, image_stem, image_suffix, is_dicom, is_video, read_pixels
from medfm_rl.data.nifti import NIFTI_SUFFIXES
from medfm_rl.data.segmentations.pictures import is_picture, transparent
from medfm_rl.errors import DataError
from medfm_rl.types import Clip, FloatArray, Geometry

_OF_CAMUS = re.compile(r"^patient\d+_(2CH|4CH)(_half)?_sequence(_gt)?$")
"""Names of the sequences of CAMUS, whose third axis is time."""
_NUMBER = re.compile(r"(\d+)\D*$")
_FEWEST = 2
_SHOWN = 3
_GREY, _COLOURS = 1, 3
"""Channels."""
_OPAQUE = (255, 65535)
"""Values of a picture of 8 or 16 bits that let nothing through."""
_Read = tuple[FloatArray, tuple[float, ...] | None, Geometry]


class ClipKind(Enum):
    """How a clip lies on the disk."""

    DICOM = "multi-frame DICOM"
    SEQUENCE = "NIfTI or MetaImage with an axis of time"
    VIDEO = "video"
    FOLDER = "folder of numbered pictures"


@dataclass(frozen=True)
class ClipFile:
    """A clip that was found.

    Attributes:
        path: Its file, or the folder of its pictures.
        kind: How it lies there.
        count: Its frames.
    """

    path: Path
    kind: ClipKind
    count: int

    def read(self, clip_id: str, patient_id: str, tags: Mapping[str, str] | None = None) -> Clip:
        """Reads all frames; those of the clip that was read last are kept, or why it could not be read.

        Raises:
            DataError: It cannot be read, has NaN or infinity, or nothing but one value.
        """
        found = _read_once(self, self._state())
        if isinstance(found, DataError):
            raise DataError(str(found)) from found
        frames, times, geometry = found
        return Clip(clip_id, patient_id, frames, times, geometry, tags or {})

    def pictures(self) -> list[Path]:
        """The pictures of a folder in the order of their numbers; none of any other kind."""
        found = _pictures(self.path) if self.kind is ClipKind.FOLDER else []
        return sorted(found, key=lambda path: _number(path) or 0)

    def missing_numbers(self) -> list[range]:
        """Numbers that no picture of a folder has, between the first and the last: frames that may have been lost.

        There are none where the numbers have one step, as where every second frame was kept.
        """
        numbers = [_number(path) or 0 for path in self.pictures()]
        steps = np.diff(numbers)
        usual = int(steps.min()) if len(steps) else 1
        return [
            range(before + usual, after, usual)
            for before, after in itertools.pairwise(numbers)
            if after - before > usual
        ]

    def hash(self) -> str:
        """SHA-256 of the clip's file, or of the folder of its pictures; it is kept as long as nothing changes.

        Raises:
            DataError: It cannot be read.
        """
        return _hash(self.path, self._state())

    def _state(self) -> tuple[tuple[int, int], ...]:
        """Size and time of change of what is to be read; a missing file has none."""
        paths = _pictures(self.path) if self.kind is ClipKind.FOLDER else [self.path]
        return tuple((found.st_size, found.st_mtime_ns) for path in paths if path.exists() and (found := path.stat()))


def find_clip(path: Path, planes_over_time: bool = False) -> ClipFile | None:
    """A file as a clip, by its header; None where it is an image or a volume.

    Args:
        path: A file.
        planes_over_time: Whether the planes of a file of three axes are times, which such a file does not say.

    Raises:
        DataError: The file is damaged.
        MissingExtraError: It is a video, and PyAV is not installed.
    """
    suffix = image_suffix(path)
    if is_video(path):
        return ClipFile(path, ClipKind.VIDEO, count_video_frames(path))
    if suffix == DICOM_SUFFIX or (suffix is None and path.is_file() and is_dicom(path)):
        count, kind = find_dicom_clip(path), ClipKind.DICOM
    else:
        stacked = planes_over_time or _OF_CAMUS.match(image_stem(path)) is not None
        count, kind = find_sequence(path, stacked), ClipKind.SEQUENCE
    return None if count is None else ClipFile(path, kind, count)


def find_numbered(folder: Path) -> ClipFile | None:
    """A folder of numbered pictures as a clip; None where it holds fewer than two, or one without a number.

    Raises:
        DataError: Two have the same number, or their names differ in more than the number.
    """
    pictures = _pictures(folder)
    numbers = [_number(path) for path in pictures]
    if len(pictures) < _FEWEST or None in numbers:
        return None
    twice = next((path for path, number in zip(pictures, numbers, strict=True) if numbers.count(number) > 1), None)
    if twice is not None:
        raise DataError(f"{twice}: another frame of the folder has the same number; rename or remove one of them")
    names = {_before_number(path).casefold(): path.name for path in reversed(pictures)}
    if len(names) > 1:
        raise DataError(
            f"{folder}: holds the frames of several clips by their names ({', '.join(sorted(names.values())[:_SHOWN])}"
            f"{', ...' if len(names) > _SHOWN else ''}); give each clip a folder of its own, or name all frames alike"
        )
    return ClipFile(folder, ClipKind.FOLDER, len(pictures))


def picture_without_number(folder: Path) -> Path | None:
    """The first picture of a folder without a number, where others have one; None where there is none."""
    pictures = _pictures(folder)
    without = [path for path in pictures if _number(path) is None]
    return without[0] if 0 < len(without) < len(pictures) else None


@lru_cache(maxsize=1)
def _read_once(file: ClipFile, state: tuple[tuple[int, int], ...]) -> _Read | DataError:
    """A clip, or why it cannot be read, since each of its frames asks; anew where the state of its file is another."""
    del state
    try:
        return _read(file)
    except DataError as error:
        return error


def _read(file: ClipFile) -> _Read:
    match file.kind:
        case ClipKind.DICOM:
            frames, times, geometry = read_dicom_clip(file.path)
        case ClipKind.SEQUENCE:
            frames, times, geometry = read_sequence(file.path)
            if image_suffix(file.path) in NIFTI_SUFFIXES and frames.shape[1] > 1:
                frames = np.stack([_in_grey(frame, f"{file.path}, frame {i}") for i, frame in enumerate(frames)])
        case ClipKind.VIDEO:
            frames, times, geometry = read_video(file.path)
        case ClipKind.FOLDER:
            frames, times, geometry = _read_pictures(file)
    if not np.isfinite(frames).all():
        raise DataError(f"{file.path}: the clip holds NaN or infinite values; write the value of the background there")
    if frames.min() == frames.max():
        raise DataError(f"{file.path}: every pixel has the value {frames.flat[0]:g}: there is nothing to segment")
    frames.flags.writeable = False
    return frames, times, geometry


@lru_cache(maxsize=256)
def _hash(path: Path, state: tuple[tuple[int, int], ...]) -> str:
    del state
    return hash_image(path)


def _read_pictures(file: ClipFile) -> _Read:
    read = []
    for path in file.pictures():
        pixels, geometry = read_pixels(path)
        read.append((_in_grey(pixels, str(path)), geometry))
    shapes = {image.shape for image, _ in read}
    if len(shapes) > 1:
        raise DataError(
            f"{file.path}: its frames have several sizes ({sorted(shapes)}); give each clip a folder of its own"
        )
    return np.stack([image for image, _ in read]), None, read[0][1]


def _in_grey(pixels: FloatArray, where: str) -> FloatArray:
    """Grey values `(1, H, W)` of a frame `(C, H, W)` in grey or colours, with a channel of how opaque it is or without.

    Raises:
        DataError: It is in colours, or transparent in part.
    """
    if len(pixels) in (_GREY + 1, _COLOURS + 1):
        if pixels[-1].min() not in _OPAQUE or pixels[-1].min() < pixels[-1].max():
            raise transparent(where)
        pixels = pixels[:-1]
    if len(pixels) == _COLOURS:
        return grey_of(pixels, Region((slice(0, pixels.shape[1]), slice(0, pixels.shape[2])), None), where)
    return pixels


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_picture(path) and not path.name.startswith("."))


def _before_number(path: Path) -> str:
    found = _NUMBER.search(path.stem)
    return path.stem[: found.start()] if found else path.stem


def _number(path: Path) -> int | None:
    found = _NUMBER.search(path.stem)
    return int(found[1]) if found else None
