"""Tracings of the left ventricle as EchoNet-Dynamic has them: chords across it in two frames of a video.

D. Ouyang et al., Nature 580, 2020. `VolumeTracings.csv` has FileName, X1, Y1, X2, Y2 and Frame (counted from 0); of the
lines of a frame the first is the long axis, and each of the others a chord from one wall to the other, from the apex
down.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from skimage.draw import polygon

from medfm_rl.data.files import cannot_be_read
from medfm_rl.errors import DataError

TRACINGS = "VolumeTracings.csv"
_COLUMNS = ("FileName", "X1", "Y1", "X2", "Y2", "Frame")
_FEWEST = 3
"""The long axis and two chords: less encloses nothing."""
_Chord = tuple[float, float, float, float]


def traced_frames(path: Path, video: str) -> list[int]:
    """The frames of a video that have a tracing, in their order.

    Raises:
        DataError: The table cannot be read.
    """
    return sorted(_tracings(path, path.stat().st_mtime_ns).get(video, {}))


def traced_videos(path: Path) -> list[str]:
    """The names of the videos that have a tracing, without their endings, in the order of the table.

    Raises:
        DataError: The table cannot be read.
    """
    return list(_tracings(path, path.stat().st_mtime_ns))


def traced_mask(path: Path, video: str, frame: int, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """The ventricle `(H, W)` within the tracing of a frame.

    Raises:
        DataError: There is no such tracing, it encloses nothing, or leaves the frame by more than a pixel.
    """
    chords = _tracings(path, path.stat().st_mtime_ns).get(video, {}).get(frame)
    if chords is None:
        raise DataError(f"{path}: has no tracing of frame {frame} of {video}")
    if len(chords) < _FEWEST:
        raise DataError(f"{path}: the tracing of frame {frame} of {video} has {len(chords)} lines; it encloses nothing")
    ends = np.array(chords[1:])
    outline = np.concatenate([ends[:, :2], ends[::-1, 2:]])
    if outline.min() < -1 or (outline > np.array(shape[::-1])).any():
        raise DataError(f"{path}: the tracing of frame {frame} of {video} leaves the frame of {shape[1]} x {shape[0]}")
    mask = np.zeros(shape, dtype=bool)
    mask[polygon(outline[:, 1], outline[:, 0], shape)] = True
    if not mask.any():
        raise DataError(f"{path}: the tracing of frame {frame} of {video} encloses no pixel")
    return mask


@lru_cache(maxsize=2)
def _tracings(path: Path, changed: int) -> Mapping[str, Mapping[int, list[_Chord]]]:
    """Lines by video and frame; read anew where the file has `changed`."""
    del changed
    found: dict[str, dict[int, list[_Chord]]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: lacks the column {missing[0]}; EchoNet's tracings have {', '.join(_COLUMNS)}")
            for line, row in enumerate(table, 2):
                try:
                    chord = (float(row["X1"]), float(row["Y1"]), float(row["X2"]), float(row["Y2"]))
                    frame = int(row["Frame"])
                except (TypeError, ValueError) as error:
                    raise DataError(f"{path}: line {line} is no tracing ({error})") from error
                found.setdefault(video_name(row["FileName"]), {}).setdefault(frame, []).append(chord)
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_be_read(path, error) if isinstance(error, OSError) else DataError(f"{path}: {error}") from error
    return found


def video_name(name: str) -> str:
    """A name in the tables without its ending: some releases write it, and others do not."""
    return name.removesuffix(".avi").removesuffix(".mp4")
