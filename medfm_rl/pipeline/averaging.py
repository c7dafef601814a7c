"""Averages of weights: what is exported is never a single step of the optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def average_weights(
    states: Sequence[Mapping[str, Tensor]], source: Mapping[str, Tensor], source_share: float
) -> dict[str, Tensor]:
    """Mean of the weights along a fine-tuning (Izmailov et al., UAI 2018, arXiv 1803.05407), drawn towards the source.

    Weights that were fine-tuned from the same network can be averaged with it: the result keeps most of the gain and
    makes fewer cases worse (Wortsman et al., CVPR 2022, arXiv 2109.01903).

    Args:
        states: State dicts of checkpoints, one or more, with the same names and shapes.
        source: State dict of the network that the fine-tuning started from.
        source_share: Share of the source in the result, in [0, 1].

    Returns:
        `source_share * source + (1 - source_share) * mean(states)`; what is no floating-point number is the source's.
    """
    averaged = {}
    for name, start in source.items():
        if not start.is_floating_point():
            averaged[name] = start.clone()
            continue
        # In double precision, so that the order of the checkpoints does not matter.
        mean = torch.stack([state[name].double() for state in states]).mean(dim=0)
        averaged[name] = (source_share * start.double() + (1 - source_share) * mean).to(start.dtype)
    return averaged
