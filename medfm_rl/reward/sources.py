"""Sources of D_R: where images come from, and what judges the actions on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.networks import argmax_classes
from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.collection import ActionSampler, ImageSet, ReviewedImages
from medfm_rl.reward.consistency import ClipVotes
from medfm_rl.reward.origins import GROUND_TRUTH, ActionOrigin, Reference, ReferenceKind
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.rows import Rows
from medfm_rl.types import IGNORED, GridAxes

IsValid = Callable[[Tensor, GridAxes], bool]
"""Whether an action `(*S)` obeys the anatomy rules, whose axes run so in the image that the rules speak of."""

_VIEWS = 4


class ActionSource(ABC):
    """A kind of images with what judges actions on them.

    Attributes:
        name: In the names of shards: lower-case words, joined by hyphens.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def images_per_iteration(self) -> int:
        """How many images it gives to each iteration."""

    @abstractmethod
    def __len__(self) -> int:
        """How many images it has to draw from."""

    @abstractmethod
    def collect(self, rows: Sequence[int], generator: torch.Generator) -> ActionRecords:
        """Actions on some of its images.

        Args:
            rows: Which images; one may come more than once.
            generator: A CPU generator.
        """


@dataclass(frozen=True, eq=False)
class LabelledSourceImages(ActionSource):
    """Source images in random appearances, judged by ground truth.

    Attributes:
        sampler: Makes the actions.
        images: Source images.
        ground_truth: `(N, *S)` uint8, expert masks of the *source*.
        styles: `(M, C, *S)`, unlabelled target images whose look is borrowed.
    """

    name = "source"

    sampler: ActionSampler
    images: ImageSet
    ground_truth: Rows
    styles: Rows

    @property
    def images_per_iteration(self) -> int:
        """How many images it gives to each iteration."""
        return self.sampler.settings.source_images

    def __len__(self) -> int:
        return len(self.images)

    def collect(self, rows: Sequence[int], generator: torch.Generator) -> ActionRecords:
        """Actions on some of the images, each in a new appearance."""
        images, ground_truth = self.images[rows], self.ground_truth[list(rows)]
        shown = self.sampler.in_random_appearance(images.images[:], self.styles, 1.0, generator)
        references, said = _completed(self.sampler, shown, ground_truth)
        actions, names = self.sampler.sample(shown, references, generator)
        origins = _origins(images, [GROUND_TRUTH] * len(images), names)
        return ActionRecords(shown, actions, references, said, origins)


@dataclass(frozen=True, eq=False)
class ReviewedTargetImages(ActionSource):
    """Target images in random appearances, judged by the masks of reviewers.

    Attributes:
        sampler: Makes the actions.
        reviewed: The images and their masks.
        styles: `(M, C, *S)`, unlabelled target images whose look is borrowed.
        share: Of the images with expert masks that an iteration collects on, beside those of the source.
    """

    name = "reviewed"

    sampler: ActionSampler
    reviewed: ReviewedImages
    styles: Rows
    share: float

    @property
    def images_per_iteration(self) -> int:
        """How many images it gives to each iteration."""
        return max(1, round(self.sampler.settings.source_images * self.share / (1 - self.share)))

    def __len__(self) -> int:
        return len(self.reviewed)

    def collect(self, rows: Sequence[int], generator: torch.Generator) -> ActionRecords:
        """Actions on some of the images, each in a new appearance."""
        images, masks = self.reviewed.images[rows], self.reviewed.masks[list(rows)]
        shown = self.sampler.in_random_appearance(images.images[:], self.styles, 1.0, generator)
        references, said = _completed(self.sampler, shown, masks)
        actions, names = self.sampler.sample(shown, references, generator)
        trust = [self.reviewed.trust[row] for row in rows]
        certainty = torch.tensor(trust).view(-1, *[1] * (masks.ndim - 1)) * said
        origins = _origins(images, [Reference("expert mask", each) for each in trust], names)
        return ActionRecords(shown, actions, references, certainty, origins)


