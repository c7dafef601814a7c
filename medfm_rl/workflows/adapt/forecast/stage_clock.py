"""How long each stage of a run took, and how long what is left will take."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Final

from medfm_rl.progress import Progress, spoken_time
from medfm_rl.settings import AdaptConfig
from medfm_rl.workflows.adapt.choosing.cross_fit import CROSS_FIT
from medfm_rl.workflows.adapt.forecast import expectation
from medfm_rl.workflows.adapt.forecast.expectation import Expectation

_LOG = logging.getLogger(__name__)
_TRUSTED: Final = 30.0
"""Seconds of what was expected that count as if they had passed so: the first short parts say little of the pace."""


def parts_of_stages(config: AdaptConfig, processes: int = 1) -> dict[str, int]:
    """How many parts each stage has that the first of the processes tells of one by one; one where it is not named."""
    sets = 1 if config.source is None else 2
    return {
        expectation.READING: 1 + sets,
        CROSS_FIT: 2 if processes == 1 else 1,
        expectation.COLLECTING: config.iterations * sets,
        expectation.REWARD: config.iterations * math.ceil((config.reward.ensemble + 1) / processes),
        expectation.PPO: config.iterations,
        expectation.SELECTION: config.iterations,
    }


class StageClock:
    """Passes progress on, and logs at the end of each part how long it took and what is left of the run.

    What is left is what was expected, by the pace of what is done: a machine that others use too is slower throughout.

    Args:
        progress: Who is told as well.
        expected: What is expected of the stages.
        parts: As in `parts_of_stages`.
    """

    def __init__(self, progress: Progress, expected: Expectation, parts: Mapping[str, int]) -> None:
        self._progress = progress
        self._expected = dict(expected.stages)
        self._parts = parts
        self._began: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._spent = 0.0
        self._foreseen = 0.0
        self._last = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Told as any progress is."""
        # A reward network that stops early never comes to its last step: the next part says that it is over.
        for other in [name for name in self._began if name != stage]:
            self._end(other, self._last)
        now = time.monotonic()
        # The first call of a part comes when its first step is done: it began when the one before ended.
        self._began.setdefault(stage, self._last)
        self._last = now
        self._progress(stage, done, total)
        if done == total:
            self._end(stage, now)

    def _end(self, stage: str, at: float) -> None:
        taken = at - self._began.pop(stage)
        name = next((name for name in self._expected if stage.startswith(name)), None)
        rest = ""
        if name is not None:
            self._done[name] = self._done.get(name, 0) + 1
            self._spent += taken
            self._foreseen += self._expected[name] / self._parts.get(name, 1)
            left = self._left(name)
            rest = f"; about {spoken_time(left)} of the run left" if left >= 1 else ""
        if taken >= 1:
            _LOG.info("%s took %s%s", stage, spoken_time(taken), rest)

    def _left(self, current: str) -> float:
        """Seconds that the rest of a run takes, when a part of the stage `current` has ended."""
        pace = (self._spent + _TRUSTED) / (self._foreseen + _TRUSTED)
        names, shares = list(self._expected), {name: self._share(name) for name in self._expected}
        left = 0.0
        for index, name in enumerate(names):
            share = shares[name]
            if index < names.index(current):
                # A resumed run is not told of what was done before.
                share = max(share, shares[current]) if name in self._parts else 1.0
            left += self._expected[name] * (1 - share)
        return pace * left

    def _share(self, name: str) -> float:
        return min(1.0, self._done.get(name, 0) / self._parts.get(name, 1))
