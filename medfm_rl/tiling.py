"""Grids larger than a network's patch: boxes that cover them, and what a network says of all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor


def tile_boxes(shape: Sequence[int], patch: Sequence[int]) -> list[tuple[slice | int, ...]]:
    """Boxes of the patch size that cover a grid; the last along an axis ends at its border and may overlap.

    Args:
        shape: Size of the grid, no side smaller than the patch. With one axis more than the patch each index of the
            first axis has boxes of its own, which leave that axis out.
        patch: Size of a box.
    """
    if len(shape) == len(patch) + 1:
        return [(index, *box) for index in range(shape[0]) for box in tile_boxes(shape[1:], patch)]
    starts = []
    for side, size in zip(shape, patch, strict=True):
        count = -(-side // size)
        starts.append(sorted({min(index * size, side - size) for index in range(count)}))
    return [
        tuple(slice(start, start + size) for start, size in zip(corner, patch, strict=True))
        for corner in product(*starts)
    ]


def over_tiles(function: Callable[..., Tensor], inputs: Sequence[Tensor], patch: Sequence[int]) -> Tensor:
    """Applies a function of patches to a whole grid, differentiably; where tiles overlap the mean counts.

    Args:
        function: From one tile of each input, `(1, C_i, *patch)`, to `(1, M, *patch)`.
        inputs: `(C_i, *S)` each, on one device.
        patch: Size of a tile.

    Returns:
        `(M, *S)`.
    """
    shape = inputs[0].shape[1:]
    parts = []
    count = torch.zeros(shape, device=inputs[0].device)
    for box in tile_boxes(shape, patch):
        place = (slice(None), *box)
        parts.append((place, function(*(values[place][None] for values in inputs))[0]))
        count[box] += 1
    total = parts[0][1].new_zeros((len(parts[0][1]), *shape))
    for place, part in parts:
        total[place] += part
    return total / count


def tiled_reward_map(
    reward: Callable[[Tensor, Tensor], Tensor], image: Tensor, action: Tensor, patch: Sequence[int]
) -> Tensor:
    """The reward map `(*S)` of an action `(*S)` on an image `(C, *S)` from tiles of the size that the reward learnt on.

    Where tiles overlap their mean counts.
    """
    return over_tiles(lambda shown, labels: reward(shown, labels[:, 0])[:, None], [image, action[None]], patch)[0]
