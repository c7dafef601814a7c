"""The evidence on a mask without ground truth: the reward map, the rules, and the numbers made from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medfm_rl.anatomy.profiles import RuleResult
from medfm_rl.reward.score import MARGIN, class_masks, dilate, memberships
from medfm_rl.structures import Structures, bounding_box, count_classes, pixels_of

FEATURES = (
    "expected_dice",
    "mean_reward",
    "contour_reward",
    "low_reward",
    "spread",
    "size",
    "rules_failed",
    "all_rules_failed",
    "case_expected_dice",
)
"""Names of the numbers that describe a structure of a mask, in the order of the regression."""
OWN_ESTIMATE = "own_estimate"
"""Name of one number more, where the segmenter has an opinion of its own of a mask."""
_CONTOUR = 2
_REACH = 0.05
_LEAST_DOUBT = 1e-4


@dataclass(frozen=True, eq=False)
class Evidence:
    """The evidence of reward networks and rules on one mask, on the grid of the networks.

    Attributes:
        action: `(*S')` uint8, class indices.
        mean_map: `(*S')` in [0, 1], mean of the maps of the reward networks.
        spread: `(*S')`, disagreement of the reward networks.
        confidence: `(*S')` in [0, 1], probability that the segmenter itself gives to the class that the action has at
            each pixel, whatever made the action; None where the segmenter cannot be asked.
        embedding: `(F,)`, what the networks saw.
        appearance: `(A,)`, what the image looks like.
        rules: What the anatomy rules measured, on the case's own grid.
        structures: Class indices of each structure.
        own_estimate: `(R,)`, what the segmenter itself thinks of each structure of the mask
            (`SegmenterAdapter.own_estimate`); None where it has no opinion.
        given: `(*S')` in [0, 1], probability that whatever made the mask gave to the class at each pixel, where that
            was given along with it; None where it was not.
    """

    action: Tensor
    mean_map: Tensor
    spread: Tensor
    confidence: Tensor | None
    embedding: npt.NDArray[np.float64]
    appearance: npt.NDArray[np.float64]
    rules: tuple[RuleResult, ...]
    structures: Structures
    own_estimate: Tensor | None = None
    given: Tensor | None = None

    @property
    def confidences(self) -> tuple[Tensor | None, Tensor | None]:
        """What the segmenter of the run says, and what the maker of the mask said, in the order of the calibration."""
        return self.confidence, self.given

    def features(self, names: Sequence[str], probability: Tensor) -> list[dict[str, float]]:
        """The numbers of `FEATURES`, and `OWN_ESTIMATE` where there is one, for each structure.

        Args:
            names: Names of the structures.
            probability: `(*S')` in [0, 1], that each pixel is right (`PixelCalibration.probability`).
        """
        probability, spread = probability.float(), self.spread.float()
        expected = expected_dice(probability[None], self.action[None], self.structures)[0]
        boxes = _boxes(self.action, self.structures)
        failed = [rule for rule in self.rules if not rule.passed]
        rows = []
        for index, (name, classes) in enumerate(zip(names, self.structures, strict=True)):
            # One structure at a time and what lies around it: volumes of many would not fit into the memory at once.
            box = boxes[index]
            mask = class_masks(self.action[box][None], classes).any(dim=1, keepdim=True)
            region = dilate(mask, MARGIN)[0, 0]
            contour = (dilate(mask, _CONTOUR) & dilate(~mask, _CONTOUR))[0, 0]
            rewards = probability[box]
            rows.append(
                {
                    "expected_dice": float(expected[index]),
                    "mean_reward": _mean_over(rewards, region),
                    "contour_reward": _mean_over(rewards, contour),
                    "low_reward": _mean_over((rewards < 0.5).float(), region),
                    "spread": _mean_over(spread[box], region),
                    "size": math.sqrt(int(mask.sum()) / self.action.numel()),
                    "rules_failed": float(sum(name in _names(rule) for rule in failed)),
                    "all_rules_failed": float(len(failed)),
                    "case_expected_dice": float(expected.mean()),
                }
            )
            if self.own_estimate is not None:
                rows[-1][OWN_ESTIMATE] = float(self.own_estimate[index])
        return rows


def expected_dice(maps: Tensor, actions: Tensor, structures: Structures) -> Tensor:
    """Dice of each structure to be expected by the reward map.

    With p(x) the probability that pixel x is right and A the pixels of structure k in the action, the overlap with
    the truth is expected to be I, the sum of p over A, and the size of the truth I + M, where M is the sum of (1 - p)
    s over the pixels outside A. s(x) is the probability that k is what a wrong pixel x should have been: the classes
    other than its own that the action has within 5 % of the image's longest side share it equally, and k has none
    where it is not one of them. Where structures overlap, k has the share of all its classes, and a wrong pixel of A
    may still be of k: I has (1 - p) s of such pixels too. Then

        E Dice = 2 I / (size of A + I + M),

    the ratio of the expectations, which is the expectation of the ratio up to terms of the order of its variance.

    Args:
        maps: Reward maps `(B, *S)` in [0, 1].
        actions: `(B, *S)`, class indices.
        structures: Class indices of each structure.

    Returns:
        `(B, R)` in [0, 1]; 0 for a structure that the action lacks.
    """
    reach = max(1, round(_REACH * max(actions.shape[1:])))
    inside = class_masks(actions, range(count_classes(structures)))
    near = dilate(inside, reach) & ~inside
    doubt = (1 - maps) / near.sum(dim=1).clamp_min(1)
    rights, misses, areas = [], [], []
    # One structure at a time: maps of all of them would not fit into the memory at once.
    for classes in structures:
        own, instead = _of_any(inside, classes).bool(), doubt * _of_any(near, classes)
        right, missed, area = (
            (values * masks).flatten(1).sum(dim=1)
            for values, masks in ((maps, own), (instead, ~own), (torch.ones_like(maps), own))
        )
        rights.append(right + (instead * own).flatten(1).sum(dim=1) if len(classes) > 1 else right)
        misses.append(missed)
        areas.append(area)
    right, missed, area = (torch.stack(values, dim=1) for values in (rights, misses, areas))
    expected = 2 * right / (area + right + missed).clamp_min(1e-8)
    return torch.where(area > 0, expected, 0.0)


def _of_any(masks: Tensor, classes: Sequence[int]) -> Tensor:
    """How many of the masks `(B, K, *S)` of some classes each pixel is in, `(B, *S)`."""
    return masks[:, classes[0]] if len(classes) == 1 else masks[:, list(classes)].sum(dim=1)


def confidence_in(logits: Tensor, action: Tensor) -> Tensor:
    """Probability that logits `(K, *S')` give to the class of an action `(*S')` at each pixel, `(*S')` float32."""
    probabilities = logits.float().softmax(dim=0)
    return probabilities.gather(0, action.long()[None])[0]


def soft_dice(probabilities: Tensor, action: Tensor, structures: Structures) -> Tensor:
    """Dice of each structure of a mask with probabilities of the segmenter.

    For the pixels A of a structure in the mask and its probabilities p it is 2 (sum of p over A) / (size of A + sum of
    p): Borges, Pacheco and Silva, Soft Dice Confidence, arXiv 2402.10665, for the structures one by one.

    Args:
        probabilities: `(K, *S')`.
        action: `(*S')`, class indices.
        structures: Class indices of each structure.

    Returns:
        `(R,)` in [0, 1].
    """
    # The background is taken along and left out at the end: how sums are rounded depends on how many there are.
    parts = ((0,), *structures)
    if any(len(classes) > 1 for classes in parts):
        probabilities = torch.stack([probabilities[list(classes)].sum(dim=0) for classes in parts])
    inside = memberships(action[None], parts)[0]
    shared = (probabilities * inside).flatten(1).sum(dim=1)
    sizes = inside.flatten(1).sum(dim=1) + probabilities.flatten(1).sum(dim=1)
    return (2 * shared / sizes.clamp_min(1e-8))[1:]


def log_odds(probabilities: Tensor) -> Tensor:
    """log(p / (1 - p)), finite also where a network is certain."""
    return torch.logit(probabilities.float().clamp(_LEAST_DOUBT, 1 - _LEAST_DOUBT))


def _boxes(action: Tensor, structures: Structures) -> list[tuple[slice, ...]]:
    """The box of each structure of an action `(*S)` and of what its numbers look at around it; all of one not there."""
    labels, everything = action.cpu().numpy(), (slice(None),) * action.ndim
    return [bounding_box(pixels_of(labels, classes), MARGIN + _CONTOUR) or everything for classes in structures]


def _mean_over(values: Tensor, region: Tensor) -> float:
    """Mean of values `(*S)` over a region `(*S)` bool; 0 over an empty one."""
    # Several times as fast as indexing.
    return float((values * region).sum() / region.sum().clamp_min(1))


def _names(rule: RuleResult) -> set[str]:
    return set(rule.structure.split("+")) | set((rule.other or "").split("+"))
