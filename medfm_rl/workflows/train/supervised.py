"""Supervised training of a segmenter: the source model where there is none yet, and the upper bound of a benchmark."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from medfm_rl.augmentation.shape import augment_pair
from medfm_rl.networks import mixed_precision
from medfm_rl.seeding import derive_seed, torch_generator
from medfm_rl.settings import SourceTrainingSettings


def train_supervised(
    segmenter: nn.Module,
    training: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    settings: SourceTrainingSettings,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[float, float]]:
    """Trains a segmenter on labelled images with Dice and cross-entropy, and keeps the best epoch.

    Args:
        segmenter: Images `(B, C, *S)` to logits `(B, K, *S)`; changed in place, left in evaluation mode.
        training: Preprocessed images `(N, C, *S)` and class indices `(N, *S)`.
        validation: The same, of other patients; its loss picks the epoch.
        settings: Optimisation.
        seed: Seed of order, augmentation and dropout.
        device: Where to train; the segmenter stays there.
        progress: Called with (epochs done, epochs).

    Returns:
        Training and validation loss of each epoch.

    Raises:
        FloatingPointError: The loss is not finite.
    """
    from monai.losses import DiceCELoss

    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    segmenter.to(device)
    # Dropout draws from the global generator.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "dropout"))
        history = _fit(segmenter, training, validation, criterion, settings, seed, device, progress)
    segmenter.eval()
    return history


def _fit(
    segmenter: nn.Module,
    training: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    criterion: nn.Module,
    settings: SourceTrainingSettings,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> list[tuple[float, float]]:
    """Leaves the weights of the best epoch in the segmenter; returns the losses of all."""
    images, labels = training
    generator = torch_generator(seed, "supervised")
    optimiser = torch.optim.AdamW(segmenter.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
    best_loss, best_state = float("inf"), copy.deepcopy(segmenter.state_dict())
    history = []
    for epoch in range(settings.epochs):
        segmenter.train()
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(settings.batch_size):
            batch, target = images[rows].to(device), labels[rows].to(device)
            if settings.augment:
                batch, target = augment_pair(batch, target, generator)
            with mixed_precision(device, batch.ndim - 2):
                logits = segmenter(batch)
            loss = criterion(logits.float(), target[:, None])
            if not torch.isfinite(loss):
                raise FloatingPointError("the training loss is not finite; lower training.learning_rate")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(rows)
        schedule.step()
        validation_loss = _validate(segmenter, validation, criterion, settings.batch_size, device)
        history.append((total / len(images), validation_loss))
        if validation_loss < best_loss:
            best_loss, best_state = validation_loss, copy.deepcopy(segmenter.state_dict())
        if progress:
            progress(epoch + 1, settings.epochs)
    segmenter.load_state_dict(best_state)
    return history


@torch.no_grad()
def _validate(
    segmenter: nn.Module, data: tuple[Tensor, Tensor], criterion: nn.Module, batch_size: int, device: torch.device
) -> float:
    segmenter.eval()
    total = 0.0
    for images, labels in zip(data[0].split(batch_size), data[1].split(batch_size), strict=True):
        total += criterion(segmenter(images.to(device)), labels[:, None].to(device)).item() * len(images)
    return total / len(data[0])
