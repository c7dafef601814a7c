"""How often somebody may ask: a bucket of permissions for each, that fills again with time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from time import monotonic
from typing import final

from medfm_rl.service.errors import DeskError

_MOST_BUCKETS = 10_000


@final
class RateLimit:
    """Lets each key do something so often in so many seconds; kept in memory, for one process.

    Args:
        count: How often at once.
        seconds: After how long all of that is allowed again.
        what: What is limited, for the message.
    """

    def __init__(self, count: int, seconds: float, what: str) -> None:
        self._count, self._seconds, self._what = count, seconds, what
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def use(self, key: str) -> None:
        """Uses a permission.

        Raises:
            DeskError: None is left.
        """
        now = monotonic()
        with self._lock:
            left = self._now(key, now)
            if left < 1:
                wait = int((1 - left) * self._seconds / self._count) + 1
                raise DeskError(429, "too_often", f"too many {self._what}", f"try again in {wait} s", wait)
            self._left[key] = (left - 1, now)
            self._left.move_to_end(key)
            if len(self._left) > _MOST_BUCKETS:
                self._left.popitem(last=False)

    def give_back(self, key: str) -> None:
        """Gives one back: what succeeded is not limited."""
        now = monotonic()
        with self._lock:
            self._left[key] = (min(self._count, self._now(key, now) + 1), now)

    def _now(self, key: str, now: float) -> float:
        left, since = self._left.get(key, (float(self._count), now))
        return min(self._count, left + (now - since) * self._count / self._seconds)
