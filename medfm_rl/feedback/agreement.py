"""How far reviewers of the same images agree, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import SimpleITK as sitk

from medfm_rl.choices import ConsensusMethod
from medfm_rl.feedback.entries import CorrectedMask, Feedback, Verdict
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.masks import Mask
from medfm_rl.feedback.store import FeedbackStore
from medfm_rl.metrics.overlap import dice
from medfm_rl.structures import pixels_of
from medfm_rl.types import LabelMap

_MOST_ITERATIONS = 100
"""STAPLE converges within tens."""


@dataclass(frozen=True)
class PairAgreement:
    """Two masks of an image.

    Attributes:
        case: The image.
        reviewers: Whose masks; `consensus` stands for that of all.
        dice: By structure, in [0, 1]; 1 where neither mask has it.
    """

    case: str
    reviewers: tuple[str, str]
    dice: Mapping[str, float]


@dataclass(frozen=True)
class ExpertMask:
    """A mask that a reviewer holds for right as a whole.

    Attributes:
        sha256: Its hash in the store.
        drawn: Whether the reviewer corrected it; else it was accepted as it was.
    """

    sha256: str
    drawn: bool


def consensus(masks: Sequence[Mask], method: ConsensusMethod = "staple") -> Mask:
    """One mask of several of the same image.

    `staple` weighs reviewers by how well they agree with all (Warfield, Zou and Wells, IEEE TMI 23(7), 2004; for
    several labels Rohlfing, Russakoff and Maurer, IPMI 2003); `majority` counts them alike. A pixel that stays
    undecided is background: of two reviewers, `majority` keeps what both marked.

    Raises:
        FeedbackError: There is none, or they are of different sizes or structures.
    """
    if not masks:
        raise FeedbackError("a consensus needs at least one mask")
    first = masks[0]
    for mask in masks[1:]:
        _require_alike(first, mask)
    if len({mask.sha256 for mask in masks}) == 1:
        return first
    images = [sitk.GetImageFromArray(mask.labels) for mask in masks]
    if method == "staple":
        staple = sitk.MultiLabelSTAPLEImageFilter()
        staple.SetLabelForUndecidedPixels(0)
        staple.SetMaximumNumberOfIterations(_MOST_ITERATIONS)
        found = staple.Execute(images)
    else:
        found = sitk.LabelVoting(images, 0)
    labels = sitk.GetArrayFromImage(found).astype(np.uint8)
    return Mask.of(labels, first.names, first.geometry)


def expert_masks(entries: Sequence[Feedback]) -> dict[str, dict[str, ExpertMask]]:
    """What reviewers hold for right as a whole: by image, the mask of each reviewer.

    That is their corrected mask, or one that they accepted as a whole; the later of the two.

    Args:
        entries: Those in force, as `FeedbackStore.entries` orders them.
    """
    found: dict[str, dict[str, ExpertMask]] = {}
    for entry in entries:
        if isinstance(entry, CorrectedMask) or (isinstance(entry, Verdict) and entry.accepts_whole):
            assert entry.image_sha256 is not None
            mask = ExpertMask(entry.mask_sha256, isinstance(entry, CorrectedMask))
            found.setdefault(entry.image_sha256, {})[entry.reviewer] = mask
    return found


def agreement(store: FeedbackStore, entries: Sequence[Feedback], method: ConsensusMethod) -> list[PairAgreement]:
    """Dice of each two reviewers of an image, and of each with the consensus where there are three or more.

    Masks of different structures are compared in those that they share, and make no consensus.

    Args:
        store: Where the masks are.
        entries: Those in force.
        method: How a consensus is made.

    Raises:
        FeedbackError: A mask is damaged.
    """
    cases = {entry.image_sha256: entry.case for entry in entries if entry.case is not None}
    pairs: list[PairAgreement] = []
    for image, by_reviewer in expert_masks(entries).items():
        masks = {reviewer: store.mask(expert.sha256) for reviewer, expert in sorted(by_reviewer.items())}
        case = cases[image]
        for one, other in combinations(masks, 2):
            pairs.append(_compare(case, one, masks[one], other, masks[other]))
        alike = len({mask.names for mask in masks.values()}) == 1
        if len(masks) > 2 and alike:
            together = consensus(list(masks.values()), method)
            pairs += [_compare(case, reviewer, mask, "consensus", together) for reviewer, mask in masks.items()]
    return pairs


def _compare(case: str, one: str, first: Mask, other: str, second: Mask) -> PairAgreement:
    shared = [name for name in first.schema.structures if name in second.schema.structures]
    found = {name: float(dice(_only(first, name), _only(second, name), ((1,),))[0]) for name in shared}
    return PairAgreement(case, (one, other), found)


def _only(mask: Mask, name: str) -> LabelMap:
    """1 where the mask has that structure, else 0."""
    return pixels_of(mask.labels, mask.schema.classes_of(name)).astype(np.uint8)


def _require_alike(first: Mask, second: Mask) -> None:
    if first.shape != second.shape or first.names != second.names:
        raise FeedbackError(
            f"masks {first.sha256} and {second.sha256}: are of sizes {first.shape} and {second.shape}, with "
            f"{', '.join(first.names[1:])} and {', '.join(second.names[1:])}; only masks of one image with the same "
            "structures can be compared"
        )
