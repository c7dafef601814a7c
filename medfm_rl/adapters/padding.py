"""Images that are smaller than what a network sees at once."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pad_to_patch(images: Tensor, patch: tuple[int, ...]) -> tuple[Tensor, tuple[slice, ...]]:
    """Zeros around the last axes until no side is shorter than the patch; the odd one comes last.

    That is how nnU-Net and MONAI's sliding windows pad.

    Returns:
        The padded images, and the place of the content in those axes.
    """
    shape = tuple(images.shape[-len(patch) :])
    short = [max(0, size - side) for size, side in zip(patch, shape, strict=True)]
    before = [amount // 2 for amount in short]
    margins = [margin for low, amount in zip(before, short, strict=True) for margin in (amount - low, low)]
    padded = F.pad(images, margins[::-1])
    return padded, tuple(slice(low, low + side) for low, side in zip(before, shape, strict=True))
