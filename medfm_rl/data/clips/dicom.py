"""Clips in DICOM: one file whose frames show one plane at several times."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.encaps import generate_fragmented_frames, generate_fragments, parse_basic_offsets
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID, MPEGTransferSyntaxes, RLELossless

from medfm_rl.data.clips.regions import Region, grey_of, tissue_region
from medfm_rl.data.clips.video import decode_video
from medfm_rl.data.dicom import DicomFrames, NoImageError, open_frames, read_frame_headers
from medfm_rl.data.dicom_pixels import DAMAGED, read_values
from medfm_rl.data.notices import collected_notices, warn_once
from medfm_rl.data.stacks import Arrangement, arrangement
from medfm_rl.errors import DamagedClipError, DataError
from medfm_rl.types import FloatArray, Geometry

_FILMED = ("US", "IVUS", "XA", "RF", "ES")
"""Modalities whose frames without a place are of one place over time, also where the header gives no times."""
_SECOND = 1000.0
"""Milliseconds."""
_FRAME_TIME, _FRAME_TIME_VECTOR = 0x00181063, 0x00181065
Times = tuple[float, ...] | None


def find_dicom_clip(path: Path) -> int | None:
    """How many frames the clip in a file has; None where it holds one image, a volume, frames of no time, or none.

    Raises:
        DataError: Its header is damaged.
    """
    try:
        found = _read_headers(path)
    except NoImageError:
        return None
    return len(found.frames) if _is_clip(found, path) else None


def read_dicom_clip(path: Path) -> tuple[FloatArray, Times, Geometry]:
    """Frames `(T, 1, H, W)` in greys, cropped to the region of tissue, their times in s, and the grid of the region.

    Frames are decoded one by one, so that a long clip in colours needs the memory of its greys.

    Raises:
        DataError: A frame cannot be decoded, is in colours, or shows several views; or there are more or fewer frames
            than the header says.
    """
    found = _read_headers(path)
    header, count = found.header, len(found.frames)
    region = _region(found, path)
    rows, columns = region.box
    frames = np.empty((count, 1, rows.stop - rows.start, columns.stop - columns.start), dtype=np.float32)
    seen = 0
    for index, values in enumerate(_decoded_frames(path, count)):
        if index == count:
            raise DataError(f"{path}: holds more frames than the {count} of its header; export it again")
        if values.shape[1:] != (int(header.Rows), int(header.Columns)):
            raise DataError(
                f"{path}: frame {index} has size {values.shape[1:]}, and the header another; export it again"
            )
        frames[index] = (
            values[:, rows, columns] if len(values) == 1 else grey_of(values, region, f"{path}, frame {index}")
        )
        seen += 1
    if seen < count:
        raise DataError(f"{path}: holds {seen} of the {count} frames of its header; it is cut off, export it again")
    return frames, frame_times(header, count, path), region.geometry


def frame_times(header: Dataset, count: int, path: Path) -> Times:
    """Seconds from the first frame on; None where the header gives none.

    By Frame Increment Pointer where there is one, then Frame Time Vector, Frame Time (PS3.3 C.7.6.5), the offsets of
    the frames in an enhanced file, and the rate at which it is to be shown.

    Raises:
        DamagedClipError: The times are not numbers, not as many as the frames, or do not grow.
    """
    try:
        steps = _steps(header, count)
    except DAMAGED as error:
        raise DamagedClipError(f"{path}: the times of its frames cannot be read from its header ({error})") from error
    if steps is None:
        return None
    if len(steps) != count:
        raise DamagedClipError(f"{path}: gives {len(steps)} times for {count} frames; correct its Frame Time Vector")
    times = np.asarray(steps, dtype=np.float64) - steps[0]
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise DamagedClipError(
            f"{path}: the times of its frames do not grow; correct its Frame Time Vector, or the times in its groups"
        )
    return tuple(times.tolist())


def _steps(header: Dataset, count: int) -> list[float] | None:
    """Times in s; the first counts from anywhere."""
    pointer = header.get("FrameIncrementPointer")
    vector, step = header.get("FrameTimeVector"), header.get("FrameTime")
    # A file may hold both, and says by the pointer which of them counts.
    if vector is not None and not (pointer == _FRAME_TIME and step):
        increments = [float(vector)] if isinstance(vector, int | float | str) else [float(value) for value in vector]
        # The first increment is 0 by the standard, and whatever it is, the first frame begins the clip.
        return list(np.cumsum([0.0, *increments[1:]]) / _SECOND)
    if step and math.isfinite(float(step)) and float(step) > 0:
        return [index * float(step) / _SECOND for index in range(count)]
    offsets = [_offset(group) for group in header.get("PerFrameFunctionalGroupsSequence") or []]
    known = [offset for offset in offsets if offset is not None]
    if len(known) == count:
        return known
    rate = float(header.get("CineRate") or header.get("RecommendedDisplayFrameRate") or 0)
    return [index / rate for index in range(count)] if rate > 0 else None


def _offset(group: Dataset) -> float | None:
    """Seconds of a frame in an enhanced file, in the heart's cycle or from the first frame on."""
    for sequence, keyword, factor in (
        ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", 1 / _SECOND),
        ("TemporalPositionSequence", "TemporalPositionTimeOffset", 1.0),
    ):
        items = group.get(sequence) or []
        value = items[0].get(keyword) if items else None
        if value is not None:
            return float(value) * factor
    return None


