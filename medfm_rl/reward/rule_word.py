"""Anatomy rules as a reward: computed from a mask, and not learned.

What RL4Seg gains in valid masks comes from rewards that know the rules (arXiv 2406.17902). A sampled mask mostly breaks
more rules than the policy's best one, whose contours are smoother, so that a rule which is met already would teach the
policy to be sure of whatever it says. Rules therefore speak of those images alone whose mask breaks one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np
import torch
from torch import Tensor

from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.types import GridAxes


@final
class RuleWord:
    """What the anatomy rules say of actions: an `Informant` of the reward.

    Its word on every pixel is the share of the rules that the whole action meets. Which pixels that is owed to it does
    not say: `DensePPO` with the greedy baseline gives it to those in which the action differs from the argmax.

    Args:
        anatomy: The rules.
        spoken_of: By row of the environment, how the axes run of those images that it speaks of.
        share: Of the word in the reward, in [0, 1].
    """

    def __init__(self, anatomy: Anatomy, spoken_of: Mapping[int, GridAxes], share: float) -> None:
        self.share = share
        self._anatomy, self._spoken_of = anatomy, spoken_of

    def says(self, action: Tensor, row: int) -> Tensor | None:
        """Its word on each pixel of an action `(*S)`; None for an image that it does not speak of."""
        axes = self._spoken_of.get(row)
        if axes is None:
            return None
        results = self._anatomy.check(axes.in_image(action.numpy()))
        return torch.full(action.shape, float(np.mean([result.passed for result in results])))
