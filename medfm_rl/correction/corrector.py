"""The frame of every method of correction: it proposes, a verifier decides, the original is what remains."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.grid import Sample
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.correction.verifier import Verification, Verifier
from medfm_rl.networks import argmax_classes
from medfm_rl.seeding import torch_generator
from medfm_rl.types import Case, LabelMap

Stop = Literal["done", "steps", "patience", "time", "not finite"]
_STRENGTH = 0.5
# The verifier looks at as many views as the vote does, so that each gets half; what the method leaves is the
# verifier's, too.
_SHARE_OF_METHOD = 0.5


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A frame of a clip beside the one that is corrected.

    Attributes:
        case: The frame.
        labels: Its mask, class indices `(H, W)`; None where that is in doubt, and the segmenter speaks in its place.
        weight: What it counts; the frame itself counts 1.
    """

    case: Case
    labels: LabelMap | None
    weight: float


@dataclass(frozen=True, eq=False)
class Original:
    """The mask that is to be corrected.

    Attributes:
        labels: Class indices `(*S)` on the case's own grid.
        action: The same on the grid of the segmenter, `(*S')` uint8, on the CPU.
        own: Whether the segmenter has made it.
        neighbours: The frames beside it; none where the case is no frame of a clip.
    """

    labels: LabelMap
    action: Tensor
    own: bool
    neighbours: Sequence[Neighbour] = ()


@dataclass(frozen=True, eq=False)
class Proposal:
    """A mask that may be better than the original.

    Attributes:
        labels: Class indices `(*S)` on the case's own grid; those of the original where nothing better was found.
        gains: Reward of each step, or view, minus that of step 0, the original; empty for methods without steps.
        step: The step that was kept, or the view that counted most.
        stopped: Why there were no further steps; `time` where the deadline left something undone.
        views: Random views or appearances that were looked at; 0 for methods without them.
    """

    labels: LabelMap
    gains: tuple[float, ...] = ()
    step: int = 0
    stopped: Stop = "done"
    views: int = 0


@dataclass(frozen=True, eq=False)
class CorrectionResult:
    """The result for one case.

    Attributes:
        case_id: Name of the case.
        before: The original mask, class indices `(*S)` on the case's own grid.
        after: The proposal, accepted or not; equal to `before` where nothing better was found.
        accepted: Whether the proposal is to be used; where it is not, the case is to be referred to a person.
        reasons: Why, in words.
        gains: Reward of each step, or view, minus that of step 0.
        step: The step that was proposed, or the view that counted most; 0 is the original.
        stopped: Why there were no further steps; `time` where the time budget cut the method or the verifier.
        views: Random views or appearances that the method looked at.
        verification: What the verifier found; None where there was nothing to verify.
        seconds: Time it took, the segmentation included.
    """

    case_id: str
    before: LabelMap
    after: LabelMap
    accepted: bool
    reasons: tuple[str, ...]
    gains: tuple[float, ...]
    step: int
    stopped: Stop
    views: int
    verification: Verification | None
    seconds: float

    @property
    def mask(self) -> LabelMap:
        """The mask to go on with: the proposal where it was accepted, else the original."""
        return self.after if self.accepted else self.before

    @property
    def cut(self) -> bool:
        """Whether the time budget ended early: on a machine with more time something else might have come of it."""
        return self.stopped == "time"


class CaseCorrector(ABC):
    """Corrects one case at a time; nothing of one case is left when the next begins.

    Args:
        adapter: The deployed segmenter. It is never changed: what has to change is a copy.
        verifier: Decides about proposals. Its settings are those of the whole correction: one time budget, one number
            of views.
    """

    def __init__(self, adapter: SegmenterAdapter, verifier: Verifier) -> None:
        self.adapter = adapter
        self.verifier = verifier
        self.settings = verifier.settings

    def correct(
        self,
        case: Case,
        sample: Sample | None = None,
        original: LabelMap | None = None,
        neighbours: Sequence[Neighbour] = (),
    ) -> CorrectionResult:
        """Segments a case, proposes a correction, and lets the verifier decide.

        Half of the time budget is for segmentation and method, the rest for the verifier. What is running when a part
        ends is finished.

        Args:
            case: The image.
            sample: The same preprocessed, where it shall be seen in another appearance than its own.
            original: The mask to be corrected, class indices `(*S)` on the case's own grid, whatever made it; None for
                that of the segmenter.
            neighbours: Of a frame, those beside it in its clip.

        Raises:
            DataError: The image is not of the kind that the segmenter takes, or the rules need a spacing that it lacks.
        """
        start = time.monotonic()
        sample = self.adapter.preprocess(case) if sample is None else sample
        logits = self.adapter.predict_logits(sample)
        if original is None:
            labels, action = self.adapter.restore(logits, sample), argmax_classes(logits, dim=0).to(torch.uint8)
        else:
            labels, action = original, self.adapter.preprocess_labels(original, sample).cpu()
        first = Original(labels, action, original is None, neighbours)
        before = first.labels
        settings = self.settings
        proposal = self.propose(sample, logits, first, start + _SHARE_OF_METHOD * settings.seconds)
        verification, stopped = None, proposal.stopped
        reasons: tuple[str, ...] = ("nothing better than the original was found",)
        if not np.array_equal(before, proposal.labels):
            deadline = start + settings.seconds
            verification = self.verifier.compare(self.adapter, case, sample, logits, before, proposal.labels, deadline)
            reasons = verification.reasons
            if verification.views < settings.views:
                stopped = "time"
        if stopped == "time":
            reasons = (*reasons, f"time: the budget of {settings.seconds:g} s ended early")
        return CorrectionResult(
            case.case_id,
            before,
            proposal.labels,
            verification is not None and verification.accepted,
            reasons,
            proposal.gains,
            proposal.step,
            stopped,
            proposal.views,
            verification,
            time.monotonic() - start,
        )

    @abstractmethod
    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        """A mask that may be better.

        Args:
            sample: The case as the segmenter sees it.
            logits: `(K, *S')` of the deployed segmenter, on the CPU.
            original: The mask to be corrected.
            deadline: `time.monotonic()` after which no step and no view is begun.
        """


def appearances(sample: Sample, count: int, channels: int) -> Tensor:
    """Random appearances `(count, C, *S')` of the first channels of a sample; the same case always has the same."""
    generator = torch_generator(0, "appearances", sample.case_id)
    images = sample.image[None].expand(count, *sample.image.shape)
    return randomise_appearance(images, None, _STRENGTH, generator, channels)
