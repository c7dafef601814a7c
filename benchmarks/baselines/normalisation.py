"""Baselines that change normalisation alone, on a whole domain; `medfm_rl.correction` has the same for one case."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.baselines.problem import BATCH, Problem, steadiest
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.correction.normalisation import InTEnt, estimate_statistics, minimise_entropy
from medfm_rl.progress import Progress
from medfm_rl.seeding import torch_generator


def adabn(problem: Problem, progress: Progress) -> TorchModuleAdapter:
    """Batch statistics of the target in the place of those of the source."""
    adapter = copy.deepcopy(problem.source_model)
    estimate_statistics(adapter, problem.target.images[:].split(BATCH))
    progress("AdaBN", 1, 1)
    return adapter


def tent(problem: Problem, progress: Progress) -> TorchModuleAdapter:
    """Scale and shift of batch normalisation that make the predictions on target images sure of themselves."""
    candidates = {f"learning rate {rate:g}": _minimise_entropy(problem, rate, progress) for rate in (1e-3, 1e-4)}
    return steadiest(candidates, problem)


def _minimise_entropy(problem: Problem, learning_rate: float, progress: Progress) -> TorchModuleAdapter:
    adapter = copy.deepcopy(problem.source_model)
    minimise_entropy(adapter, _shuffled(problem, progress), learning_rate)
    estimate_statistics(adapter, problem.target.images[:].split(BATCH))
    return adapter


def _shuffled(problem: Problem, progress: Progress) -> Iterator[Tensor]:
    generator = torch_generator(problem.seed, "tent")
    batches = torch.randperm(len(problem.target), generator=generator).split(BATCH)
    for done, rows in enumerate(batches, 1):
        yield problem.target.images[rows]
        progress("TENT", done, len(batches))


def intent(problem: Problem, progress: Progress) -> TorchModuleAdapter:
    """Predictions with statistics between those of the source and of the test image, weighted by their entropy."""
    progress("InTEnt", 1, 1)
    return problem.with_module(InTEnt(copy.deepcopy(problem.source_model.module)))
