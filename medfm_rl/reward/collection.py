"""How actions are collected: what the policy does, what it might do, and masks that are wrong on purpose.

The segmenter comes in as a plain module from images to logits, the exploration and the validity rules as callables.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.networks import argmax_classes
from medfm_rl.reward.actions import ActionOrigin, ActionRecords
from medfm_rl.reward.corruption import add_blob, drop_structure, warp
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.settings import CollectSettings

Explore = Callable[[Tensor, torch.Generator], Tensor]
"""Samples actions `(B, *S)` from logits `(B, K, *S)` as the policy does while it learns."""
IsValid = Callable[[Tensor], bool]
"""Whether an action `(*S)` obeys the anatomy rules."""

_VIEWS = 4


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Preprocessed images with the case and patient each shows.

    Attributes:
        images: `(N, C, *S)`.
        case_ids: One per image.
        patient_ids: One per image.
    """

    images: Tensor
    case_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.case_ids)

    def __getitem__(self, rows: Sequence[int]) -> ImageSet:
        return ImageSet(
            self.images[list(rows)],
            tuple(self.case_ids[row] for row in rows),
            tuple(self.patient_ids[row] for row in rows),
        )


@dataclass(frozen=True, eq=False)
class Collector:
    """Collects actions with one policy.

    Attributes:
        segmenter: The policy, images `(B, C, *S)` to logits `(B, K, *S)`; it is not changed.
        num_classes: K.
        settings: How much and how strong.
        explore: How the policy samples while it learns: D_R must hold what it will be asked to judge.
        is_valid: The anatomy rules.
        shape_prior: Corrects references that break the rules.
        device: Where the segmenter is.
        intensity_channels: How many of the first channels of an image have an appearance; all where None.
    """

    segmenter: nn.Module
    num_classes: int
    settings: CollectSettings
    explore: Explore
    is_valid: IsValid
    shape_prior: ShapePrior
    device: torch.device
    intensity_channels: int | None = None

    def from_source(
        self, sources: ImageSet, ground_truth: Tensor, styles: Tensor, generator: torch.Generator
    ) -> ActionRecords:
        """Actions on source images in random appearances, judged by ground truth.

        Args:
            sources: Source images.
            ground_truth: `(N, *S)` uint8, expert masks of the *source*.
            styles: `(M, C, *S)`, unlabelled target images whose look is borrowed.
            generator: A CPU generator.
        """
        shown = self._in_random_appearance(sources.images, styles, 1.0, generator)
        actions, names = self._actions(shown, ground_truth, generator)
        origins = tuple(
            ActionOrigin(case_id, patient_id, "source", "ground truth", made)
            for case_id, patient_id, made in zip(sources.case_ids, sources.patient_ids, names, strict=True)
        )
        return ActionRecords(shown, actions, ground_truth, torch.ones(ground_truth.shape), origins)

    def from_target(self, targets: ImageSet, generator: torch.Generator) -> ActionRecords:
        """Actions on target images, judged by references that need no label.

        The reference is what the policy says on average over augmented images and perturbed weights; where that breaks
        the anatomy rules, its projection on the shape prior. It counts only where those predictions agree, and less
        than ground truth.
        """
        votes = self._votes(targets.images, generator)
        consensus = votes.mean(dim=0).argmax(dim=1).to(torch.uint8)
        references, proposers = self._make_valid(consensus)
        agreement = (votes.argmax(dim=2) == references[None].long()).float().mean(dim=0)
        agreed = agreement >= self.settings.reference_agreement
        certainty = torch.where(agreed, self.settings.reference_trust * agreement, 0.0)
        actions, names = self._actions(targets.images, references, generator)
        origins = tuple(
            ActionOrigin(case_id, patient_id, "target", proposer, made)
            for case_id, patient_id, proposer, made in zip(
                targets.case_ids, targets.patient_ids, proposers, names, strict=True
            )
        )
        return ActionRecords(targets.images, actions, references, certainty, origins)

    def _actions(
        self, images: Tensor, references: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, list[tuple[str, ...]]]:
        """A actions per image: the policy's own mask first, the others drawn from all the ways to make one."""
        logits = self._logits(self.segmenter, images)
        noisy = self._logits(perturb_weights(self.segmenter, self.settings.weight_noise, generator), images)
        perturbed = self._in_random_appearance(images, None, 1.0, generator)
        misled = self._logits(self.segmenter, perturbed)
        own = argmax_classes(logits, dim=1).to(torch.uint8)
        makers: dict[str, Callable[[int], Tensor]] = {
            "exploration": lambda row: self.explore(logits[row : row + 1], generator)[0].to(torch.uint8),
            "weight noise": lambda row: argmax_classes(noisy[row], dim=0).to(torch.uint8),
            "perturbed image": lambda row: argmax_classes(misled[row], dim=0).to(torch.uint8),
            "warped policy": lambda row: warp(own[row], generator),
            "reference": lambda row: references[row],
            "warped reference": lambda row: warp(references[row], generator),
            "blob": lambda row: add_blob(own[row], self.num_classes, generator),
            "swapped": lambda _: own[int(torch.randint(len(own), (), generator=generator))],
            "dropped": lambda row: drop_structure(references[row], generator),
        }
        # What the policy will really do is what must be judged well; the wild corruptions are the spice.
        likely = torch.tensor([4.0, 2.0, 2.0, 2.0, 1.0, 2.0, 1.0, 0.3, 0.3])
        kinds = list(makers)
        actions, names = [], []
        for row in range(len(images)):
            drawn = torch.multinomial(
                likely, self.settings.actions_per_image - 1, replacement=True, generator=generator
            )
            made = [kinds[int(index)] for index in drawn]
            actions.append(torch.stack([own[row], *(makers[kind](row) for kind in made)]))
            names.append(("policy", *made))
        return torch.stack(actions), names

    def _votes(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Probabilities `(V, N, K, *S)` under changed appearance, scale and weights."""
        votes = [self._logits(self.segmenter, images).softmax(dim=1)]
        for _ in range(_VIEWS):
            shown = self._in_random_appearance(images, None, 0.5, generator)
            segmenter = perturb_weights(self.segmenter, self.settings.weight_noise, generator)
            scale = 0.9 + 0.2 * float(torch.rand((), generator=generator))
            logits = self._logits(segmenter, _rescale(shown, scale))
            votes.append(_rescale(logits, 1 / scale).softmax(dim=1))
        return torch.stack(votes)

    def _in_random_appearance(
        self, images: Tensor, styles: Tensor | None, share: float, generator: torch.Generator
    ) -> Tensor:
        strength = share * self.settings.appearance_strength
        shown = randomise_appearance(images.to(self.device), styles, strength, generator, self.intensity_channels)
        return shown.cpu()

    def _make_valid(self, consensus: Tensor) -> tuple[Tensor, list[str]]:
        references, proposers = consensus.clone(), ["consensus"] * len(consensus)
        broken = [row for row in range(len(consensus)) if not self.is_valid(consensus[row])]
        if broken:
            projected = self.shape_prior.project(consensus[broken])
            for row, mask in zip(broken, projected, strict=True):
                references[row], proposers[row] = mask, "shape prior"
        return references, proposers

    @torch.no_grad()
    def _logits(self, segmenter: nn.Module, images: Tensor, batch_size: int = 16) -> Tensor:
        segmenter.eval()
        return torch.cat([segmenter(batch.to(self.device)).cpu() for batch in images.split(batch_size)])


def perturb_weights(segmenter: nn.Module, scale: float, generator: torch.Generator) -> nn.Module:
    """A copy of the segmenter whose weights carry Gaussian noise of `scale` times each tensor's standard deviation."""
    noisy = copy.deepcopy(segmenter)
    with torch.no_grad():
        for parameter in noisy.parameters():
            if parameter.numel() > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(scale * parameter.std(correction=0) * noise)
    return noisy


def _rescale(images: Tensor, scale: float) -> Tensor:
    """Zooms `(B, C, *S)` about its centre by `scale`, on the same grid."""
    ndim = images.ndim - 2
    matrix = torch.cat([torch.eye(ndim) / scale, torch.zeros(ndim, 1)], dim=1).to(images)
    grid = F.affine_grid(matrix.expand(len(images), -1, -1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
