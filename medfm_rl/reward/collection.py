"""How actions are collected: what the policy does, what it might do, and masks that are wrong on purpose.

The segmenter comes in as a plain module from images to logits, the exploration as a callable.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.networks import argmax_classes, images_at_once
from medfm_rl.reward.corruption import add_blob, drop_structure, warp
from medfm_rl.rows import Rows
from medfm_rl.settings import CollectSettings
from medfm_rl.types import GridAxes

Explore = Callable[[Tensor, torch.Generator], Tensor]
"""Samples actions `(B, *S)` from logits `(B, K, *S)` as the policy does while it learns."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Preprocessed images with the case and patient each shows.

    Attributes:
        images: `(N, C, *S)`, in memory or on the disk.
        case_ids: One per image.
        patient_ids: One per image.
        axes: How the axes of each run in the image that it is made from; None where all are the same.
    """

    images: Rows
    case_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    axes: tuple[GridAxes, ...] | None = None

    def __len__(self) -> int:
        return len(self.case_ids)

    def __getitem__(self, rows: Sequence[int]) -> ImageSet:
        """Some of them, in memory."""
        return ImageSet(
            self.images[list(rows)],
            tuple(self.case_ids[row] for row in rows),
            tuple(self.patient_ids[row] for row in rows),
            None if self.axes is None else tuple(self.axes[row] for row in rows),
        )

    def axes_of(self, row: int) -> GridAxes:
        """How the axes of an image run in the one that it is made from."""
        return GridAxes.same(len(self.images.shape) - 2) if self.axes is None else self.axes[row]


@dataclass(frozen=True, eq=False)
class ReviewedImages:
    """Preprocessed target images with the masks that reviewers drew or accepted.

    Attributes:
        images: `(N, C, *S)` with their cases and patients.
        masks: `(N, *S)` uint8.
        trust: Of each mask, in (0, 1]: how often it is shown, next to one that is trusted fully.
        accepted: Names of the cases whose masks a model made and a reviewer accepted; the others were drawn.
    """

    images: ImageSet
    masks: Tensor
    trust: tuple[float, ...]
    accepted: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, count: int, generator: torch.Generator) -> list[int]:
        """Rows drawn by trust, with replacement: reviewed images are few, and in each look and shape they are new."""
        return torch.multinomial(torch.tensor(self.trust), count, replacement=True, generator=generator).tolist()

    def of_patients(self, patients: Collection[str]) -> ReviewedImages:
        """The images of these patients only."""
        return self._of_rows([row for row, patient in enumerate(self.images.patient_ids) if patient in patients])

    @property
    def drawn(self) -> ReviewedImages:
        """The images whose masks reviewers drew or corrected: no model agrees with these because it made them."""
        return self._of_rows([row for row, case in enumerate(self.images.case_ids) if case not in self.accepted])

    def _of_rows(self, rows: list[int]) -> ReviewedImages:
        trust = tuple(self.trust[row] for row in rows)
        return ReviewedImages(self.images[rows], self.masks[rows], trust, self.accepted)


@dataclass(frozen=True, eq=False)
class _Attempts:
    """What the actions of a batch of images are made from.

    Attributes:
        own: The policy's masks `(N, *S)` uint8.
        logits: Of the images as they are, `(N, K, *S)`.
        noisy: Masks of a policy with perturbed weights, `(N, *S)` uint8.
        misled: Masks of the images in another appearance, `(N, *S)` uint8.
        references: `(N, *S)` uint8.
        explore: How the policy samples.
        generator: A CPU generator.
    """

    own: Tensor
    logits: Tensor
    noisy: Tensor
    misled: Tensor
    references: Tensor
    explore: Explore
    generator: torch.Generator


@dataclass(frozen=True)
class _Way:
    """A way to make an action: how often it is taken, next to the others, and what it makes of one image `(*S)`."""

    weight: float
    make: Callable[[_Attempts, int], Tensor]


def _swapped(of: _Attempts, row: int) -> Tensor:
    """The policy's mask of any image of the batch."""
    del row
    return of.own[int(torch.randint(len(of.own), (), generator=of.generator))]


# What the policy will really do is what must be judged well; the wild corruptions are the spice.
_WAYS: Final[Mapping[str, _Way]] = {
    "exploration": _Way(4.0, lambda of, row: of.explore(of.logits[row : row + 1], of.generator)[0].to(torch.uint8)),
    "weight noise": _Way(2.0, lambda of, row: of.noisy[row]),
    "perturbed image": _Way(2.0, lambda of, row: of.misled[row]),
    "warped policy": _Way(2.0, lambda of, row: warp(of.own[row], of.generator)),
    "reference": _Way(1.0, lambda of, row: of.references[row]),
    "warped reference": _Way(2.0, lambda of, row: warp(of.references[row], of.generator)),
    "blob": _Way(1.0, lambda of, row: add_blob(of.own[row], of.logits.shape[1], of.generator)),
    "swapped": _Way(0.3, _swapped),
    "dropped": _Way(0.3, lambda of, row: drop_structure(of.references[row], of.generator)),
}


