"""What is known of a mask without ground truth: the reward map, the rules, and the numbers made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medfm_rl.metrics.validity import RuleResult
from medfm_rl.reward.score import dilate, memberships, region_means, structure_regions

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
    """What the reward networks and the rules say of one mask, on the grid of the networks.

    Attributes:
        action: `(*S')` uint8, class indices.
        mean_map: `(*S')` in [0, 1], mean of the maps of the reward networks.
        spread: `(*S')`, disagreement of the reward networks.
        confidence: `(*S')` in [0, 1], probability that the segmenter itself gives to the class that the action has at
            each pixel, whatever made the action; None where the segmenter cannot be asked.
        embedding: `(F,)`, what the networks saw.
        appearance: `(A,)`, what the image looks like.
        rules: What the anatomy rules measured, on the case's own grid.
        num_classes: K.
        own_estimate: `(K - 1,)`, what the segmenter itself thinks of each structure of the mask
            (`SegmenterAdapter.own_estimate`); None where it has no opinion.
    """

    action: Tensor
    mean_map: Tensor
    spread: Tensor
    confidence: Tensor | None
    embedding: npt.NDArray[np.float64]
    appearance: npt.NDArray[np.float64]
    rules: tuple[RuleResult, ...]
    num_classes: int
    own_estimate: Tensor | None = None

    def features(self, structures: Sequence[str], probability: Tensor) -> list[dict[str, float]]:
        """The numbers of `FEATURES`, and `OWN_ESTIMATE` where there is one, for each structure, class index 1 first.

        Args:
            structures: Names without the background.
            probability: `(*S')` in [0, 1], that each pixel is right (`PixelCalibration.probability`).
        """
        action, maps, spread = self.action[None], probability[None].float(), self.spread[None].float()
        one_hot = memberships(action, self.num_classes)
        expected = expected_dice(maps, action, self.num_classes)[0]
        regions = structure_regions(action, self.num_classes)
        mean, disagreement, low = (region_means(values, regions)[0] for values in (maps, spread, (maps < 0.5).float()))
        contour = region_means(maps, (dilate(one_hot, _CONTOUR) & dilate(~one_hot, _CONTOUR))[:, 1:])[0]
        size = one_hot[0].flatten(1).float().mean(dim=1).sqrt()
        failed = [rule for rule in self.rules if not rule.passed]
        rows = []
        for index, name in enumerate(structures):
            rows.append(
                {
                    "expected_dice": float(expected[index]),
                    "mean_reward": float(mean[index]),
                    "contour_reward": float(contour[index]),
                    "low_reward": float(low[index]),
                    "spread": float(disagreement[index]),
                    "size": float(size[index + 1]),
                    "rules_failed": float(sum(name in _names(rule) for rule in failed)),
                    "all_rules_failed": float(len(failed)),
                    "case_expected_dice": float(expected.mean()),
                }
            )
            if self.own_estimate is not None:
                rows[-1][OWN_ESTIMATE] = float(self.own_estimate[index])
        return rows


def expected_dice(maps: Tensor, actions: Tensor, num_classes: int) -> Tensor:
    """Dice of each structure that the reward map lets expect.

    With p(x) the probability that pixel x is right and A the pixels of structure k in the action, the overlap with
    the truth is expected to be I, the sum of p over A, and the size of the truth I + M, where M is the sum of (1 - p)
    s over the pixels outside A. s(x) is the probability that k is what a wrong pixel x should have been: the classes
    other than its own that the action has within 5 % of the image's longest side share it equally, and k has none
    where it is not one of them. Then

        E Dice = 2 I / (size of A + I + M),

    the ratio of the expectations, which is the expectation of the ratio up to terms of the order of its variance.

    Args:
        maps: Reward maps `(B, *S)` in [0, 1].
        actions: `(B, *S)`, class indices.
        num_classes: K.

    Returns:
        `(B, K - 1)` in [0, 1]; 0 for a structure that the action lacks.
    """
    inside = memberships(actions, num_classes)
    reach = max(1, round(_REACH * max(actions.shape[1:])))
    near = (dilate(inside, reach) & ~inside).to(maps)
    doubt = (1 - maps) / near.sum(dim=1).clamp_min(1)
    one_hot = inside.to(maps)
    right = (one_hot * maps[:, None]).flatten(2).sum(dim=2)
    missed = (near * doubt[:, None]).flatten(2).sum(dim=2)
    area = one_hot.flatten(2).sum(dim=2)
    expected = 2 * right / (area + right + missed).clamp_min(1e-8)
    return torch.where(area > 0, expected, 0.0)[:, 1:]


def confidence_in(logits: Tensor, action: Tensor) -> Tensor:
    """Probability that logits `(K, *S')` give to the class of an action `(*S')` at each pixel, `(*S')` float32."""
    probabilities = logits.float().softmax(dim=0)
    return probabilities.gather(0, action.long()[None])[0]


def soft_dice(probabilities: Tensor, action: Tensor) -> Tensor:
    """Dice of each structure of a mask with probabilities of the segmenter.

    For the pixels A of a structure in the mask and its probabilities p it is 2 (sum of p over A) / (size of A + sum of
    p): Borges, Pacheco and Silva, Soft Dice Confidence, arXiv 2402.10665, for the structures one by one.

    Args:
        probabilities: `(K, *S')`.
        action: `(*S')`, class indices.

    Returns:
        `(K - 1,)` in [0, 1].
    """
    inside = memberships(action[None], len(probabilities))[0]
    shared = (probabilities * inside).flatten(1).sum(dim=1)
    sizes = inside.flatten(1).sum(dim=1) + probabilities.flatten(1).sum(dim=1)
    return (2 * shared / sizes.clamp_min(1e-8))[1:]


def log_odds(probabilities: Tensor) -> Tensor:
    """log(p / (1 - p)), finite also where a network is certain."""
    return torch.logit(probabilities.float().clamp(_LEAST_DOUBT, 1 - _LEAST_DOUBT))


def _names(rule: RuleResult) -> set[str]:
    return set(rule.structure.split("+")) | set((rule.other or "").split("+"))
