"""Clips in AVI and MP4, by PyAV (extra `video`)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from medfm_rl.data.clips.regions import Region, grey_of
from medfm_rl.errors import DamagedClipError, DataError, MissingExtraError
from medfm_rl.types import FloatArray, Geometry


def count_video_frames(path: Path) -> int:
    """How many frames a video has, by its header or, where that is silent, by its packets.

    Raises:
        DataError: It is damaged or holds no video.
        MissingExtraError: PyAV is not installed.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            stream = _stream(container, path)
            return int(stream.frames) or sum(packet.size > 0 for packet in container.demux(stream))
    except (av.FFmpegError, OSError) as error:
        raise _damaged(path, error) from error


def read_video(path: Path) -> tuple[FloatArray, tuple[float, ...], Geometry]:
    """Frames `(T, 1, H, W)` in greys, their times in s by the file, and a grid of unknown spacing.

    Raises:
        DataError: It is damaged, cut off or in colours, or holds more frames than its header says.
        MissingExtraError: PyAV is not installed.
    """
    times, frames = [], []
    for index, (time, frame) in enumerate(decode_video(path, path)):
        whole = Region((slice(0, frame.shape[1]), slice(0, frame.shape[2])), None)
        times.append(time)
        frames.append(grey_of(frame, whole, f"{path}, frame {index}"))
    expected = count_video_frames(path)
    if len(frames) < expected:
        raise DataError(f"{path}: holds {len(frames)} of the {expected} frames of its header; it is cut off")
    if len(frames) > expected:
        raise DataError(
            f"{path}: holds {len(frames)} frames, and its header says {expected}; write it again, by "
            "`ffmpeg -i FILE -c copy NEW` for one"
        )
    return np.stack(frames), tuple(value - times[0] for value in times), Geometry.unknown(2)


def decode_video(source: Path | bytes, path: Path) -> Iterator[tuple[float, FloatArray]]:
    """Time in s and RGB values `(3, H, W)` of each frame, 0 to 255.

    Args:
        source: The file, or the bytes of one within another.
        path: Its name, for messages.

    Raises:
        DataError: It is damaged or holds no video.
        MissingExtraError: PyAV is not installed.
    """
    av = _av()
    try:
        with av.open(str(source) if isinstance(source, Path) else io.BytesIO(source)) as container:
            stream = _stream(container, path)
            rate = float(stream.average_rate or stream.guessed_rate or Fraction(0))
            last = -1.0
            for index, frame in enumerate(container.decode(stream)):
                # Streams without timestamps have a rate alone.
                time = frame.time if frame.time is not None else index / rate if rate else float(index)
                if time <= last:
                    raise DataError(f"{path}: the time of frame {index} is not after that of the frame before it")
                last = time
                yield time, np.moveaxis(frame.to_ndarray(format="rgb24"), -1, 0).astype(np.float32)
    except (av.FFmpegError, OSError) as error:
        raise _damaged(path, error) from error


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise DamagedClipError(f"{path}: holds no video")
    return container.streams.video[0]


def _damaged(path: Path, error: BaseException) -> DataError:
    return DamagedClipError(
        f"{path}: cannot be read as a video; it is damaged, cut off or of an unknown kind ({error})"
    )


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("reading video needs PyAV: pip install 'medfm-rl[video]'") from error
    return av
