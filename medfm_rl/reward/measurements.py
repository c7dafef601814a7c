"""Values of reports as rewards: computed from a mask, exact, and not learned.

A report says how large a structure is and not where it ends. What it teaches of a pixel is a direction: where the mask
of an image is too small for the reported value, each pixel that the structure gains is right as far as the report can
tell, and each that it loses is wrong. That is the difference reward of Wolpert and Tumer (Advances in Complex Systems
4(2-3), 2001) to first order: what the reward of the whole would lose without this decision.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
_LEAST_REMAINING: Final = 0.01
"""Of the ED volume: no ventricle empties itself."""


class Goal(ABC):
    """What a report says of one structure in one image.

    Attributes:
        classes: Class indices of the structure.
    """

    classes: tuple[int, ...]

    @abstractmethod
    def shortfall(self, mask: Tensor) -> float:
        """How much too small the structure is in an action `(*S)`, in uncertainties; negative where too large."""


@dataclass(frozen=True, eq=False)
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


@dataclass(frozen=True, eq=False)
class FractionGoal(Goal):
    """The ejection fraction of a patient, seen from one of two frames of a view.

    The other frame counts with a mask that stays: by the one that was drawn last, what a mask is worth would depend on
    what was drawn before. Each frame therefore goes half of the way (`fraction_goals`). Fractions are ratios: a lost
    pixel size cancels.

    Attributes:
        classes: Class indices of the ventricle.
        other: The discs of the other frame.
        is_diastole: This frame is end diastole, and the other end systole.
        fraction: To be reached beside the other frame as it is, in percent.
        uncertainty: Its standard deviation, in percentage points.
    """

    classes: tuple[int, ...]
    other: Discs
    is_diastole: bool
    fraction: float
    uncertainty: float

    def shortfall(self, mask: Tensor) -> float:
        """How much too small the ventricle of this frame is; 0 where there is none, of which a ratio says nothing."""
        own = measure_discs(pixels_in(mask, self.classes).numpy())
        if own is None:
            return 0.0
        ed, es = (own, self.other) if self.is_diastole else (self.other, own)
        missing = (self.fraction - ejection_fraction([ed], [es])) / self.uncertainty
        return missing if self.is_diastole else -missing


def fraction_goals(
    masks: Mapping[str, Tensor], classes: tuple[int, ...], fraction: float, uncertainty: float | None
) -> dict[str, FractionGoal]:
    """The goals of the two frames of a view; none where one of them has no ventricle.

    The frame with the larger ventricle is end diastole. With r = 1 - EF, what remains of the ED volume, r of the masks
    and r* of the report, each frame is to come to sqrt(r r*) beside the other one's mask: the ED volume is then V(ES) /
    sqrt(r r*) and the ES volume V(ED) sqrt(r r*), and of the two together remains r r* V(ED) / V(ES) = r*.

    Args:
        masks: By name of the frame, its action `(*S)` before the policy learns from the report.
        classes: Class indices of the ventricle.
        fraction: Reported ejection fraction, in percent.
        uncertainty: In percentage points; 5 where None.

    Raises:
        ValueError: There are not two frames.
    """
    if len(masks) != 2:
        raise ValueError(f"an ejection fraction needs two frames, got {len(masks)}")
    found = {name: measure_discs(pixels_in(mask, classes).numpy()) for name, mask in masks.items()}
    discs = {name: own for name, own in found.items() if own is not None}
    if len(discs) < 2:
        return {}
    diastole, systole = sorted(discs, key=lambda name: discs[name].size, reverse=True)
    now = ejection_fraction([discs[diastole]], [discs[systole]])
    remaining, reported = (max(1 - percent / 100, _LEAST_REMAINING) for percent in (now, fraction))
    half_way = 100 * (1 - math.sqrt(remaining * reported))
    # What is half of the way off by a point is off by two in the end.
    own_uncertainty = (USUAL_UNCERTAINTY_OF_EF if uncertainty is None else uncertainty) / 2
    return {
        diastole: FractionGoal(classes, discs[systole], True, half_way, own_uncertainty),
        systole: FractionGoal(classes, discs[diastole], False, half_way, own_uncertainty),
    }


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
