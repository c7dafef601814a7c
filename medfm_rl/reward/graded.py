"""One number for a whole mask as a reward: a grade, or the anatomy rules that it meets. Computed, not learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.types import GridAxes

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


@dataclass(frozen=True, eq=False)
class RuleReward:
    """Rewards an action by the share of the anatomy rules that it meets, alone or beside another reward.

    Rules say what a mask of the anatomy cannot look like and not where a contour runs: alone, they are met as well by
    a mask of another patient. With a floor of reward networks they take part by `share`.

    Attributes:
        anatomy: The rules, without limits in mm: on the grid of a network the size of a pixel is not known.
        axes: By row of the environment, how the axes of the action run in the image, for rules name axes; a row that
            is missing is turned in no way.
        floor: Images `(B, C, *S)` and actions `(B, *S)` to maps in [0, 1]; None for the rules alone.
        share: Of the rules in the reward, in [0, 1], where there is a floor.
    """

    anatomy: Anatomy
    axes: Mapping[int, GridAxes]
    floor: Callable[[Tensor, Tensor], Tensor] | None = None
    share: float = 0.5

    def rewards(self, images: Tensor, actions: Tensor, rows: Sequence[int]) -> Tensor:
        """Reward maps `(B, *S)` in [0, 1] of actions `(B, *S)` on the images of these rows.

        Raises:
            DataError: A rule has a limit in mm.
        """
        met = GradedReward(self.share_met).rewards(images, actions, rows)
        if self.floor is None:
            return met
        return (1 - self.share) * self.floor(images, actions) + self.share * met

    def share_met(self, action: Tensor, row: int) -> float:
        """Share of the rules that an action `(*S)` meets, in [0, 1]; 1 where there are none.

        Raises:
            DataError: A rule has a limit in mm.
        """
        axes = self.axes.get(row, GridAxes.same(action.ndim))
        results = self.anatomy.check(axes.in_image(action.numpy()))
        return sum(result.passed for result in results) / len(results) if results else 1.0
