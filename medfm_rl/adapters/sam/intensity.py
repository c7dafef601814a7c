"""Grey values as the tools of the MedSAM family take them."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from medfm_rl.errors import DataError

_LARGEST: Final = 255.0


def minmax(image: Tensor, where: str) -> Tensor:
    """An image with its smallest value at 0 and its largest at 1.

    Raises:
        DataError: It has one value only.
    """
    low, high = image.min(), image.max()
    if low == high:
        raise DataError(f"{where}: the image has one value only; it cannot be normalised")
    return (image - low) / (high - low)


def from_bytes(image: Tensor, where: str) -> Tensor:
    """An image of grey values from 0 to 255, divided by 255; one that stays within [0, 1] is left as it is.

    Raises:
        DataError: It has values beyond.
    """
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > _LARGEST:
        raise DataError(
            f"{where}: values from {low:g} to {high:g}; this segmenter takes 0 to 255. Window the images, or write "
            '"intensity": "minmax" in segmenter.json'
        )
    return image / _LARGEST if high > 1 else image
