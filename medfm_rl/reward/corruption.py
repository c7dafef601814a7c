"""Corrupted masks: errors that a segmenter could make, made on purpose, so that the reward network has seen them.

All functions take and return actions `(*S)` of class indices, in 2-D and 3-D, and draw from a CPU generator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medfm_rl.augmentation.appearance import smooth_noise


def warp(action: Tensor, generator: torch.Generator, amplitude: float = 0.04) -> Tensor:
    """Moves contours along a smooth random displacement.

    Args:
        action: `(*S)`.
        generator: A CPU generator.
        amplitude: The standard deviation of the displacement is drawn between 0 and 1.5 times this share of the image
            size along each axis.
    """
    grid = action.shape
    scale = float(torch.rand((), generator=generator)) * 1.5 * amplitude
    length = 0.15 + 0.35 * float(torch.rand((), generator=generator))
    identity = F.affine_grid(torch.eye(len(grid), len(grid) + 1)[None], [1, 1, *grid], align_corners=False)
    shift = torch.stack([2 * scale * smooth_noise(grid, length * max(grid), generator) for _ in grid], dim=-1)
    moved = F.grid_sample(
        action[None, None].float(), identity + shift[None], mode="nearest", padding_mode="border", align_corners=False
    )
    return moved[0, 0].to(action.dtype)


def add_blob(action: Tensor, num_classes: int, generator: torch.Generator, size: float = 0.12) -> Tensor:
    """Overwrites a smooth random region with a random class, near what is segmented.

    Args:
        action: `(*S)`.
        num_classes: K.
        generator: A CPU generator.
        size: Radius of the region at most, as a share of the largest image side.
    """
    grid = action.shape
    foreground = action.nonzero()
    if len(foreground):
        centre = foreground[int(torch.randint(len(foreground), (), generator=generator))].float()
    else:
        centre = torch.rand(len(grid), generator=generator) * torch.tensor(grid)
    radius = max(grid) * size * (0.2 + 0.8 * float(torch.rand((), generator=generator)))
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij")
    squared = sum(((axis - middle) / radius) ** 2 for axis, middle in zip(axes, centre, strict=True))
    blob = squared + 0.4 * smooth_noise(grid, radius, generator) < 1
    label = int(torch.randint(num_classes, (), generator=generator))
    return torch.where(blob, torch.tensor(label, dtype=action.dtype), action)


def drop_structure(action: Tensor, generator: torch.Generator) -> Tensor:
    """Erases one of the structures that are there, drawn at random."""
    present = action[action > 0].unique()
    if len(present) == 0:
        return action.clone()
    label = present[int(torch.randint(len(present), (), generator=generator))]
    return torch.where(action == label, torch.zeros_like(action), action)
