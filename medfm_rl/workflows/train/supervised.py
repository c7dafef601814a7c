"""Supervised training of a segmenter: the source model where there is none yet, and the upper bound of a benchmark."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from medfm_rl.augmentation.shape import augment_pair
from medfm_rl.metrics.overlap import dice
from medfm_rl.networks import argmax_classes, mixed_precision, structures_of
from medfm_rl.seeding import derive_seed, torch_generator
from medfm_rl.settings import SourceTrainingSettings
from medfm_rl.workflows.labelled_loss import DiceAndCrossEntropy

_LOG = logging.getLogger(__name__)
_ROUNDS: Final = 20
"""Validations at least where nothing else is said, and lines that tell of them at most."""


@dataclass(frozen=True)
class Validation:
    """How far a training was at a validation.

    Attributes:
        step: Steps done.
        training_loss: Mean over the images since the validation before.
        loss: On the validation images.
        dice: Mean over the validation images as the network sees them, of each structure.
    """

    step: int
    training_loss: float
    loss: float
    dice: tuple[float, ...]


@dataclass(eq=False)
class Training:
    """A training that is under way: all that changes, so that it can be kept and gone on with.

    Attributes:
        segmenter: The network in training.
        optimiser: Of its parameters.
        generator: Draws order and augmentation.
        waiting: Rows of the current pass that have not been shown yet.
        history: The validations so far.
        best: Weights with the lowest validation loss so far.
    """

    segmenter: nn.Module
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    waiting: Tensor
    history: list[Validation] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best_validation(self) -> Validation | None:
        """The validation with the lowest loss, the first of equals."""
        return min(self.history, key=lambda item: item.loss, default=None)

    def next_rows(self, images: int, batch_size: int) -> Tensor:
        """Which images the next step shows: every one once before any comes again."""
        if len(self.waiting) == 0:
            self.waiting = torch.randperm(images, generator=self.generator)
        rows, self.waiting = self.waiting[:batch_size], self.waiting[batch_size:]
        return rows


Keep = Callable[[Training], None]
"""Told of a training after each validation, to write it down."""


def planned_validations(settings: SourceTrainingSettings, images: int) -> list[int]:
    """The steps after which a training validates; the last one is its length.

    Args:
        settings: How long it is, in steps or passes.
        images: How many it learns from.
    """
    a_pass = -(-images // settings.batch_size)
    if settings.epochs is not None:
        total, every = settings.epochs * a_pass, settings.validate_every or a_pass
    else:
        assert settings.steps is not None
        total = settings.steps
        every = settings.validate_every or max(1, min(a_pass, total // _ROUNDS))
    return [*range(every, total, every), total]


def train_supervised(
    segmenter: nn.Module,
    training: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    settings: SourceTrainingSettings,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
    keep: Keep | None = None,
    resume: Keep | None = None,
) -> list[Validation]:
    """Trains a segmenter on labelled images with Dice and cross-entropy, and keeps the weights that validate best.

    The best and not the last: they are the same where the length suits the data, and where there is so little that the
    network learns it by heart the last ones are worse. The loss decides, not Dice: it also falls where all masks are
    still wrong, and does not jump where a few validation images have a small structure.

    Args:
        segmenter: Images `(B, C, *S)` to logits `(B, K, *S)`; changed in place, left in evaluation mode.
        training: Preprocessed images `(N, C, *S)` and class indices `(N, *S)`.
        validation: The same, of other patients; its loss picks the weights.
        settings: Optimisation.
        seed: Seed of order, augmentation and dropout.
        device: Where to train; the segmenter stays there.
        progress: Called with (steps done, steps).
        keep: Called after each validation.
        resume: Called once before the first step, to put the training where an earlier one was.

    Returns:
        All validations.

    Raises:
        FloatingPointError: The loss is not finite.
    """
    segmenter.to(device)
    state = Training(
        segmenter,
        torch.optim.AdamW(segmenter.parameters(), lr=settings.learning_rate, weight_decay=1e-4),
        torch_generator(seed, "supervised"),
        torch.empty(0, dtype=torch.int64),
    )
    fit = _Fit(state, training, validation, DiceAndCrossEntropy(), settings, device)
    # Dropout draws from the global generator.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "dropout"))
        if resume is not None:
            resume(state)
        fit.run(progress, keep)
    segmenter.load_state_dict(state.best)
    segmenter.eval()
    return state.history


@dataclass(frozen=True, eq=False)
class _Fit:
    """One training with the images that it learns from."""

    state: Training
    training: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    criterion: nn.Module
    settings: SourceTrainingSettings
    device: torch.device

    def run(self, progress: Callable[[int, int], None] | None, keep: Keep | None) -> None:
        """Goes on from the last validation to the end."""
        state, ends = self.state, planned_validations(self.settings, len(self.training[0]))
        rates, total = _learning_rates(self.settings.learning_rate, len(ends)), ends[-1]
        step = state.history[-1].step if state.history else 0
        for index in range(len(state.history), len(ends)):
            before = step
            for group in state.optimiser.param_groups:
                group["lr"] = rates[index]
            state.segmenter.train()
            summed, shown = 0.0, 0
            while step < ends[index]:
                loss, count = self._step()
                summed, shown, step = summed + loss * count, shown + count, step + 1
                if progress:
                    progress(step, total)
            self._validate(step, summed / shown)
            if step * _ROUNDS // total > before * _ROUNDS // total:
                self._tell(total)
            if keep:
                keep(state)

    def _step(self) -> tuple[float, int]:
        """One step of the optimiser; returns its loss and how many images it showed."""
        state, (images, labels) = self.state, self.training
        rows = state.next_rows(len(images), self.settings.batch_size)
        batch, target = images[rows].to(self.device), labels[rows].to(self.device)
        if self.settings.augment:
            batch, target = augment_pair(batch, target, state.generator)
        with mixed_precision(self.device, batch.ndim - 2):
            logits = state.segmenter(batch)
        loss = self.criterion(logits.float(), target)
        if not torch.isfinite(loss):
            raise FloatingPointError("the training loss is not finite; lower training.learning_rate")
        state.optimiser.zero_grad()
        loss.backward()
        state.optimiser.step()
        return loss.item(), len(rows)

    @torch.no_grad()
    def _validate(self, step: int, training_loss: float) -> None:
        """Adds a validation, and notes the weights where it is the best so far."""
        state, size = self.state, self.settings.batch_size
        state.segmenter.eval()
        total, scores = 0.0, []
        for images, labels in zip(self.validation[0].split(size), self.validation[1].split(size), strict=True):
            logits = state.segmenter(images.to(self.device))
            total += self.criterion(logits, labels.to(self.device)).item() * len(images)
            masks = argmax_classes(logits, dim=1).cpu().numpy()
            structures = structures_of(state.segmenter, logits.shape[1])
            scores += [dice(mask, truth.numpy(), structures) for mask, truth in zip(masks, labels, strict=True)]
        best = state.best_validation
        found = Validation(
            step, training_loss, total / len(self.validation[0]), tuple(np.mean(scores, axis=0).astype(float).tolist())
        )
        if not np.isfinite(found.loss):
            raise FloatingPointError("the validation loss is not finite; lower training.learning_rate")
        state.history.append(found)
        if best is None or found.loss < best.loss:
            state.best = {name: value.detach().clone() for name, value in state.segmenter.state_dict().items()}

    def _tell(self, steps: int) -> None:
        now, names = self.state.history[-1], getattr(getattr(self.state.segmenter, "schema", None), "structures", None)
        structures = names or [f"class {index}" for index in range(1, len(now.dice) + 1)]
        _LOG.info(
            "step %d of %d: training loss %.3f, validation loss %.3f, validation Dice %s%s",
            now.step,
            steps,
            now.training_loss,
            now.loss,
            ", ".join(f"{name} {value:.3f}" for name, value in zip(structures, now.dice, strict=True)),
            " (best so far)" if self.state.best_validation is now else "",
        )


def _learning_rates(first: float, count: int) -> list[float]:
    """The learning rate of each round, along a cosine to 0.

    All at once: a training that is resumed has those of one that is not, to the last bit.
    """
    alone = torch.optim.SGD([torch.zeros(1)], lr=first)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(alone, count)
    rates = []
    for _ in range(count):
        rates.append(float(alone.param_groups[0]["lr"]))
        alone.step()
        schedule.step()
    return rates