def _read_headers(path: Path) -> DicomFrames:
    """What the header says of the frames; what it leaves open of their spacing is not said where a region has its own.

    Raises:
        DataError: As in `read_frame_headers`.
    """
    with collected_notices() as notices:
        found = read_frame_headers(path)
    if not found.header.get("SequenceOfUltrasoundRegions"):
        for notice in notices:
            warn_once(notice)
    return found


def _is_clip(found: DicomFrames, path: Path) -> bool:
    if len(found.frames) < 2 or arrangement(found.frames) is not Arrangement.CLIP:
        return False
    return found.header.get("Modality") in _FILMED or frame_times(found.header, len(found.frames), path) is not None


def _region(found: DicomFrames, path: Path) -> Region:
    if found.header.get("SequenceOfUltrasoundRegions"):
        return tissue_region(found.header, path)
    first = found.frames[0]
    columns, rows = first.size
    return Region((slice(0, rows), slice(0, columns)), first.spacing)


def _decoded_frames(path: Path, count: int) -> Iterator[FloatArray]:
    """Frames `(C, H, W)`, decoded one by one."""
    with open_frames(path) as dataset:
        if dataset.file_meta.get("TransferSyntaxUID") in MPEGTransferSyntaxes:
            buffer = io.BytesIO(dataset.PixelData)
            parse_basic_offsets(buffer)  # It is no part of the video.
            yield from (frame for _, frame in decode_video(b"".join(generate_fragments(buffer)), path))
            return
        held = _held_frames(dataset, count)
        if held > count:
            raise DataError(
                f"{path}: holds {held} frames, and its header says {count}; correct its Number of Frames, or export it "
                "again"
            )
        for index in range(count):
            yield read_values(dataset, path, index)[0]


def _held_frames(dataset: Dataset, count: int) -> int:
    """How many frames the pixels of a file are of, whatever its header says; `count` where they do not tell."""
    pixels = dataset.get("PixelData")
    if pixels is None or int(dataset.BitsAllocated) < 8:
        return count
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not syntax.is_transfer_syntax or not syntax.is_compressed:
        return len(pixels) * count // max(1, get_expected_length(dataset))
    if "ExtendedOffsetTable" in dataset:
        return len(dataset.ExtendedOffsetTable) // 8
    buffer = io.BytesIO(pixels)
    offsets = parse_basic_offsets(buffer)
    if offsets:
        return len(offsets)
    # RLE has a fragment a frame; of other codings a frame ends with a mark.
    if syntax == RLELossless:
        return sum(1 for _ in generate_fragments(buffer))
    try:
        return sum(1 for _ in generate_fragmented_frames(pixels, number_of_frames=count))
    except ValueError:
        return count  # Decoding says why.