def _share_equal(votes: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Share of some votes `(N, *S)` that are what masks `(N, *S)` say, pixel by pixel."""
    equal = torch.zeros(masks.shape)
    # One after the other: together they would be twenty bytes a pixel.
    for vote in votes:
        equal += vote == masks
    return equal.div_(len(votes))


def _completed(sampler: ActionSampler, shown: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Expert masks with the policy's own where they say nothing, and `(N, *S)` whether they say something: 1 or 0.

    Masks that are made from them, warped for one, have no holes then; a certainty of 0 teaches nothing of what was
    filled in.
    """
    unsaid = masks == IGNORED
    if not bool(unsaid.any()):
        return masks, torch.ones(masks.shape)
    return torch.where(unsaid, sampler.masks(shown), masks), (~unsaid).float()


@dataclass(frozen=True, eq=False)
class UnlabelledTargetImages(ActionSource):
    """Target images, judged by references that need no label.

    The reference is what the policy says on average over augmented images and perturbed weights; where that breaks the
    anatomy rules, its projection on the shape prior. It counts only where those predictions agree, and less than
    ground truth.

    Attributes:
        sampler: Makes the actions.
        images: Target images.
        is_valid: The anatomy rules.
        shape_prior: Corrects references that break the rules.
    """

    name = "target"

    sampler: ActionSampler
    images: ImageSet
    is_valid: IsValid
    shape_prior: ShapePrior

    @property
    def images_per_iteration(self) -> int:
        """How many images it gives to each iteration."""
        return self.sampler.settings.target_images

    def __len__(self) -> int:
        return len(self.images)

    def collect(self, rows: Sequence[int], generator: torch.Generator) -> ActionRecords:
        """Actions on some of the images as they are."""
        settings, images = self.sampler.settings, self.images[rows]
        shown = images.images[:]
        consensus, votes = self._votes(shown, generator)
        masks, proposed = _make_valid(
            consensus, images, "consensus", settings.reference_trust, self.is_valid, self.shape_prior
        )
        agreement = _share_equal(votes, masks)
        agreed = agreement >= settings.reference_agreement
        certainty = torch.where(agreed, settings.reference_trust * agreement, 0.0)
        actions, names = self.sampler.sample(shown, masks, generator)
        return ActionRecords(shown, actions, masks, certainty, _origins(images, proposed, names))

    def _votes(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        """What mean probabilities under changed appearance, scale and weights say, and what each says, `(N, *S)` uint8.

        Of the probabilities of a view nothing is kept but their sum and their argmax: those of all views of many large
        images would not fit into memory.
        """
        total: Tensor | None = None
        votes = []
        for view in range(1 + _VIEWS):
            shown, segmenter, scale = images, None, 1.0
            if view > 0:
                shown = self.sampler.in_random_appearance(images, None, 0.5, generator)
                segmenter = self.sampler.perturbed(generator)
                scale = 0.9 + 0.2 * float(torch.rand((), generator=generator))
                shown = _rescale(shown, scale)
            said = []
            for start, logits in self._in_batches(shown, segmenter):
                there = (_rescale(logits, 1 / scale) if view > 0 else logits).softmax(dim=1)
                if total is None:
                    total = there.new_zeros((len(images), *there.shape[1:]))
                total[start : start + len(there)] += there
                said.append(argmax_classes(there, dim=1).to(torch.uint8))
            votes.append(torch.cat(said))
        assert total is not None
        return total.div_(1 + _VIEWS).argmax(dim=1).to(torch.uint8), votes

    def _in_batches(self, images: Tensor, segmenter: nn.Module | None) -> Iterator[tuple[int, Tensor]]:
        """Logits of a few images after the other, and the row of the first of them."""
        start = 0
        for logits in self.sampler.logits_in_batches(images, segmenter):
            yield start, logits
            start += len(logits)


@dataclass(frozen=True, eq=False)
class NeighbouringFrames(ActionSource):
    """Frames of target clips, judged by the frames before and after them: a frame that they correct teaches.

    The reference is the vote of the policy's masks of the neighbours, carried along by the images' motion, and of the
    frame itself, which has one vote beside their three (fewer at the ends of a clip); where that breaks the anatomy
    rules, its projection on the shape prior. It counts where the votes agree, and less than ground truth.

    Attributes:
        sampler: Makes the actions.
        images: Target images of two dimensions.
        clips: Rows of the frames of each clip, in their order.
        is_valid: The anatomy rules.
        shape_prior: Corrects references that break the rules.
    """

    name = "clip"

    sampler: ActionSampler
    images: ImageSet
    clips: Sequence[Sequence[int]]
    is_valid: IsValid
    shape_prior: ShapePrior

    @property
    def images_per_iteration(self) -> int:
        """How many images it gives to each iteration."""
        return self.sampler.settings.clip_images

    def __len__(self) -> int:
        return sum(map(len, self.clips))

    def collect(self, rows: Sequence[int], generator: torch.Generator) -> ActionRecords:
        """Actions on some of the frames as they are; rows count through one clip after the other."""
        settings, voting = self.sampler.settings, self._voting
        chosen = [voting.rows[row] for row in rows]
        images = self.images[chosen]
        votes = torch.stack([voting.on(row) for row in chosen])
        found = votes.argmax(dim=1).to(torch.uint8)
        masks, proposed = _make_valid(
            found, images, "neighbours", settings.reference_trust, self.is_valid, self.shape_prior
        )
        agreement = votes.gather(1, masks.long()[:, None])[:, 0]
        agreed = agreement >= settings.reference_agreement
        certainty = torch.where(agreed, settings.reference_trust * agreement, 0.0)
        shown = images.images[:]
        actions, names = self.sampler.sample(shown, masks, generator)
        return ActionRecords(shown, actions, masks, certainty, _origins(images, proposed, names))

    @cached_property
    def _voting(self) -> ClipVotes:
        return ClipVotes(self.images.images, self.clips, self.sampler.logits)


def _make_valid(
    found: Tensor, images: ImageSet, kind: ReferenceKind, trust: float, is_valid: IsValid, prior: ShapePrior
) -> tuple[Tensor, list[Reference]]:
    """Masks `(N, *S)` that meet the rules as far as the shape prior can tell, and what proposed each."""
    masks, proposed = found.clone(), [Reference(kind, trust)] * len(found)
    broken = [row for row in range(len(found)) if not is_valid(found[row], images.axes_of(row))]
    if broken:
        for row, mask in zip(broken, prior.project(found[broken]), strict=True):
            masks[row], proposed[row] = mask, Reference("shape prior", trust)
    return masks, proposed


def _origins(
    images: ImageSet, references: Sequence[Reference], actions: Sequence[tuple[str, ...]]
) -> tuple[ActionOrigin, ...]:
    return tuple(
        ActionOrigin(case_id, patient_id, reference, made)
        for case_id, patient_id, reference, made in zip(
            images.case_ids, images.patient_ids, references, actions, strict=True
        )
    )


def _rescale(images: Tensor, scale: float) -> Tensor:
    """Zooms `(B, C, *S)` about its centre by `scale`, on the same grid."""
    ndim = images.ndim - 2
    matrix = torch.cat([torch.eye(ndim) / scale, torch.zeros(ndim, 1)], dim=1).to(images)
    grid = F.affine_grid(matrix.expand(len(images), -1, -1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
