"""From a case and a mask to the evidence on which the mask is assessed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medfm_rl.adapters import CaseGrid, Sample, SegmenterAdapter
from medfm_rl.anatomy.profiles import Anatomy, RuleResult
from medfm_rl.errors import DataError
from medfm_rl.quality.appearance import appearance
from medfm_rl.quality.evidence import Evidence, confidence_in
from medfm_rl.quality.reports import ViewFinding
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.types import Case, FloatArray, LabelMap, LabelSchema

_BATCH = 16
_MOST_PIXELS = 4_000_000
_LEVELS = tuple(float(level) for level in 1 / (1 + np.exp(-np.linspace(-2.5, 6.5, 15))))
"""Levels to which given probabilities are rounded, even in log-odds, and finer where a segmenter is certain."""
_BETWEEN = (_LEVELS[0] / 2, *((low + high) / 2 for low, high in itertools.pairwise(_LEVELS)), (1 + _LEVELS[-1]) / 2)


@dataclass(frozen=True, eq=False)
class Submission:
    """A mask that is ready to be assessed.

    Attributes:
        case: The image.
        labels: `(*S)` class indices on its grid.
        sample: The image on the grid of the networks.
        action: `(*S')` uint8, the mask on it.
        confidence: `(*S')`, as in `Evidence`.
        own_estimate: `(K - 1,)`, as in `Evidence`.
        rules: What each anatomy rule measured in the mask.
        view: What a classifier of views sees in the image, where there is one.
        biomedclip: `(512,)`, what BiomedCLIP sees in it, where it is asked.
        given: `(*S')`, as in `Evidence`.
    """

    case: Case
    labels: LabelMap
    sample: Sample
    action: Tensor
    confidence: Tensor | None
    own_estimate: Tensor | None
    rules: tuple[RuleResult, ...]
    view: ViewFinding | None = None
    biomedclip: npt.NDArray[np.float64] | None = None
    given: Tensor | None = None


def submit(
    grid: CaseGrid, anatomy: Anatomy, case: Case, labels: LabelMap, given: FloatArray | None = None
) -> Submission:
    """Applies the rules to a mask and brings image and mask to the grid of the networks.

    Args:
        grid: That grid.
        anatomy: The rules.
        case: The image.
        labels: Class indices `(*S)` on the image's grid.
        given: `(*S)` in [0, 1], probability that the maker of the mask gave to the class at each pixel, where it said.

    Raises:
        DataError: The mask does not lie on the grid of the image, or has classes that the rules do not know; or the
            image is not of the kind that the segmenter takes, or has values that are not finite.
    """
    if labels.shape != case.shape:
        raise DataError(
            f"case {case.case_id}: the mask has size {labels.shape}, its image {case.shape}; they must be equal"
        )
    _require_finite(case)
    sample = grid.preprocess(case)
    found = prepare(grid, anatomy, case, labels, sample, grid.opinion(sample))
    return found if given is None else replace(found, given=_on_grid(grid, given, sample))


def _on_grid(grid: CaseGrid, confidence: FloatArray, sample: Sample) -> Tensor:
    """Probabilities `(*S)` on the grid of the networks, `(*S')`, to the nearest of sixteen levels.

    Tools know how to bring masks to their grid, and nothing else. So they bring, level by level, the mask of the pixels
    that reach it; how many are reached is the level of a pixel, whatever way of resampling a tool has.
    """
    reached = sum(grid.preprocess_labels((confidence >= level).astype(np.uint8), sample).long() for level in _LEVELS)
    assert isinstance(reached, Tensor)
    return torch.tensor(_BETWEEN, dtype=torch.float32)[reached]


def segment(segmenter: SegmenterAdapter, anatomy: Anatomy, case: Case, in_clip: LabelMap | None = None) -> Submission:
    """A mask of the segmenter, ready to be assessed: one inference serves both.

    Args:
        segmenter: Makes the mask.
        anatomy: The rules.
        case: The image.
        in_clip: The mask that it made of a frame with those of the whole clip, class indices `(H, W)`; None for any
            other case.

    Raises:
        DataError: The image is not of the kind that the segmenter takes, or has values that are not finite.
    """
    _require_finite(case)
    if in_clip is not None:
        sample = segmenter.preprocess_frame(case, in_clip)
        return prepare(segmenter, anatomy, case, in_clip, sample, segmenter.opinion(sample))
    sample = segmenter.preprocess(case)
    logits = segmenter.predict_logits(sample)
    known = None if segmenter.prompted else logits
    return prepare(segmenter, anatomy, case, segmenter.restore(logits, sample), sample, known)


def prepare(
    grid: CaseGrid,
    anatomy: Anatomy,
    case: Case,
    labels: LabelMap,
    sample: Sample,
    logits: Tensor | None,
) -> Submission:
    """As `submit`, for a sample that is there already.

    Args:
        grid: The grid of the networks.
        anatomy: The rules.
        case: The image.
        labels: Class indices `(*S)` on its grid.
        sample: The image on the grid of the networks.
        logits: `(K, *S')` of the segmenter, whatever made the mask; None where it cannot be asked.

    Raises:
        DataError: The mask has classes that the rules do not know, or they have limits in mm and the image no spacing.
    """
    try:
        rules = anatomy.check(labels, case.geometry.array_spacing)
    except (ValueError, DataError) as error:
        raise DataError(f"case {case.case_id}: {error}") from error
    action = grid.preprocess_labels(labels, sample)
    confidence = None if logits is None else confidence_in(logits, action)
    return Submission(case, labels, sample, action, confidence, grid.own_estimate(sample.image, action), rules)


def _require_finite(case: Case) -> None:
    """Refuses an image that says nothing: every distance from it is NaN, which no test finds unlikely."""
    if not np.isfinite(case.image).all():
        raise DataError(f"case {case.case_id}: the image has values that are not finite; mend or leave it out")


def is_a_batch(submissions: Sequence[Submission]) -> bool:
    """Whether so many masks wait that they are assessed before another image comes into the memory."""
    return len(submissions) >= _BATCH or sum(item.labels.size for item in submissions) >= _MOST_PIXELS


def cases_at_once(pixels: int) -> int:
    """How many masks of so many pixels each are assessed together."""
    return max(1, min(_BATCH, -(-_MOST_PIXELS // max(1, pixels))))


def collect_evidence(
    submissions: Sequence[Submission],
    reward: RewardEnsemble,
    patch_size: tuple[int, ...],
    schema: LabelSchema,
    device: torch.device,
) -> list[Evidence]:
    """The evidence of reward networks and rules on masks, in their order.

    Args:
        submissions: The masks.
        reward: The networks, on `device`.
        patch_size: Patch size of the segmenter.
        schema: Structures of the masks.
        device: Where the networks are.
    """
    of_shape: dict[tuple[int, ...], list[int]] = {}
    for row, item in enumerate(submissions):
        of_shape.setdefault(tuple(item.sample.image.shape), []).append(row)
    found: dict[int, Evidence] = {}
    batches = [rows[start : start + _BATCH] for rows in of_shape.values() for start in range(0, len(rows), _BATCH)]
    for rows in batches:
        images = torch.stack([submissions[row].sample.image for row in rows]).to(device)
        actions = torch.stack([submissions[row].action for row in rows])
        seen = reward.examine(images, actions.to(device), patch_size)
        maps, spread, features = seen.mean.cpu(), seen.spread.cpu(), seen.features.cpu().double().numpy()
        looks = appearance(images[:, : reward.in_channels]).numpy()
        for place, row in enumerate(rows):
            item = submissions[row]
            found[row] = Evidence(
                actions[place],
                maps[place],
                spread[place],
                item.confidence,
                features[place],
                looks[place],
                item.rules,
                schema.classes,
                item.own_estimate,
                item.given,
            )
    return [found[row] for row in range(len(submissions))]
