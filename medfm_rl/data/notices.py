"""What a person should know of a file that can be used, said once."""

from __future__ import annotations

import logging
from functools import lru_cache

_LOG = logging.getLogger(__name__)


@lru_cache(maxsize=4096)
def warn_once(message: str) -> None:
    """Logs a warning, and does not repeat it: the same file is read again and again."""
    _LOG.warning("%s", message)
