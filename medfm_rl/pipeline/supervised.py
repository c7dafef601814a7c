"""Supervised training of a segmenter: the source model of who has none yet, and the upper bound of a benchmark."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.networks import mixed_precision
from medfm_rl.reward.appearance import smooth_noise
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


def augment_pair(
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    strength: float = 1.0,
    elastic: float = 0.0,
    channels: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Rotations, scalings, shifts and smooth deformations of both; small changes of contrast and brightness of images.

    Args:
        images: `(B, C, *S)`.
        labels: `(B, *S)`, on the same device.
        generator: A CPU generator.
        strength: Strength of the affine maps; 1 is about 6 degrees of rotation and 5 % of scale, shear and shift.
        elastic: Standard deviation of the largest smooth displacement, as a share of the image size; 0 for none.
        channels: How many of the first channels have contrast and brightness; all where None. All of them move.
    """
    count, ndim = len(images), images.ndim - 2

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(images.device)

    identity = torch.eye(ndim, ndim + 1, device=images.device)
    matrices = identity.repeat(count, 1, 1) + 0.05 * strength * normal(count, ndim, ndim + 1)
    angle = 0.1 * strength * normal(count)
    matrices[:, 0, 1] += angle
    matrices[:, 1, 0] -= angle
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    if elastic > 0:
        fields = [_smooth_displacement(images.shape[2:], elastic, generator, images.device) for _ in range(count)]
        grid = grid + torch.stack(fields)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    target = F.grid_sample(labels[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    ones = (1,) * (ndim + 1)
    moved[:, :channels] = moved[:, :channels] * (1 + 0.1 * normal(count, *ones)) + 0.1 * normal(count, *ones)
    return moved, target[:, 0].to(labels.dtype)


def mirror_at_random(
    images: Tensor, labels: Tensor, axes: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each image with its labels mirrored along each of the axes with a probability of a half.

    Args:
        images: `(B, C, *S)`.
        labels: `(B, *S)`, on the same device.
        axes: Axes of S to mirror along; none leaves everything, the generator too, as it is.
        generator: A CPU generator.
    """
    for axis in axes:
        rows = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
        images, labels = images.clone(), labels.clone()
        images[rows], labels[rows] = images[rows].flip(axis + 2), labels[rows].flip(axis + 1)
    return images, labels


def _smooth_displacement(
    shape: tuple[int, ...], most: float, generator: torch.Generator, device: torch.device
) -> Tensor:
    """A displacement `(*S, D)` in the coordinates of `grid_sample`, smooth over 15 to 50 % of the image."""
    length, amplitude = torch.rand(2, generator=generator).unbind()
    # The coordinates go from -1 to 1: a share of the image size is twice that.
    smooth_over = float(0.15 + 0.35 * length) * max(shape)
    field = torch.stack([smooth_noise(shape, smooth_over, generator, device) for _ in shape], dim=-1)
    return 2 * most * amplitude * field
