"""Where a clip is not one plane that is shown without a break: frames that are missing, and cuts to another picture."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from medfm_rl.types import Clip

_LONG_STEP: Final = 2.5
"""Times the usual step between two frames from which on frames are missing between them."""
_CUT: Final = 4.0
"""Times the usual change between neighbouring frames from which on the picture is another one. In nine clips of another
vendor (EchoNet-Dynamic) the largest was 2.6 times the median."""
_LEAST_CHANGE: Final = 0.1
"""1 - correlation below which no change is a cut: of frames of two patients (CAMUS) it was .16 or more in nine pairs of
ten."""
_STILL: Final = 1e-6
"""1 - correlation up to which two frames are the same."""
_MOST_SHOWN: Final = 5
"""Times that a frame may be shown for its changes to be usual ones; a clip that stands still longer does not move."""


def interruptions(clip: Clip) -> tuple[str, ...]:
    """What speaks against a clip being one plane without a break, in words; nothing where nothing does."""
    found = []
    steps = missing_after(clip.times)
    if steps:
        found.append(f"frames are missing after frame {_listed(steps)}, by their times")
    cuts = cuts_after(clip.frames)
    if cuts:
        found.append(f"the picture changes at once after frame {_listed(cuts)}: another view, or frames left out")
    return tuple(found)


def missing_after(times: tuple[float, ...] | None) -> list[int]:
    """Frames after which the time makes a step of more than 2.5 times the median one; none of unknown times."""
    if times is None or len(times) < 3:
        return []
    steps = np.diff(times)
    return [int(index) for index in np.flatnonzero(steps > _LONG_STEP * np.median(steps))]


def cuts_after(frames: npt.NDArray[np.floating]) -> list[int]:
    """Frames after which the picture is another one: it correlates far less with the next than neighbours usually do.

    Args:
        frames: `(T, C, H, W)`; the first channel is looked at.
    """
    if len(frames) < 3:
        return []
    changes = np.array([1 - _correlation(one[0], other[0]) for one, other in pairwise(frames)])
    # Frames that are shown several times, as in a video of a higher rate, do not say how far neighbours usually differ.
    moving = changes[changes > _STILL]
    usual = float(np.median(moving)) if len(moving) * _MOST_SHOWN >= len(changes) else 0.0
    limit = max(_LEAST_CHANGE, _CUT * usual)
    return [int(index) for index in np.flatnonzero(changes > limit)]


def _correlation(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> float:
    """Pearson's correlation of the grey values of two frames; 1 where one of them has no contrast."""
    first, second = (frame.ravel() - frame.mean(dtype=np.float64) for frame in (one, other))
    size = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / size if size > 0 else 1.0


def _listed(places: list[int]) -> str:
    few = ", ".join(map(str, places[:3]))
    return few if len(places) <= 3 else f"{few} and {len(places) - 3} more"
