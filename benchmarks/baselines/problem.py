"""The problem that every baseline gets, and the choice of its settings without target labels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.metrics.overlap import dice
from medfm_rl.networks import argmax_classes
from medfm_rl.reward.collection import ImageSet
from medfm_rl.seeding import torch_generator

BATCH = 16


@dataclass(frozen=True, eq=False)
class Problem:
    """A source model and what there is to adapt it with.

    Attributes:
        source_model: It is copied, never changed.
        target: Unlabelled target images.
        source: Source images and their ground truth `(N, *S)`, or None for baselines that do without.
        source_masks: Ground truth of the source for those that learn shapes from it, `(N, *S)`.
        anatomy: Validity rules.
        seed: Of everything that is drawn.
    """

    source_model: TorchModuleAdapter
    target: ImageSet
    source: tuple[ImageSet, Tensor] | None
    source_masks: Tensor
    anatomy: Anatomy
    seed: int

    def labelled_source(self) -> tuple[Tensor, Tensor]:
        """Source images `(N, C, *S)` and their ground truth `(N, *S)`."""
        assert self.source is not None, "this baseline was said to need no source images"
        return self.source[0].images[:], self.source[1]

    def with_module(self, module: nn.Module) -> TorchModuleAdapter:
        """The source model with another network in the place of its own."""
        adapter = copy.deepcopy(self.source_model)
        adapter.module = module
        return adapter.eval()


@torch.no_grad()
def predict(segmenter: nn.Module, images: Tensor) -> Tensor:
    """Class indices `(N, *S)` of images `(N, C, *S)`."""
    return torch.cat([argmax_classes(segmenter(batch), dim=1) for batch in images.split(BATCH)]).to(torch.uint8)


def steadiness(segmenter: nn.Module, problem: Problem) -> float:
    """Mean over the target images of the Dice between their masks in two appearances; 0 where the mask is not valid."""
    images = problem.target.images[:]
    shown = randomise_appearance(images, None, 0.5, torch_generator(problem.seed, "steadiness"))
    total = 0.0
    for plain, other in zip(predict(segmenter, images).numpy(), predict(segmenter, shown).numpy(), strict=True):
        if problem.anatomy.is_valid(plain):
            total += float(dice(plain, other, problem.anatomy.schema.classes).mean())
    return total / len(images)


def steadiest(candidates: Mapping[str, TorchModuleAdapter], problem: Problem) -> TorchModuleAdapter:
    """The candidate with the highest steadiness; the first of those that share it."""
    scores = {name: steadiness(candidate, problem) for name, candidate in candidates.items()}
    best = max(scores, key=lambda name: scores[name])
    print("    " + ", ".join(f"{name}: steadiness {score:.3f}" for name, score in scores.items()) + f"; kept {best}")
    return candidates[best]
