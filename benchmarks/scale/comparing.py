"""Output folders compared file by file, and the resident set of a process while it works."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SECONDS = re.compile(rb"\d+(\.\d+)? s\b")
_BETWEEN_LOOKS = 0.05


def differing(one: Path, other: Path) -> dict[str, Any]:
    """How many files two output folders have, and the names of those that differ in more than times."""
    ours, theirs = _files(one), _files(other)
    names = sorted(ours.keys() | theirs.keys())
    return {"files": len(names), "differing": [name for name in names if ours.get(name) != theirs.get(name)]}


def _files(out: Path) -> dict[str, Any]:
    return {
        path.relative_to(out).as_posix(): _content(path, str(out).encode()) for path in out.rglob("*") if path.is_file()
    }


def _content(path: Path, folder: bytes) -> Any:
    """What a file says, but for times and the name of the folder."""
    content = path.read_bytes().replace(folder, b"OUT")
    match path.suffix:
        case ".jsonl":
            return [_without_times(json.loads(line)) for line in content.splitlines()]
        case ".json":
            return _without_times(json.loads(content))
        case ".csv":
            return [_without_times(row) for row in csv.DictReader(io.StringIO(content.decode()))]
        case ".html":
            return _SECONDS.sub(b"", content)
    return content


def _without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_times(value) for name, value in content.items() if name not in ("time", "seconds")}
    return [_without_times(value) for value in content] if isinstance(content, list) else content


def resident_mb() -> float:
    """The resident set of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def watched() -> Iterator[list[float]]:
    """Gives a list whose last value is the largest resident set within the block, in MB; looks all the time."""
    most = [resident_mb()]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_BETWEEN_LOOKS):
            most[0] = max(most[0], resident_mb())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()
