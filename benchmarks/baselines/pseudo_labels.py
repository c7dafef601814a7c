"""Baselines that learn from their own predictions."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baselines.problem import BATCH, Problem, steadiest
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.augmentation.shape import augment_pair
from medfm_rl.progress import Progress
from medfm_rl.seeding import torch_generator

_IGNORED = 255
_LEARNING_RATE = 1e-4
_ROUNDS, _STEPS_OF_A_ROUND = 2, 150
_TEACHER_STEPS = 300


def self_training(problem: Problem, progress: Progress) -> TorchModuleAdapter:
    """Learns from its own masks where it is sure of them."""
    candidates = {f"threshold {value:g}": _self_train(problem, value, progress) for value in (0.95, 0.8)}
    return steadiest(candidates, problem)


def _self_train(problem: Problem, threshold: float, progress: Progress) -> TorchModuleAdapter:
    rounds, steps = _ROUNDS, _STEPS_OF_A_ROUND
    adapter = copy.deepcopy(problem.source_model).eval()
    generator = torch_generator(problem.seed, "self-training")
    optimiser = torch.optim.AdamW(adapter.parameters(), lr=_LEARNING_RATE, weight_decay=1e-4)
    for round_ in range(rounds):
        labels = confident_labels(adapter, problem.target.images[:], threshold)
        for step in range(steps):
            rows = torch.randint(len(labels), (BATCH,), generator=generator)
            # Ignored pixels are a class of their own while the mask is moved with the image.
            images, moved = augment_pair(problem.target.images[rows], labels[rows], generator)
            known = moved != _IGNORED
            losses = F.cross_entropy(adapter(images), moved.long(), ignore_index=_IGNORED, reduction="sum")
            loss = losses / known.sum().clamp_min(1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            progress("self-training", round_ * steps + step + 1, rounds * steps)
    return adapter


@torch.no_grad()
def confident_labels(adapter: TorchModuleAdapter, images: Tensor, threshold: float) -> Tensor:
    """Class indices `(N, *S)` uint8, 255 where the largest probability is not above the threshold."""
    found = []
    for batch in images.split(BATCH):
        confidence, labels = adapter(batch).softmax(dim=1).max(dim=1)
        found.append(torch.where(confidence > threshold, labels, _IGNORED).to(torch.uint8))
    return torch.cat(found)


def mean_teacher(problem: Problem, progress: Progress) -> TorchModuleAdapter:
    """A student that learns from the source and agrees on the target with the average of its own past."""
    candidates = {f"weight {weight:g}": _teach(problem, weight, progress) for weight in (1.0, 10.0)}
    return steadiest(candidates, problem)


def _teach(problem: Problem, most: float, progress: Progress) -> TorchModuleAdapter:
    from monai.losses import DiceCELoss

    steps, half, decay = _TEACHER_STEPS, BATCH // 2, 0.99
    images, ground_truth = problem.labelled_source()
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    generator = torch_generator(problem.seed, "mean teacher")
    student = copy.deepcopy(problem.source_model).eval()
    teacher = copy.deepcopy(problem.source_model).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(student.parameters(), lr=_LEARNING_RATE, weight_decay=1e-4)
    for step in range(steps):
        rows = torch.randint(len(images), (half,), generator=generator)
        shown, truth = augment_pair(images[rows], ground_truth[rows], generator)
        target = problem.target.images[torch.randint(len(problem.target), (half,), generator=generator)]
        views = [randomise_appearance(target, None, 1.0, generator) for _ in range(2)]
        with torch.no_grad():
            wanted = teacher(views[0]).softmax(dim=1)
        consistency = F.mse_loss(student(views[1]).softmax(dim=1), wanted)
        weight = most * math.exp(-5 * (1 - min(1.0, step / (0.4 * steps))) ** 2)
        loss = criterion(student(shown), truth[:, None]) + weight * consistency
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                # A young average follows faster, as the authors let it.
                slow.lerp_(fast, 1 - min(decay, 1 - 1 / (step + 1)))
        progress("mean teacher", step + 1, steps)
    return teacher.requires_grad_(True)
