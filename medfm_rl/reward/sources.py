"""Sources of D_R: where images come from, and what judges the actions on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.networks import argmax_classes
from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.collection import ActionSampler, ImageSet
from medfm_rl.reward.consistency import ClipVotes
from medfm_rl.reward.origins import ActionOrigin, Reference, ReferenceKind
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

    name: str

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
class ExpertMasks(ActionSource):
    """Images in random appearances, judged by masks of people: of the source, or of those who reviewed the target.

    Attributes:
        sampler: Makes the actions.
        images: The images.
        masks: `(N, *S)` uint8, what people drew or accepted.
        styles: `(M, C, *S)`, unlabelled target images whose look is borrowed.
        count: How many images it gives to each iteration.
        name: In the names of shards.
        trust: Of each mask, in (0, 1]; None where all are ground truth.
    """

    sampler: ActionSampler
    images: ImageSet
    masks: Rows
    styles: Rows
    count: int
    name: str = "source"
    trust: Sequence[float] | None = None

    @property
    def images_per_iteration(self) -> int:
        """How many images it gives to each iteration."""
        return self.count

    def __len__(self) -> int:
        return len(self.images)

    def collect(self, rows: Sequence[int], generator: torch.Generator) -> ActionRecords:
        """Actions on some of the images, each in a new appearance."""
        chosen = list(rows)
        shown = self.sampler.in_random_appearance(self.images.images[chosen], self.styles, 1.0, generator)
        references, said = _completed(self.sampler, shown, self.masks[chosen])
        actions, names = self.sampler.sample(shown, references, generator)
        trust = [1.0 if self.trust is None else self.trust[row] for row in chosen]
        certainty = torch.tensor(trust).view(-1, *[1] * (said.ndim - 1)) * said
        origins = _origins(self.images, chosen, [Reference("expert mask", each) for each in trust], names)
        return ActionRecords(shown, actions, references, certainty, origins)


def _share_equal(votes: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Share of some votes `(N, *S)` that are what masks `(N, *S)` say, pixel by pixel."""
    equal = torch.zeros(masks.shape)
    # One after the other: together they would be twenty bytes a pixel.
    for vote in votes:
        equal += vote == masks
    return equal.div_(len(votes))


def _completed(sampler: ActionSampler, shown: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Expert masks with the policy's own where they say nothing, and `(N, *S)` bool, whether they say something.

    Masks that are made from them, warped for one, have no holes then; a certainty of 0 teaches nothing of what was
    filled in.
    """
    said = masks != IGNORED
    if bool(said.all()):
        return masks, said
    return torch.where(said, masks, sampler.masks(shown)), said


@dataclass(frozen=True, eq=False)
class VotedImages(ActionSource):
    """Target images, judged by votes, which need no label.

    The reference is what was voted for; where that breaks the anatomy rules, its projection on the shape prior. It
    counts only where the votes agree with it, and less than ground truth.

    Attributes:
        sampler: Makes the actions.
        images: Target images.
        is_valid: The anatomy rules.
        shape_prior: Corrects references that break the rules.
    """

    sampler: ActionSampler
    images: ImageSet
    is_valid: IsValid
    shape_prior: ShapePrior

    def _judged(
        self,
        images: ImageSet,
        voted: Tensor,
        kind: ReferenceKind,
        share_of: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> ActionRecords:
        """Actions on images as they are.

        Args:
            images: The images.
            voted: `(N, *S)` uint8, what was voted for.
            kind: Of the vote.
            share_of: The share of the votes, pixel by pixel, that masks `(N, *S)` have.
            generator: A CPU generator.
        """
        settings = self.sampler.settings
        masks, proposed = voted.clone(), [Reference(kind, settings.reference_trust)] * len(voted)
        broken = [row for row in range(len(voted)) if not self.is_valid(voted[row], images.axes_of(row))]
        if broken:
            for row, mask in zip(broken, self.shape_prior.project(voted[broken]), strict=True):
                masks[row], proposed[row] = mask, Reference("shape prior", settings.reference_trust)
        agreement = share_of(masks)
        agreed = agreement >= settings.reference_agreement
        certainty = torch.where(agreed, settings.reference_trust * agreement, 0.0)
        shown = images.images[:]
        actions, names = self.sampler.sample(shown, masks, generator)
        return ActionRecords(shown, actions, masks, certainty, _origins(images, range(len(images)), proposed, names))


@dataclass(frozen=True, eq=False)
class UnlabelledTargetImages(VotedImages):
    """Target images, judged by what the policy says on average over augmented images and perturbed weights."""

    name = "target"

    @property
    def images_per_iteration(self) -> int:
        """How many images it gives to each iteration."""
        return self.sampler.settings.target_images

    def __len__(self) -> int:
        return len(self.images)

    def collect(self, rows: Sequence[int], generator: torch.Generator) -> ActionRecords:
        """Actions on some of the images as they are."""
        images = self.images[rows]
        consensus, votes = self._votes(images.images[:], generator)
        return self._judged(images, consensus, "consensus", partial(_share_equal, votes), generator)

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
        return argmax_classes(total.div_(1 + _VIEWS), dim=1).to(torch.uint8), votes

    def _in_batches(self, images: Tensor, segmenter: nn.Module | None) -> Iterator[tuple[int, Tensor]]:
        """Logits of a few images after the other, and the row of the first of them."""
        start = 0
        for logits in self.sampler.logits_in_batches(images, segmenter):
            yield start, logits
            start += len(logits)


@dataclass(frozen=True, eq=False)
class NeighbouringFrames(VotedImages):
    """Frames of target clips, judged by the frames before and after them: a frame that they correct teaches.

    The policy's masks of the neighbours vote, carried along by the images' motion, and the frame itself, which has one
    vote beside their three (fewer at the ends of a clip).

    Attributes:
        clips: Rows of the frames of each clip, in their order; the images are of two dimensions.
    """

    name = "clip"

    clips: Sequence[Sequence[int]]

    @property
    def images_per_iteration(self) -> int:
        """How many images it gives to each iteration."""
        return self.sampler.settings.clip_images

    def __len__(self) -> int:
        return sum(map(len, self.clips))

    def collect(self, rows: Sequence[int], generator: torch.Generator) -> ActionRecords:
        """Actions on some of the frames as they are; rows count through one clip after the other."""
        voting = self._voting
        chosen = [voting.rows[row] for row in rows]
        votes = torch.stack([voting.on(row) for row in chosen])
        voted = argmax_classes(votes, dim=1).to(torch.uint8)

        def share_of(masks: Tensor) -> Tensor:
            return votes.gather(1, masks.long()[:, None])[:, 0]

        return self._judged(self.images[chosen], voted, "neighbours", share_of, generator)

    @cached_property
    def _voting(self) -> ClipVotes:
        return ClipVotes(self.images.images, self.clips, self.sampler.logits)


def _origins(
    images: ImageSet, rows: Sequence[int], references: Sequence[Reference], actions: Sequence[tuple[str, ...]]
) -> tuple[ActionOrigin, ...]:
    return tuple(
        ActionOrigin(images.case_ids[row], images.patient_ids[row], reference, made)
        for row, reference, made in zip(rows, references, actions, strict=True)
    )


def _rescale(images: Tensor, scale: float) -> Tensor:
    """Zooms `(B, C, *S)` about its centre by `scale`, on the same grid."""
    ndim = images.ndim - 2
    matrix = torch.cat([torch.eye(ndim) / scale, torch.zeros(ndim, 1)], dim=1).to(images)
    grid = F.affine_grid(matrix.expand(len(images), -1, -1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
