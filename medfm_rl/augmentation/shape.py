"""Random shapes: rotations, scalings, shifts and smooth deformations of images together with their masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from medfm_rl.augmentation.appearance import smooth_noise


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
        strength: Strength of the affine maps; 1 is about 6 degrees of rotation, 5 % of scale and shear, 2.5 % of shift.
        elastic: Standard deviation of the largest smooth displacement, as a share of the image size; 0 for none.
        channels: How many of the first channels have contrast and brightness; all where None. All of them move.
    """
    count, ndim = len(images), images.ndim - 2

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(images.device)

    identity = torch.eye(ndim, ndim + 1, device=images.device)
    matrices = identity.repeat(count, 1, 1) + 0.05 * strength * normal(count, ndim, ndim + 1)
    angle = 0.1 * strength * normal(count)
    # Coordinates of `affine_grid` are shares of each side, the last axis first: a rotation has to know their lengths.
    last, before = images.shape[-1], images.shape[-2]
    matrices[:, 0, 1] += angle * (before / last)
    matrices[:, 1, 0] -= angle * (last / before)
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
