"""Values of reports as rewards: computed from a mask, exact, and not learned.

A report says how large a structure is and not where it ends. What it teaches of a pixel is a direction: where the mask
of an image is too small for the reported value, each pixel that the structure gains is right as far as the report can
tell, and each that it loses is wrong. That is the difference reward of Wolpert and Tumer (Advances in Complex Systems
4(2-3), 2001) to first order: what the reward of the whole would lose without this decision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medfm_rl.anatomy.discs import Discs, ejection_fraction, measure_discs
from medfm_rl.reward.score import pixels_in

USUAL_UNCERTAINTY_OF_EF: Final = 5.0
"""Percentage points; between readers (R. M. Lang et al., J. Am. Soc. Echocardiogr. 28(1), 2015, give 5 to 10)."""
USUAL_UNCERTAINTY: Final = 0.05
"""Of other values, as a share of them, where a report gives none."""


class Goal(ABC):
    """What a report says of one structure in one image.

    Attributes:
        classes: Class indices of the structure.
    """

    classes: tuple[int, ...]

    @abstractmethod
    def shortfall(self, mask: Tensor) -> float:
        """How much too small the structure is in an action `(*S)`, in uncertainties; negative where too large."""


@dataclass(eq=False)
class SizeGoal(Goal):
    """An area or volume.

    Attributes:
        classes: Class indices of the structure.
        pixels: The reported value in pixels of the network's grid.
        uncertainty: Its standard deviation, likewise.
    """

    classes: tuple[int, ...]
    pixels: float
    uncertainty: float

    def shortfall(self, mask: Tensor) -> float:
        """How much too small the structure is."""
        return (self.pixels - float(pixels_in(mask, self.classes).sum())) / self.uncertainty


@dataclass(eq=False)
class _Heart:
    """What is known of the ventricle of a patient in one view; the two goals of its frames share it.

    Attributes:
        fraction: The reported ejection fraction, in percent.
        uncertainty: Its standard deviation, in percentage points.
        frames: By name of the frame, the discs of the last mask seen.
    """

    fraction: float
    uncertainty: float
    frames: dict[str, Discs | None] = field(default_factory=dict)


@dataclass(eq=False)
class FractionGoal(Goal):
    """The ejection fraction of a patient, seen from one of two frames of a view.

    The frame with the larger ventricle is end diastole. The other frame counts with the last mask that was seen of it,
    so that the two need not be shown together. Fractions are ratios: a lost pixel size cancels.

    Attributes:
        classes: Class indices of the ventricle.
        frame: Name of this frame.
        heart: Shared with the other frame of the view.
    """

    classes: tuple[int, ...]
    frame: str
    heart: _Heart

    def shortfall(self, mask: Tensor) -> float:
        """How much too small the ventricle of this frame is; 0 until both frames have been seen with a ventricle."""
        frames = self.heart.frames
        frames[self.frame] = measure_discs(pixels_in(mask, self.classes).numpy())
        own, other = frames[self.frame], next((found for name, found in frames.items() if name != self.frame), None)
        if own is None or other is None:
            return 0.0
        is_diastole = own.size >= other.size
        ed, es = (own, other) if is_diastole else (other, own)
        missing = (self.heart.fraction - ejection_fraction([ed], [es])) / self.heart.uncertainty
        return missing if is_diastole else -missing


def fraction_goals(
    frames: Sequence[str], classes: tuple[int, ...], fraction: float, uncertainty: float | None
) -> dict[str, FractionGoal]:
    """The goals of the two frames of a view.

    Args:
        frames: Their names.
        classes: Class indices of the ventricle.
        fraction: Ejection fraction in percent.
        uncertainty: In percentage points; 5 where None.

    Raises:
        ValueError: There are not two frames.
    """
    if len(frames) != 2:
        raise ValueError(f"an ejection fraction needs two frames, got {len(frames)}")
    heart = _Heart(fraction, USUAL_UNCERTAINTY_OF_EF if uncertainty is None else uncertainty)
    return {name: FractionGoal(classes, name, heart) for name in frames}


@dataclass(frozen=True, eq=False)
class ReportedValues:
    """What the reports of patients say of actions: an `Informant` of the reward.

    For a pixel of the structure the report's word is 1/2 + h/2, for every other pixel 1/2, where h in [-1, 1] is the
    shortfall over two uncertainties, clipped. Within its uncertainty a report says little, and what it cannot know,
    where a contour runs, the floor of the reward says.

    Attributes:
        goals: By row of the environment, what reports say of the image.
        share: Of the reports in the reward, in [0, 1].
    """

    goals: Mapping[int, Sequence[Goal]]
    share: float = 0.5

    def says(self, action: Tensor, row: int) -> Tensor | None:
        """Its word on each pixel of an action `(*S)`; None for an image without a report."""
        goals = self.goals.get(row, ())
        return torch.stack([_word(goal, action) for goal in goals]).mean(dim=0) if goals else None


def _word(goal: Goal, mask: Tensor) -> Tensor:
    """What a report says of each pixel of an action `(*S)`, in [0, 1]."""
    direction = float(np.clip(goal.shortfall(mask) / 2, -1, 1))
    return torch.where(pixels_in(mask, goal.classes), 0.5 + direction / 2, 0.5)
