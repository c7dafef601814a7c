"""Faults of any file: bytes changed, cut, doubled or added, and names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from benchmarks.robustness.kind import Fault

HEAD = 600
"""Bytes from the start of a file that are damaged oftener than others."""


def flip_bytes(path: Path, rng: np.random.Generator) -> None:
    """One to eight bytes become others, half of the time in the head."""
    content = bytearray(path.read_bytes())
    if not content:
        return
    end = min(HEAD, len(content)) if rng.random() < 0.5 else len(content)
    for place in rng.integers(0, end, rng.integers(1, 9)):
        content[place] = rng.integers(256)
    path.write_bytes(content)


def extreme_bytes(path: Path, rng: np.random.Generator) -> None:
    """A number of 1, 2, 4 or 8 bytes in the head becomes 0, the largest, or the smallest."""
    content = bytearray(path.read_bytes())
    size = int(rng.choice([1, 2, 4, 8]))
    if len(content) <= size:
        return
    place = int(rng.integers(0, min(HEAD, len(content)) - size))
    content[place : place + size] = [b"\0", b"\xff", b"\x7f", b"\x80"][rng.integers(4)] * size
    path.write_bytes(content)


def truncate(path: Path, rng: np.random.Generator) -> None:
    """The end is missing; at times all but a few bytes."""
    content = path.read_bytes()
    if content:
        path.write_bytes(content[: rng.integers(len(content) if rng.random() < 0.7 else min(len(content), HEAD))])


def cut_out(path: Path, rng: np.random.Generator) -> None:
    """Some bytes in the middle are missing."""
    content = path.read_bytes()
    if len(content) < 2:
        return
    place = int(rng.integers(len(content)))
    path.write_bytes(content[:place] + content[place + int(rng.integers(1, 40)) :])


def insert_bytes(path: Path, rng: np.random.Generator) -> None:
    """Random bytes are added in the middle."""
    content = path.read_bytes()
    place = int(rng.integers(len(content) + 1))
    path.write_bytes(content[:place] + rng.bytes(int(rng.integers(1, 40))) + content[place:])


def append_bytes(path: Path, rng: np.random.Generator) -> None:
    """Random bytes follow the end."""
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 400))))


def repeat_part(path: Path, rng: np.random.Generator) -> None:
    """A part of the file is there twice."""
    content = path.read_bytes()
    place = int(rng.integers(len(content) + 1))
    path.write_bytes(content[:place] + content[max(0, place - int(rng.integers(1, 200))) :])


def fill_with_noise(path: Path, rng: np.random.Generator) -> None:
    """All bytes are random, or are those of zip, gzip or text; at times there are none."""
    starts = [b"", b"PK\x03\x04", b"\x1f\x8b\x08", b"{", b"\x80\x02", b"\x89PNG\r\n\x1a\n"]
    path.write_bytes(starts[rng.integers(len(starts))] + rng.bytes(int(rng.choice([0, 1, 7, 1000]))))


def remove(path: Path, _: np.random.Generator) -> None:
    """There is no such file, or it is a folder, which the caller finds where a file should be."""
    path.unlink(missing_ok=True)


def make_folder(path: Path, _: np.random.Generator) -> None:
    """A folder lies where the file should."""
    path.unlink(missing_ok=True)
    path.mkdir(exist_ok=True)


def no_permission(path: Path, _: np.random.Generator) -> None:
    """The file leads to a link that leads back to it: nobody can open it."""
    path.unlink(missing_ok=True)
    os.symlink(path.name, path)


BYTES: tuple[Fault, ...] = (
    flip_bytes,
    extreme_bytes,
    truncate,
    cut_out,
    insert_bytes,
    append_bytes,
    repeat_part,
    fill_with_noise,
)
FILES: tuple[Fault, ...] = (*BYTES, remove, make_folder, no_permission)
