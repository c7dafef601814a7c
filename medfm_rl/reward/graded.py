"""One number for a whole mask as a reward, such as a grade. Computed, not learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MaskQuality = Callable[[Tensor, int], float]
"""An action `(*S)` int64 on the CPU, and the row of the environment that it is an action on, to a quality in [0, 1]."""


@dataclass(frozen=True, eq=False)
class GradedReward:
    """Rewards every pixel of an action by the quality of the whole.

    Which pixels the number is owed to, it does not say. `DensePPO` with `baseline="greedy"` gives it to those in which
    the action differs from the argmax: the advantage there is the quality of the action minus that of the argmax, and 0
    elsewhere. With spatially correlated exploration those are few pieces of contour, so that few hundred actions do
    what pixel by pixel would take very many (REINFORCE with the greedy action as baseline: Rennie et al., CVPR 2017).

    Attributes:
        quality: Says how good an action is.
    """

    quality: MaskQuality

    def rewards(self, images: Tensor, actions: Tensor, rows: Sequence[int]) -> Tensor:
        """Reward maps `(B, *S)`, each of one value in [0, 1].

        Args:
            images: `(B, C, *S)`; not looked at.
            actions: `(B, *S)` int64.
            rows: Of the images in the environment.

        Raises:
            ValueError: A quality is not in [0, 1].
        """
        found = [self._of(action, row) for action, row in zip(actions.detach().cpu(), rows, strict=True)]
        values = torch.tensor(found, dtype=images.dtype, device=images.device)
        return values.view(-1, *[1] * (actions.ndim - 1)).expand(actions.shape).clone()

    def _of(self, action: Tensor, row: int) -> float:
        value = float(self.quality(action, row))
        # Also where it is not a number.
        if not 0 <= value <= 1:
            raise ValueError(f"the quality of the action on row {row} is {value}; it must lie in [0, 1]")
        return value
