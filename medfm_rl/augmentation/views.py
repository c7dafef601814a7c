"""Random views of an image: turned, scaled, shifted and in another appearance; and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medfm_rl.augmentation.appearance import randomise_appearance

_APPEARANCE = 0.5
_MOST_ROTATION = 0.4
_SCALES = (0.75, 1.3)
_MOST_SHIFT = 0.1


@dataclass(frozen=True, eq=False)
class View:
    """An image as it might have been taken.

    Attributes:
        image: `(C, *S')`.
        matrix: `(D, D + 1)` from places in the view to places in the image, in the coordinates of `affine_grid`; D is
            the number of axes of a patch.
    """

    image: Tensor
    matrix: Tensor

    def bring_back(self, values: Tensor, otherwise: Tensor) -> Tensor:
        """Values `(M, *S')` of the view on the grid of the image; `otherwise`, alike, where the view did not reach."""
        inverse = torch.linalg.inv(torch.cat([self.matrix, torch.eye(len(self.matrix) + 1)[-1:]]))[:-1]
        moved, inside = _resample(values, inverse)
        return torch.where(inside, moved, otherwise)


def draw_view(image: Tensor, axes: int, channels: int, generator: torch.Generator) -> View:
    """A random view of an image.

    It is turned by at most 23 degrees in the plane of its last two axes, scaled by 0.75 to 1.3 along all of them,
    shifted by at most a twentieth of the image, and has another appearance (`randomise_appearance`, half of its range).

    Args:
        image: `(C, *S')`, as a segmenter sees it; the axes of its patches are the last ones.
        axes: D, of a patch.
        channels: How many of the first channels have an appearance. The others are moved with them.
        generator: A CPU generator.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    angle, scale = uniform(-_MOST_ROTATION, _MOST_ROTATION), uniform(*_SCALES)
    linear = scale * torch.eye(axes)
    linear[0, 0] = linear[1, 1] = scale * math.cos(angle)
    linear[1, 0] = scale * math.sin(angle)
    linear[0, 1] = -linear[1, 0]
    # Coordinates of `affine_grid` are shares of each side, the last axis first: a rotation has to know their lengths.
    sides = torch.tensor(image.shape[: -axes - 1 : -1], dtype=torch.float32)
    linear = linear * sides / sides[:, None]
    shift = torch.tensor([[uniform(-_MOST_SHIFT, _MOST_SHIFT)] for _ in range(axes)])
    matrix = torch.cat([linear, shift], dim=1)
    shown = randomise_appearance(image[None].cpu(), None, _APPEARANCE, generator, channels)[0]
    return View(_resample(shown, matrix)[0], matrix)


def _resample(values: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Values `(M, *S')` where a matrix leads to, and whether that is inside, `(*S)` of a patch's axes."""
    axes = len(matrix)
    # Slices along a first axis that patches lack are images of their own.
    slices = values[None] if values.ndim == axes + 1 else values.movedim(1, 0)
    grid = F.affine_grid(matrix[None], [1, 1, *slices.shape[2:]], align_corners=False)
    moved = F.grid_sample(slices, grid.expand(len(slices), *grid.shape[1:]), padding_mode="border", align_corners=False)
    return (moved[0] if values.ndim == axes + 1 else moved.movedim(0, 1)), (grid[0].abs() <= 1).all(dim=-1)
