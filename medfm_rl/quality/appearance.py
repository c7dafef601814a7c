"""The look of an image, whatever its mask: where it is bright, how its grey values spread, how fine it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_CELLS = {2: 8, 3: 4}
_PARTS = 64
"""Cells of an image, whatever its dimensions."""
_DECILES = 11
_OCTAVES = 4
LEAST_SCALE = 0.1
"""Differences of these numbers below a tenth of an image's standard deviation are none: a corner that is black in
every calibration image may be nearly black in another."""


def appearance(images: Tensor) -> Tensor:
    """Numbers that tell an image of another modality, view or orientation, `(B, F)` double precision on the CPU.

    Each channel is brought to zero mean and unit variance. The numbers are its means over a coarse grid of cells
    (8 x 8, 4 x 4 x 4), its deciles, and the logarithm of the mean absolute detail in four octaves. They come from the
    pixels and not from a network, which is free to see nothing in what it never learned to look at.

    Args:
        images: `(B, C, *S)`, 2-D or 3-D.
    """
    ndim = images.ndim - 2
    pool, average = (F.adaptive_avg_pool2d, F.avg_pool2d) if ndim == 2 else (F.adaptive_avg_pool3d, F.avg_pool3d)
    axes = tuple(range(2, images.ndim))
    centred = images.float() - images.float().mean(dim=axes, keepdim=True)
    level = centred / centred.square().mean(dim=axes, keepdim=True).sqrt().clamp_min(1e-6)
    ordered = level.flatten(2).sort(dim=2).values
    ranks = _decile_ranks(ordered.shape[2]).to(images.device)
    found = [pool(level, _CELLS[ndim]).flatten(1), ordered[..., ranks].clamp(-5, 5).flatten(1)]
    for _ in range(_OCTAVES):
        # Along an axis that has come to its end the image stays: images of all sizes have as many numbers.
        coarse = average(level, [min(2, side) for side in level.shape[2:]], ceil_mode=True)
        detail = level - F.interpolate(coarse, size=level.shape[2:], mode="nearest")
        found.append(detail.abs().flatten(2).mean(dim=2).clamp_min(1e-3).log())
        level = coarse
    return torch.cat(found, dim=1).cpu().double()


def _decile_ranks(count: int) -> Tensor:
    """Places of the deciles, the extremes included, among ordered values."""
    # Single precision counts to 2^24, and volumes have more voxels.
    return torch.linspace(0, count - 1, _DECILES, dtype=torch.float64).round().long()


def meaning_of_number(place: int, count: int, higher: bool) -> str:
    """What it means, in words, that one of the numbers of `appearance` is higher, or lower.

    Args:
        place: Which, counted from 0.
        count: How many there are.
        higher: Whether it is.
    """
    channels = count // (_PARTS + _DECILES + _OCTAVES)
    if place < channels * _PARTS:
        channel, part = divmod(place, _PARTS)
        row, column = divmod(part, _CELLS[2])
        where = f"part {part + 1} of {_PARTS} (of 2-D images row {row + 1}, column {column + 1} of 8)"
        said = f"images are {'brighter' if higher else 'darker'} in {where}"
    elif place < channels * (_PARTS + _DECILES):
        channel, decile = divmod(place - channels * _PARTS, _DECILES)
        said = f"the {10 * decile} % quantile of grey values is {'higher' if higher else 'lower'}"
    else:
        octave, channel = divmod(place - channels * (_PARTS + _DECILES), channels)
        said = f"images have {'more' if higher else 'less'} detail of {2**octave} to {2 ** (octave + 1)} pixels"
    return said if channels == 1 else f"{said} in channel {channel + 1} of {channels}"
