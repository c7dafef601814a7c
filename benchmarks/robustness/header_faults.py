"""Faults of headers that are lines of text before the pixels: MetaImage and NRRD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.robustness.kind import Fault

_NUMBERS = (
    *(b"0", b"-1", b"1", b"2", b"3", b"7", b"1e3", b"0.5", b"1e-30", b"1e30", b"nan", b"inf", b"abc", b"1,5", b""),
    *(b"2147483648", b"99999999999999999999", b"20000", b"1 2", b"0x10"),
)


def split(content: bytes, last: bytes) -> tuple[list[bytes], bytes]:
    """The lines of a header and the pixels after it.

    Args:
        content: Of the file.
        last: Begins the last line; empty where an empty line ends the header.
    """
    lines, rest = [], content
    while rest:
        line, newline, rest = rest.partition(b"\n")
        lines.append(line)
        if not newline or (line.strip() == b"" if not last else line.startswith(last)):
            break
    return lines, rest


def in_header(
    last: bytes, separator: bytes, change: Callable[[list[bytes], bytes, np.random.Generator], list[bytes]], name: str
) -> Fault:
    """A fault that changes the lines of a header."""

    def fault(path: Path, rng: np.random.Generator) -> None:
        if not path.is_file():
            return
        lines, pixels = split(path.read_bytes(), last)
        if lines:
            path.write_bytes(b"\n".join(change(lines, separator, rng)) + b"\n" + pixels)

    fault.__name__ = name
    return fault


def change_number(lines: list[bytes], separator: bytes, rng: np.random.Generator) -> list[bytes]:
    """One of the words of a field becomes an odd number."""
    place = _field(lines, separator, rng)
    if place is None:
        return lines
    key, _, value = lines[place].partition(separator)
    words = value.split()
    if words:
        words[rng.integers(len(words))] = _NUMBERS[rng.integers(len(_NUMBERS))]
    lines[place] = key + separator + b" " + b" ".join(words)
    return lines


def drop_field(lines: list[bytes], separator: bytes, rng: np.random.Generator) -> list[bytes]:
    """A field is missing."""
    place = _field(lines, separator, rng)
    if place is not None:
        del lines[place]
    return lines


def repeat_field(lines: list[bytes], separator: bytes, rng: np.random.Generator) -> list[bytes]:
    """A field stands twice, the second time with another value."""
    place = _field(lines, separator, rng)
    if place is None:
        return lines
    return (
        change_number([lines[place]], separator, rng) + lines
        if rng.random() < 0.5
        else [*lines[:1], lines[place], *lines[1:]]
    )


def move_field(lines: list[bytes], separator: bytes, rng: np.random.Generator) -> list[bytes]:
    """Fields are in another order."""
    place = _field(lines, separator, rng)
    if place is not None:
        lines.insert(1, lines.pop(place))
    return lines


def other_case(lines: list[bytes], separator: bytes, rng: np.random.Generator) -> list[bytes]:
    """The name of a field is in other letters."""
    place = _field(lines, separator, rng)
    if place is not None:
        key, _, value = lines[place].partition(separator)
        lines[place] = (key.upper() if rng.random() < 0.5 else key.lower()) + separator + value
    return lines


def other_line_ends(lines: list[bytes], _: bytes, __: np.random.Generator) -> list[bytes]:
    """Lines end as on Windows."""
    return [line + b"\r" for line in lines]


def set_fields(
    choices: dict[bytes, tuple[bytes, ...]],
) -> Callable[[list[bytes], bytes, np.random.Generator], list[bytes]]:
    """Sets one of some fields to one of its values; adds it where it is missing."""

    def change(lines: list[bytes], separator: bytes, rng: np.random.Generator) -> list[bytes]:
        keys = sorted(choices)
        key = keys[rng.integers(len(keys))]
        value = choices[key][rng.integers(len(choices[key]))]
        made = key + separator + (b"" if separator == b":=" else b" ") + value
        for place, line in enumerate(lines):
            if line.partition(separator)[0].strip() == key:
                lines[place] = made
                return lines
        return [*lines[:1], made, *lines[1:]]

    return change


def _field(lines: list[bytes], separator: bytes, rng: np.random.Generator) -> int | None:
    places = [place for place, line in enumerate(lines) if separator in line]
    return None if not places else places[rng.integers(len(places))]
