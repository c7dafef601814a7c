"""What the log of a run says of its stages while they are at work: losses, rewards, scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from torch import Tensor

from medfm_rl.processes.team import ALONE, Team

_LOG = logging.getLogger(__name__)
_LINES: Final = 10
"""Lines about a stage."""


def is_told(step: int, steps: int) -> bool:
    """Whether a step is one of the ten of a stage, or fewer, after which there is something to say."""
    return step * _LINES // steps > (step - 1) * _LINES // steps


class MeanLosses:
    """Means of losses since they were last told.

    Args:
        stage: Whose they are.
        team: The processes that each add a part of every loss.
    """

    def __init__(self, stage: str, team: Team = ALONE) -> None:
        self._stage = stage
        self._team = team
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, loss: Tensor) -> None:
        """Adds the loss of a step; nobody waits for the device here."""
        detached = loss.detach()
        self._sums[name] = self._sums[name] + detached if name in self._sums else detached
        self._counts[name] = self._counts.get(name, 0) + 1

    def tell(self, step: int, steps: int) -> None:
        """Logs the means where it is time to, and begins anew."""
        if not is_told(step, steps) or not self._sums:
            return
        sums = {name: float(self._team.sum(value)) for name, value in self._sums.items()}
        means = ", ".join(f"{name} {value / self._counts[name]:.3f}" for name, value in sums.items())
        _LOG.info("%s: step %d of %d: loss on %s", self._stage, step, steps, means)
        self._sums, self._counts = {}, {}


def tell_update(logged: Mapping[str, float], updates: int) -> None:
    """Logs an update of PPO: its reward, and how far it is from the policy that it started from."""
    words = {
        "rollout_reward_mean": "reward",
        "train_kl_reference": "KL to where PPO started",
        "train_approx_kl": "KL to the rollout",
        "train_clip_fraction": "share of clipped pixels",
    }
    found = ", ".join(f"{said} {logged[name]:.4f}" for name, said in words.items() if name in logged)
    _LOG.info("PPO: update %d of %d: %s", logged["update"], updates, found)
