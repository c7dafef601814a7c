"""JSON in which no key stands twice, and that nests no deeper than what is read here ever does."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text; bytes may be in any Unicode encoding, and a byte order mark is none of it.

    Raises:
        ValueError: It is none, a key stands twice in one object, or it nests too deeply.
    """
    try:
        return json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("lists or objects nest too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:40]!r} is given twice; keep one")
    return found
