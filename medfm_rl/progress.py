"""Progress of long work, as it is told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Told the name of a stage, how much of it is done and how much there is."""


def silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""
    del stage, done, total


def spoken_time(seconds: float) -> str:
    """A length of time in the unit that fits, such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