@dataclass(frozen=True, eq=False)
class ActionSampler:
    """Makes actions with one policy.

    Attributes:
        segmenter: The policy, images `(B, C, *S)` to logits `(B, K, *S)`; it is not changed.
        settings: How many and how strong.
        explore: How the policy samples while it learns: D_R must hold what it will be asked to judge.
        device: Where the segmenter is.
        intensity_channels: How many of the first channels of an image have an appearance; all where None.
    """

    segmenter: nn.Module
    settings: CollectSettings
    explore: Explore
    device: torch.device
    intensity_channels: int | None = None

    def sample(
        self, images: Tensor, references: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, list[tuple[str, ...]]]:
        """Makes A actions per image: the policy's own mask first, the others drawn from all the ways to make one.

        Args:
            images: `(N, C, *S)`.
            references: `(N, *S)` uint8, what the actions should be.
            generator: A CPU generator.

        Returns:
            Actions `(N, A, *S)` uint8, and for each image what made each of them.
        """
        logits = self.logits(images)
        attempts = _Attempts(
            own=joined(_masks_in_batches(logits.split(images_at_once(images.shape[2:]))), len(images)),
            logits=logits,
            noisy=self.masks(images, self.perturbed(generator)),
            misled=self.masks(self.in_random_appearance(images, None, 1.0, generator)),
            references=references,
            explore=self.explore,
            generator=generator,
        )
        kinds, likely = list(_WAYS), torch.tensor([way.weight for way in _WAYS.values()])
        count = self.settings.actions_per_image - 1
        actions, names = torch.empty((len(images), count + 1, *images.shape[2:]), dtype=torch.uint8), []
        for row, of_image in enumerate(actions):
            drawn = torch.multinomial(likely, count, replacement=True, generator=generator)
            made = [kinds[int(index)] for index in drawn]
            of_image[0] = attempts.own[row]
            for action, kind in zip(of_image[1:], made, strict=True):
                action[:] = _WAYS[kind].make(attempts, row)
            names.append(("policy", *made))
        return actions, names

    def perturbed(self, generator: torch.Generator) -> nn.Module:
        """A copy of the policy with noise on its weights."""
        return perturb_weights(self.segmenter, self.settings.weight_noise, generator)

    def in_random_appearance(
        self, images: Tensor, styles: Rows | None, share: float, generator: torch.Generator
    ) -> Tensor:
        """Images `(N, C, *S)` in another look.

        Args:
            images: `(N, C, *S)`.
            styles: `(M, C, *S)`, images whose look is borrowed for some; None for none.
            share: Of the strength that the settings ask for.
            generator: A CPU generator.
        """
        strength = share * self.settings.appearance_strength
        shown = randomise_appearance(images.to(self.device), styles, strength, generator, self.intensity_channels)
        return shown.cpu()

    def logits(self, images: Tensor, segmenter: nn.Module | None = None) -> Tensor:
        """Logits `(N, K, *S)` of images `(N, C, *S)`, of the policy or of another segmenter, on the CPU."""
        return logits_of(self.segmenter if segmenter is None else segmenter, self.device, images)

    def masks(self, images: Tensor, segmenter: nn.Module | None = None) -> Tensor:
        """The argmax of the logits, `(N, *S)` uint8, without the logits of all images in memory."""
        return joined(_masks_in_batches(self.logits_in_batches(images, segmenter)), len(images))

    def logits_in_batches(self, images: Tensor, segmenter: nn.Module | None = None) -> Iterator[Tensor]:
        """The logits of a few images after the other, as many as the network is shown at once."""
        return logits_in_batches(self.segmenter if segmenter is None else segmenter, self.device, images)


def logits_of(segmenter: nn.Module, device: torch.device, images: Tensor) -> Tensor:
    """Logits `(N, K, *S)` of images `(N, C, *S)` on the CPU, without gradients."""
    return joined(logits_in_batches(segmenter, device, images), len(images))


def _masks_in_batches(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """The argmax `(B, *S)` uint8 of logits of a few images after the other; as int64 it is eight times as large."""
    return (argmax_classes(part, dim=1).to(torch.uint8) for part in parts)


def joined(parts: Iterable[Tensor], count: int) -> Tensor:
    """Tensors with so many rows together, one after the other, without a copy of all of them beside.

    Raises:
        ValueError: They have fewer rows, or there are none.
    """
    whole, filled = None, 0
    for part in parts:
        if whole is None:
            whole = part.new_empty((count, *part.shape[1:]))
        whole[filled : filled + len(part)] = part
        filled += len(part)
    if whole is None or filled != count:
        raise ValueError(f"{filled} rows came, {count} were to come")
    return whole


def logits_in_batches(segmenter: nn.Module, device: torch.device, images: Tensor) -> Iterator[Tensor]:
    """Logits `(B, K, *S)` of a few images `(N, C, *S)` after the other, on the CPU, without gradients."""
    segmenter.eval()
    for batch in images.split(images_at_once(images.shape[2:])):
        # Not across the `yield`: what the caller does in between may need gradients.
        with torch.no_grad():
            found = segmenter(batch.to(device)).cpu()
        yield found


def perturb_weights(segmenter: nn.Module, scale: float, generator: torch.Generator) -> nn.Module:
    """A copy of the segmenter whose weights carry Gaussian noise of `scale` times each tensor's standard deviation."""
    noisy = copy.deepcopy(segmenter)
    with torch.no_grad():
        for parameter in noisy.parameters():
            if parameter.numel() > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(scale * parameter.std(correction=0) * noise)
    return noisy
