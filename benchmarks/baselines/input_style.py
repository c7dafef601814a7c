"""Baselines that bring the looks of the two domains together."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.problem import BATCH, Problem
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.augmentation.appearance import match_low_frequencies
from medfm_rl.augmentation.shape import augment_pair
from medfm_rl.networks import log_of
from medfm_rl.progress import Progress
from medfm_rl.seeding import torch_generator

_BANDS = (0.01, 0.05, 0.09)
_STEPS_OF_A_BAND = 150


def histogram_matching(problem: Problem, progress: Progress) -> TorchModuleAdapter:
    """Test images with the grey values of the source, segmented by the source model."""
    images, _ = problem.labelled_source()
    # Quantile by quantile, so that no single source image decides.
    quantiles = images.flatten(2).sort(dim=2).values.mean(dim=0)
    progress("histogram matching", 1, 1)
    return problem.with_module(Matched(copy.deepcopy(problem.source_model.module), quantiles))


class Matched(nn.Module):
    """Gives images a fixed distribution of grey values before a network sees them.

    Args:
        module: Images `(B, C, *S)` to logits.
        quantiles: `(C, P)`, ascending, P the number of pixels.
    """

    def __init__(self, module: nn.Module, quantiles: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("quantiles", quantiles)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(2)
        ranks = flat.argsort(dim=2, stable=True)
        values = self.quantiles.expand(len(images), -1, -1)  # type: ignore[operator]
        matched = torch.empty_like(flat).scatter_(2, ranks, values)
        logits: Tensor = self.module(matched.reshape(images.shape))
        return logits


def fourier_domain_adaptation(problem: Problem, progress: Progress) -> TorchModuleAdapter:
    """Learns on source images with the low frequencies of target images, in three bands, and averages the three."""
    return problem.with_module(Average([_train_in_band(problem, band, progress).module for band in _BANDS]))


class Average(nn.Module):
    """The logarithm of the mean probability of several networks."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(modules)

    def forward(self, images: Tensor) -> Tensor:
        probabilities = torch.stack([member(images).softmax(dim=1) for member in self.members])
        return log_of(probabilities.mean(dim=0))


def _train_in_band(problem: Problem, band: float, progress: Progress) -> TorchModuleAdapter:
    steps, entropy_weight, power = _STEPS_OF_A_BAND, 0.005, 2.0
    images, ground_truth = problem.labelled_source()
    generator = torch_generator(problem.seed, "fda", str(band))
    adapter = copy.deepcopy(problem.source_model).eval()
    optimiser = torch.optim.AdamW(adapter.parameters(), lr=1e-4, weight_decay=1e-4)
    for step in range(steps):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        styles = problem.target.images[torch.randint(len(problem.target), (BATCH,), generator=generator)]
        dressed = torch.stack(
            [match_low_frequencies(image, style, band) for image, style in zip(images[rows], styles, strict=True)]
        )
        shown, truth = augment_pair(dressed, ground_truth[rows], generator)
        log_probabilities = adapter(styles).log_softmax(dim=1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
        robust = ((entropy**2 + 1e-8) ** power).mean()
        loss = F.cross_entropy(adapter(shown), truth.long()) + entropy_weight * robust
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        progress(f"FDA {band:g}", step + 1, steps)
    return adapter
