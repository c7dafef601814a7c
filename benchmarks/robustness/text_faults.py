"""Faults of text: JSON, YAML and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.robustness.file_faults import FILES
from benchmarks.robustness.kind import Fault

_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        2**31,
        2**63,
        2**64,
        10**400,
        -(10**30),
        1e300,
        1e-300,
        float("nan"),
        float("inf"),
    ),
    *("", " ", "None", "0", "1" * 5000, "\0", "\ud800", "é", "é", "../..", "/", "a" * 5000, "-inf", "\u0661"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, ["x", 1, None]),
)
_NESTED = 100_000


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _places(content: Any, parent: Any = None, key: Any = None) -> list[tuple[Any, Any]]:
    """Every place of a JSON tree, as what holds it and the key in there."""
    found = [] if parent is None else [(parent, key)]
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in items:
        found += _places(value, content, name)
    return found


def change_value(path: Path, rng: np.random.Generator) -> None:
    """A value becomes one of another type, or an extreme one."""
    content = _load(path)
    places = _places(content)
    if not places:
        return
    parent, key = places[rng.integers(len(places))]
    parent[key] = _VALUES[rng.integers(len(_VALUES))]
    _write(path, content)


def scale_number(path: Path, rng: np.random.Generator) -> None:
    """A number becomes another one: negative, large, real, or in quotes."""
    content = _load(path)
    numbers = [(parent, key) for parent, key in _places(content) if type(parent[key]) in (int, float)]
    if not numbers:
        return
    parent, key = numbers[rng.integers(len(numbers))]
    value = parent[key]
    parent[key] = [-value, value + 1, value * 1000, value + 0.5, str(value), [value], float(value)][rng.integers(7)]
    _write(path, content)


def remove_key(path: Path, rng: np.random.Generator) -> None:
    """A value is missing."""
    content = _load(path)
    places = _places(content)
    if not places:
        return
    parent, key = places[rng.integers(len(places))]
    del parent[key]
    _write(path, content)


def rename_key(path: Path, rng: np.random.Generator) -> None:
    """A key is another one: in other letters, empty, or no text that could be written."""
    content = _load(path)
    keyed = [(parent, key) for parent, key in _places(content) if isinstance(parent, dict)]
    if not keyed:
        return
    parent, key = keyed[rng.integers(len(keyed))]
    names = [key.upper(), "", f"{key} ", "\ud800", f"{key}\0", "a" * 5000, "é"]
    parent[names[rng.integers(len(names))]] = parent.pop(key)
    _write(path, content)


def repeat_key(path: Path, rng: np.random.Generator) -> None:
    """A key stands twice, with another value."""
    content = _load(path)
    keyed = [(parent, key) for parent, key in _places(content) if isinstance(parent, dict)]
    if not keyed:
        return
    parent, key = keyed[rng.integers(len(keyed))]
    value, mark = parent[key], "medfm-rl-second"
    parent[mark] = value + 1 if type(value) in (int, float) else value
    path.write_text(json.dumps(content, indent=1).replace(json.dumps(mark), json.dumps(key)))


def nest(path: Path, rng: np.random.Generator) -> None:
    """A value lies in a hundred thousand lists, or objects."""
    content = _load(path)
    places = _places(content)
    opening, closing = [("[", "]"), ('{"a":', "}")][rng.integers(2)]
    deep = opening * _NESTED + "1" + closing * _NESTED
    if not places:
        path.write_text(deep)
        return
    parent, key = places[rng.integers(len(places))]
    parent[key] = "medfm-rl-nested"
    path.write_text(json.dumps(content).replace('"medfm-rl-nested"', deep))


def other_encoding(path: Path, rng: np.random.Generator) -> None:
    """The text is in UTF-16, UTF-32 or Latin 1, or begins with a byte order mark."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    encoding = ["utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-le"][rng.integers(5)]
    path.write_bytes(text.replace("a", "ä").encode(encoding, errors="replace"))


def byte_order_mark(path: Path, _: np.random.Generator) -> None:
    """A byte order mark stands before the text, as some editors of Windows write it."""
    if path.is_file():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def other_top(path: Path, rng: np.random.Generator) -> None:
    """The whole file is one value, or none."""
    tops = ["", "null", "[]", "{}", "1", '"a"', "[[[", "{]", "NaN", "{'a': 1}", "{}{}", "\0", "{,}", '{"a":}', "1e999"]
    path.write_text(tops[rng.integers(len(tops))])


def swap_lines(path: Path, rng: np.random.Generator) -> None:
    """Lines are missing, there twice, or in another order."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    if not lines:
        return
    place = int(rng.integers(len(lines)))
    match rng.integers(3):
        case 0:
            del lines[place]
        case 1:
            lines.insert(int(rng.integers(len(lines))), lines[place])
        case _:
            lines[place], lines[0] = lines[0], lines[place]
    path.write_text("\n".join(lines) + "\n", errors="replace")


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))


TEXT: tuple[Fault, ...] = (*FILES, other_encoding, byte_order_mark, other_top, swap_lines)
JSON: tuple[Fault, ...] = (
    *(change_value, change_value, change_value, scale_number, scale_number, remove_key, rename_key, repeat_key),
    *(nest, *TEXT),
)
