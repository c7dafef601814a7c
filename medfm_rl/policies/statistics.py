"""What an update of PPO tells of itself: values of parts of minibatches, of all processes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medfm_rl.processes.team import Team
from medfm_rl.types import FloatArray


class MinibatchValues:
    """Means over the images of a minibatch, of which each process sees a part.

    Args:
        names: What is told of; the same in every process, also in one that has no image of a minibatch.
        device: Where the networks are.
    """

    def __init__(self, *names: str, device: torch.device) -> None:
        self._device = device
        self._values = dict.fromkeys(names, 0.0)

    def add(self, share: float, **values: float) -> None:
        """Adds values of some of the images, which are this share of all."""
        for name, value in values.items():
            self._values[name] += value if share == 1 else share * value

    def of_all(self, team: Team) -> dict[str, float]:
        """The means of all processes together."""
        if team.size == 1:
            return self._values
        summed = team.sum(torch.tensor(list(self._values.values()), dtype=torch.float64, device=self._device))
        return dict(zip(self._values, summed.tolist(), strict=True))


def mean_of_all(rewards: FloatArray, team: Team, device: torch.device) -> float:
    """Mean of the rewards of the images of a step, of which a process knows those of its own."""
    if team.size == 1:
        return float(rewards.mean())
    own = torch.as_tensor(rewards[team.rows(len(rewards))], device=device).sum()
    return float(team.sum(own)) / len(rewards)


def mean_square(advantages: Tensor, images: int, team: Team) -> Tensor | None:
    """Mean square of the advantages of all images of a minibatch, so many; None where all are in this process.

    Args:
        advantages: Those of this process, `(B, *S)`.
        images: How many images there are in all processes.
        team: The processes.
    """
    if team.size == 1:
        return None
    return team.sum(advantages.square().sum()) / (images * int(np.prod(advantages.shape[1:])))


def note(statistics: dict[str, list[float]], **values: float) -> None:
    """Keeps the values of a minibatch beside those of the others."""
    for name, value in values.items():
        statistics.setdefault(name, []).append(value)
