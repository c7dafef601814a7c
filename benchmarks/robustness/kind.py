"""A kind of input: how a sound one is made and damaged, who reads it here, and who says what stands in it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medfm_rl.errors import UserError

Fault = Callable[[Path, np.random.Generator], None]
"""Damages an input in place: the file or folder that the reader is given."""
READ, REFUSED, TRACEBACK, SILENT = "read", "refused", "traceback", "silent error"
ABORT, HANG = "abort", "hang"
UNJUDGED = "unjudged"


class UnreadableError(Exception):
    """What an oracle raises where nobody can say what an input means, so that it has to be refused."""


class UnknownError(Exception):
    """What an oracle raises where it does not know that part of a format; nothing is then said of the values."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: Of the kind.
        make: Writes a sound input into an empty folder; returns what the reader is given.
        faults: Ways to damage it; each is as frequent as the others.
        read: Reads it with this package.
        oracle: Reads it with another library.
        disagree: What differs between the two, in words; empty where nothing does.
    """

    name: str
    make: Callable[[Path], Path]
    faults: Sequence[Fault]
    read: Callable[[Path], Any]
    oracle: Callable[[Path], Any]
    disagree: Callable[[Any, Any], str]


@dataclass(frozen=True)
class Outcome:
    """What came of one input.

    Attributes:
        kind: Name of the kind.
        number: Of the input; kind and number give the same input each time.
        faults: The ways in which it was damaged.
        result: One of the words of this module.
        detail: What the reader said, or what differs.
    """

    kind: str
    number: int
    faults: tuple[str, ...]
    result: str
    detail: str


def damage(kind: Kind, number: int, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Makes the input of a number: with one fault, each fourth with two. Number 0 is sound.

    Returns:
        What the reader is given, and the names of the faults.
    """
    path = kind.make(folder)
    rng = np.random.default_rng([zlib.crc32(kind.name.encode()), number])
    if number == 0:
        return path, ()
    faults = [kind.faults[(number - 1) % len(kind.faults)]]
    if rng.random() < 0.25:
        faults.append(kind.faults[int(rng.integers(len(kind.faults)))])
    was_file = path.is_file()
    for fault in faults:
        # What is gone, or has become a folder, is not damaged any further.
        if path.is_file() == was_file:
            fault(path, rng)
    return path, tuple(_name(fault) for fault in faults)


def judge(kind: Kind, number: int, folder: Path) -> Outcome:
    """Damages an input, reads it, and says what came of it.

    Args:
        kind: The kind.
        number: Of the input.
        folder: An empty folder.
    """
    path, faults = damage(kind, number, folder)

    def outcome(result: str, detail: str) -> Outcome:
        return Outcome(kind.name, number, faults, result, detail[:600])

    try:
        found = kind.read(path)
    except UserError as error:
        message = str(error)
        named = {str(path), *(file.name for file in (path, *folder.rglob("*")))}
        if not any(name in message for name in named):
            return outcome(TRACEBACK, f"names no file: {message}")
        return outcome(REFUSED, message)
    except Exception as error:  # noqa: BLE001 - this is what is counted
        return outcome(TRACEBACK, _place(error))
    try:
        expected = kind.oracle(path)
    except UnknownError:
        return outcome(READ, UNJUDGED)
    except Exception as error:  # noqa: BLE001 - oracles fail in every way
        return outcome(SILENT, f"read, and the oracle refuses it: {type(error).__name__}: {error}")
    differing = kind.disagree(found, expected)
    return outcome(SILENT, differing) if differing else outcome(READ, "")


def _name(fault: Fault) -> str:
    return getattr(fault, "__name__", None) or str(getattr(fault, "func", fault).__name__)


def _place(error: Exception) -> str:
    """An exception and the innermost line of this package that it passed."""
    place, step = "", error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if "/medfm_rl/" in file:
            place = f"{file.rpartition('/medfm_rl/')[2]}:{step.tb_lineno}"
        step = step.tb_next
    return f"{type(error).__name__}: {error} ({place})"
