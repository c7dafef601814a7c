"""The log of long work, in a file beside its results: what the terminal shows, with the time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_ALL: Final = logging.getLogger("medfm_rl")


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Adds what the package tells and warns of within the block to a text file, line by line.

    Args:
        path: The file; its folder is there.
    """
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handlers: list[logging.Handler] = [handler]
    if not _ALL.hasHandlers() and logging.lastResort is not None:
        # A program that has set up no logging sees warnings by this one, and only as long as there is no other.
        handlers.append(logging.lastResort)
    level = _ALL.level
    for each in handlers:
        _ALL.addHandler(each)
    if not _ALL.isEnabledFor(logging.INFO):
        _ALL.setLevel(logging.INFO)
    try:
        yield
    finally:
        _ALL.setLevel(level)
        for each in handlers:
            _ALL.removeHandler(each)
        handler.close()
