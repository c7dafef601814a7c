"""Small pictures of cases: the image, and the contours of its mask."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.image import imsave

from medfm_rl.reports.figures import overlay_in
from medfm_rl.types import FloatArray, IntArray

_Picture = npt.NDArray[np.float64]
_SHOWN_RANGE = [1, 99]
"""Percentiles that are shown black and white."""


def thumbnail_of_case(image: FloatArray, labels: IntArray | None, colours: Mapping[int, str], side: int) -> bytes:
    """The mask on its image as a PNG, no larger than it has to be.

    Three channels are shown as colours, others by the first.

    Args:
        image: `(C, *S)`; of a volume the plane with most of the mask is shown, or the middle one.
        labels: Integers `(*S)`, or None where there is no mask.
        colours: Colours of the integers; those without one are not drawn.
        side: Pixels of the longer side at most.
    """
    if image.ndim == 4:
        plane = image.shape[1] // 2
        if labels is not None:
            drawn = np.isin(labels, list(colours)).sum(axis=(1, 2))
            plane = int(drawn.argmax()) if drawn.any() else plane
            labels = labels[plane]
        image = image[:, plane]
    step = max(1, -(-max(image.shape[1:]) // side))
    image = image[:, ::step, ::step]
    shown = in_greys(image[0]) if len(image) != 3 else np.moveaxis(_window(image), 0, -1).astype(np.float64)
    if labels is not None:
        shown = under(shown, overlay_in(labels[::step, ::step], colours))
    return png_bytes(shown)


def in_greys(image: FloatArray) -> _Picture:
    """An image `(H, W)` in greys, RGB `(H, W, 3)` in [0, 1]."""
    return np.repeat(_window(image)[..., None], 3, axis=2).astype(np.float64)


def under(picture: _Picture, layer: _Picture) -> _Picture:
    """A picture `(H, W, 3)` with a layer `(H, W, 4)` on it."""
    return picture * (1 - layer[..., 3:]) + layer[..., :3] * layer[..., 3:]


def png_bytes(picture: _Picture) -> bytes:
    """A picture `(H, W, 3)` as PNG."""
    buffer = io.BytesIO()
    # Half the time of the default, and no larger.
    imsave(buffer, np.clip(picture, 0, 1), format="png", pil_kwargs={"compress_level": 3})
    return buffer.getvalue()


def _window(image: FloatArray) -> FloatArray:
    low, high = np.percentile(image, _SHOWN_RANGE)
    windowed: FloatArray = np.clip((image - low) / max(float(high - low), 1e-9), 0, 1)
    return windowed
