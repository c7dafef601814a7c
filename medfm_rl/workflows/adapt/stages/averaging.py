"""Averages of weights: what is exported is never a single step of the optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class RunningAverage:
    """Mean of state dicts that come one by one.

    `torch.optim.swa_utils.AveragedModel` would average the factors of low-rank parts, whose product is another: a state
    dict holds the merged weights.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}

    def add(self, state: Mapping[str, Tensor]) -> None:
        """Takes one more into the mean."""
        self.count += 1
        self._last = {name: value.detach().clone() for name, value in state.items()}
        for name, value in self._last.items():
            if value.is_floating_point():
                precise = _in_double(value)
                self._sums[name] = self._sums[name] + precise if name in self._sums else precise

    @property
    def state(self) -> dict[str, Tensor]:
        """The mean; what is no floating-point number is the last one's."""
        return {
            name: (self._sums[name] / self.count).to(value) if name in self._sums else value
            for name, value in self._last.items()
        }


def average_weights(states: Sequence[Mapping[str, Tensor]], shares: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Mean of weights along a fine-tuning (Izmailov et al., UAI 2018, arXiv 1803.05407).

    Weights that were fine-tuned from the same network can be averaged with it: the result keeps most of the gain and
    makes fewer cases worse (Wortsman et al., CVPR 2022, arXiv 2109.01903).

    Args:
        states: State dicts, one or more, with the same names and shapes, what the fine-tuning started from first.
        shares: Share of each in the result; they sum to 1. Equal where None.

    Returns:
        The weighted mean; what is no floating-point number is the first one's.
    """
    weights = torch.tensor([1 / len(states)] * len(states) if shares is None else list(shares), dtype=torch.float64)
    averaged = {}
    for name, start in states[0].items():
        if not start.is_floating_point():
            averaged[name] = start.clone()
            continue
        # In double precision, so that the order of the checkpoints does not matter.
        stacked = torch.stack([_in_double(state[name]) for state in states])
        averaged[name] = torch.einsum("s,s...->...", weights.to(stacked.device), stacked).to(start)
    return averaged


def _in_double(value: Tensor) -> Tensor:
    # Apple's GPUs have no double precision.
    return (value.cpu() if value.device.type == "mps" else value).double()
