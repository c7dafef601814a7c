"""What a person should know of a file that can be used, said once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

_LOG = logging.getLogger(__name__)
_COLLECTED: ContextVar[list[str] | None] = ContextVar("collected notices", default=None)


def warn_once(message: str) -> None:
    """Logs a warning, and does not repeat it: the same file is read again and again."""
    collected = _COLLECTED.get()
    if collected is None:
        _log_once(message)
    elif message not in collected:
        collected.append(message)


@contextmanager
def collected_notices() -> Iterator[list[str]]:
    """Gives a list that takes up what would be logged in the block, for who shows it in another way."""
    notices: list[str] = []
    token = _COLLECTED.set(notices)
    try:
        yield notices
    finally:
        _COLLECTED.reset(token)


@lru_cache(maxsize=4096)
def _log_once(message: str) -> None:
    _LOG.warning("%s", message)
