"""What reviewers say of whole masks, as a loss on a reward network beside that of its pixels.

The score of a mask is the log-odds that a pixel in and around its structures is right, by the network's own map. A
*link* says how likely a reviewer is to say what he said of a mask of that score: a grade by proportional odds
(McCullagh, J. R. Stat. Soc. B 42(2), 1980), a verdict by one more threshold on the same scale, a preference by the
difference of two scores (Bradley and Terry, Biometrika 39, 1952; for learned rewards Christiano et al., NeurIPS 2017).
Its thresholds and slopes are learned with the network: how strict reviewers are is their affair. So judgements teach in
which order masks stand, and the level, what a probability of .9 means, stays with the pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.reward.score import structure_regions
from medfm_rl.structures import Structures

BEST_GRADE: Final = 4
"""Grades go from 0 to this one."""
_LEAST: Final = 1e-12
# Where the thresholds lie before anything is known: at mean probabilities of .60, .75, .86 and .92 that a pixel in and
# around a structure is right, and that of verdicts at .86.
_FIRST_THRESHOLD, _GAP, _VERDICT_THRESHOLD = 0.4, 0.7, 1.8
_SLOPE = 2.0
_PRIOR_SPREAD = 2.0


@dataclass(frozen=True, eq=False)
class JudgedMask:
    """A mask that was judged, on the grid of the network.

    Attributes:
        images: `(T, C, *S)`, the tiles of the image; one where the network sees it whole.
        actions: `(T, *S)` uint8, the mask in each.
        patient_id: Every split is made by it.
    """

    images: Tensor
    actions: Tensor
    patient_id: str


@dataclass(frozen=True)
class Judgement:
    """A verdict or grade.

    Attributes:
        mask: Its place among the judged masks.
        structure: Its place among the structures, counted from 1; None for the mask as a whole.
        scale: What the value is one of.
        value: In [0, 1]: 0 or 1 for a verdict, a quarter of the grade for a grade.
        trust: Weight in (0, 1].
    """

    mask: int
    structure: int | None
    scale: Literal["verdict", "grade"]
    value: float
    trust: float = 1.0

    def __post_init__(self) -> None:
        steps = 1 if self.scale == "verdict" else BEST_GRADE
        if self.value * steps not in range(steps + 1) or not 0 < self.trust <= 1:
            raise ValueError(f"no {self.scale} has the value {self.value} and the trust {self.trust}")


@dataclass(frozen=True)
class Comparison:
    """A preference between two masks of an image.

    Attributes:
        better: Place of the better among the judged masks.
        worse: Of the other.
        structure: Its place among the structures, counted from 1; None for the masks as a whole.
        trust: Weight in (0, 1].
    """

    better: int
    worse: int
    structure: int | None
    trust: float = 1.0

    def __post_init__(self) -> None:
        if self.better == self.worse or not 0 < self.trust <= 1:
            raise ValueError(f"no comparison of mask {self.better} with {self.worse} has the trust {self.trust}")


@dataclass(frozen=True, eq=False)
class Judgements:
    """Judged masks, and what was said of them.

    Attributes:
        masks: The masks.
        said: Verdicts, grades and preferences.
        structures: Class indices of each structure.
        weight: Of all that in the loss of a reward network, beside its pixels.
    """

    masks: tuple[JudgedMask, ...]
    said: tuple[Judgement | Comparison, ...]
    structures: Structures
    weight: float

    def __len__(self) -> int:
        return len(self.said)

    @property
    def patients(self) -> set[str]:
        """Whose masks were judged."""
        return {self._patient(each) for each in self.said}

    def of_patients(self, patients: Collection[str]) -> Self:
        """What was said of masks of these patients."""
        said = tuple(each for each in self.said if self._patient(each) in patients)
        return type(self)(self.masks, said, self.structures, self.weight)

    def _patient(self, said: Judgement | Comparison) -> str:
        return self.masks[said.mask if isinstance(said, Judgement) else said.better].patient_id


@dataclass(frozen=True, eq=False)
class SplitJudgements:
    """What one reward network learns from, and what it is stopped on: other patients.

    Attributes:
        training: To learn from.
        validation: Of patients held out.
    """

    training: Judgements
    validation: Judgements

    @classmethod
    def hold_out(cls, judgements: Judgements, patients: Collection[str]) -> Self:
        """Holds out what was said of some patients."""
        return cls(
            judgements.of_patients(judgements.patients - set(patients)),
            judgements.of_patients(judgements.patients & set(patients)),
        )


def quality_logit(logits: Tensor, regions: Tensor) -> Tensor:
    """The log-odds that a pixel of the regions is right, on average; a number on the scale of the network's own.

    Where all pixels have the same logit z, it is z. Means of probabilities are taken by region, then over the regions,
    so that a large structure does not drown a small one; the logarithms are of right and wrong apart, for close to 0
    and 1 one of the two is lost in the other.

    Args:
        logits: `(T, *S)`, z of the tiles of a mask.
        regions: `(T, R, *S)`, 0 or 1; none is empty.

    Returns:
        Without axes.
    """
    flat = regions.to(logits).flatten(2)
    area = flat.sum(dim=(0, 2))
    right, wrong = (
        ((flat * torch.sigmoid(values).flatten(1)[:, None]).sum(dim=(0, 2)) / area).mean()
        for values in (logits, -logits)
    )
    return right.clamp_min(_LEAST).log() - wrong.clamp_min(_LEAST).log()


def judged_regions(actions: Tensor, structure: int | None, structures: Structures) -> Tensor:
    """Where a judgement of a mask looks: in and around the structure, or each that the mask has.

    Args:
        actions: `(T, *S)`, the mask in its tiles.
        structure: Its place among the structures, counted from 1; None for the mask as a whole.
        structures: Class indices of each structure.

    Returns:
        `(T, R, *S)`; the whole image where the mask lacks what was judged.
    """
    regions = _regions(actions, structure, structures)
    there = _is_there(regions)
    return regions[:, there] if bool(there.any()) else torch.ones_like(regions[:, :1])


def compared_regions(
    better: Tensor, worse: Tensor, structure: int | None, structures: Structures
) -> tuple[Tensor, Tensor]:
    """Where a preference looks in each of two masks `(T, *S)`.

    A structure that both have is looked at in the region that each has of it; one that a single mask has, in that of
    this one for both, so that a false island costs the mask that has it (as in `score.compared_scores`).

    Returns:
        `(T, R, *S)` for each; the whole image where neither has what was compared.
    """
    of_both = [_regions(actions, structure, structures) for actions in (better, worse)]
    has = [_is_there(regions) for regions in of_both]
    either = has[0] | has[1]
    if not bool(either.any()):
        everywhere = torch.ones_like(of_both[0][:, :1])
        return everywhere, everywhere
    axes = [1] * (of_both[0].ndim - 2)
    first, second = (
        torch.where(own_there.view(-1, *axes), own, other)[:, either]
        for own, other, own_there in zip(of_both, reversed(of_both), has, strict=True)
    )
    return first, second


def _regions(actions: Tensor, structure: int | None, structures: Structures) -> Tensor:
    regions = structure_regions(actions, structures)
    return regions if structure is None else regions[:, structure - 1 : structure]


def _is_there(regions: Tensor) -> Tensor:
    """By region, whether it has a pixel in any tile, `(R,)`."""
    return regions.flatten(2).amax(dim=(0, 2)) > 0


class JudgementLink(nn.Module):
    """How likely a reviewer is to say what he said, given the score of a mask. All reviewers share it.

    A grade is above k with probability sigmoid(a s - a t_k), where t_0 < t_1 < t_2 < t_3, and a mask is accepted with
    probability sigmoid(a s - a t). The first of two masks is preferred with probability sigmoid(b (s_1 - s_2)). Slopes
    are above 0: a better score is never a worse grade.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(_FIRST_THRESHOLD))
        self.gaps = nn.Parameter(_inverse_softplus(torch.full((BEST_GRADE - 1,), _GAP)))
        self.verdict = nn.Parameter(torch.tensor(_VERDICT_THRESHOLD))
        self.slope = nn.Parameter(_inverse_softplus(torch.tensor(_SLOPE)))
        self.sharpness = nn.Parameter(_inverse_softplus(torch.tensor(_SLOPE)))
        self._start = [value.detach().clone() for value in self.parameters()]

    @property
    def thresholds(self) -> Tensor:
        """Scores `(4,)` at which a grade above 0, 1, 2 and 3 is as likely as not."""
        return torch.cat([self.first[None], self.first + F.softplus(self.gaps).cumsum(dim=0)])

    def grade_loss(self, score: Tensor, grade: int) -> Tensor:
        """Negative log-likelihood of a grade of 0 to 4.

        P(g) = sigmoid(x) - sigmoid(y) with x and y at the thresholds below and above g, which is
        sigmoid(x) sigmoid(-y) (1 - exp(y - x)): exact also where both are close to 0 or 1.
        """
        slope, thresholds = F.softplus(self.slope), self.thresholds
        loss = torch.zeros_like(score)
        if grade > 0:
            loss = loss - F.logsigmoid(slope * (score - thresholds[grade - 1]))
        if grade < BEST_GRADE:
            loss = loss - F.logsigmoid(slope * (thresholds[grade] - score))
        if 0 < grade < BEST_GRADE:
            # Of the threshold's own gap: for scores that are far off, the difference of both would be rounded.
            loss = loss - torch.log(-torch.expm1(-slope * F.softplus(self.gaps[grade - 1])))
        return loss

    def verdict_loss(self, score: Tensor, accepted: bool) -> Tensor:
        """Negative log-likelihood of a verdict."""
        certainty = F.softplus(self.slope) * (score - self.verdict)
        return -F.logsigmoid(certainty if accepted else -certainty)

    def preference_loss(self, better: Tensor, worse: Tensor) -> Tensor:
        """Negative log-likelihood of a preference, from the scores of both masks."""
        return -F.logsigmoid(F.softplus(self.sharpness) * (better - worse))

    def loss(self, said: Judgement | Comparison, scores: Sequence[Tensor]) -> Tensor:
        """Negative log-likelihood of what was said, times the trust in it, from what `scores_of` gave."""
        return said.trust * self._of(said, scores)

    def mean_loss(self, said: Sequence[Judgement | Comparison], scores: Sequence[Sequence[Tensor]]) -> Tensor:
        """The mean of `loss`, with what was said alike taken together: hundreds cost hardly more than one."""
        alike: dict[tuple[str, float], list[int]] = {}
        for row, each in enumerate(said):
            what = ("preference", 1.0) if isinstance(each, Comparison) else (each.scale, each.value)
            alike.setdefault(what, []).append(row)
        parts = []
        for rows in alike.values():
            columns = [torch.stack(column) for column in zip(*(scores[row] for row in rows), strict=True)]
            trust = columns[0].new_tensor([said[row].trust for row in rows])
            parts.append((trust * self._of(said[rows[0]], columns)).sum())
        return torch.stack(parts).sum() / len(said)

    def _of(self, said: Judgement | Comparison, scores: Sequence[Tensor]) -> Tensor:
        """Without the trust; of one mask or of many about which the same was said."""
        if isinstance(said, Comparison):
            return self.preference_loss(*scores)
        (score,) = scores
        if said.scale == "verdict":
            return self.verdict_loss(score, said.value > 0.5)
        return self.grade_loss(score, round(said.value * BEST_GRADE))

    def fit(self, said: Sequence[Judgement | Comparison], scores: Sequence[Sequence[Tensor]]) -> None:
        """Makes what was said as likely as it can be with these scores, which stay as they are.

        Where the thresholds are at their best, the slopes of the loss in all scores sum to 0: what the network learns
        then is the order of masks and no level.
        """
        # In single precision the line search runs off, and overflows, where the loss is as good as flat.
        self.double()
        optimiser = torch.optim.LBFGS(self.parameters(), max_iter=50, line_search_fn="strong_wolfe")

        def evaluate() -> Tensor:
            optimiser.zero_grad()
            loss = self.mean_loss(said, scores) + self.penalty() / len(said)
            loss.backward()
            return loss

        optimiser.step(evaluate)
        self.float()

    def penalty(self) -> Tensor:
        """Minus the log-density of a wide normal prior around the values that it starts from: 0 there.

        Without it, a threshold runs off where all masks got the same grade.
        """
        moved = [
            (value - start.to(value)).square().sum()
            for value, start in zip(self.parameters(), self._start, strict=True)
        ]
        return torch.stack(moved).sum() / (2 * _PRIOR_SPREAD**2)


def _inverse_softplus(values: Tensor) -> Tensor:
    return torch.log(torch.expm1(values))


def scores_of(
    said: Judgement | Comparison, logits: Sequence[Tensor], actions: Sequence[Tensor], structures: Structures
) -> tuple[Tensor, ...]:
    """The score of the mask that was judged, or of the better and the worse.

    Args:
        said: Of one mask, or two.
        logits: z of the tiles `(T, *S)` of that mask, or of the better and the worse.
        actions: The masks in these tiles, likewise.
        structures: Class indices of each structure.
    """
    regions: tuple[Tensor, ...]
    if isinstance(said, Comparison):
        regions = compared_regions(actions[0], actions[1], said.structure, structures)
    else:
        regions = (judged_regions(actions[0], said.structure, structures),)
    return tuple(quality_logit(each, where) for each, where in zip(logits, regions, strict=True))
