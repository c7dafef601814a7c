"""Grey values of an image as a network learned on them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from medfm_rl.errors import DataError, ModelError
from medfm_rl.settings import IntensitySettings, PreprocessingSettings

_FAILURES: Final = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""What a transform raises where it is given what it does not take; it is the user's code."""


def normalise(image: Tensor, settings: PreprocessingSettings, where: str) -> Tensor:
    """Grey values `(C, *S)` of an image that has its grid already.

    Args:
        image: `(C, *S)` float32.
        settings: How.
        where: What the image is, for messages.

    Raises:
        DataError: A channel cannot be normalised, or the user's transform fails on the image.
        ModelError: The user's transform cannot be imported, or gives no image of the same shape.
    """
    axes = tuple(range(1, image.ndim))
    match settings.intensity:
        case "none":
            return image
        case "zscore":
            return _scaled(image, image.mean(dim=axes, keepdim=True), image.std(dim=axes, keepdim=True), where)
        case "minmax":
            low = image.amin(dim=axes, keepdim=True)
            return _scaled(image, low, image.amax(dim=axes, keepdim=True) - low, where)
        case own:
            return _by_fields(image, own, where)


def _by_fields(image: Tensor, settings: IntensitySettings, where: str) -> Tensor:
    if settings.mean is not None and settings.std is not None:
        return (image - _by_channel(settings.mean, image)) / _by_channel(settings.std, image)
    if settings.divide is not None:
        return image / settings.divide
    if settings.window is not None:
        low, high = settings.window
        return (image.clamp(low, high) - low) / (high - low)
    if settings.percentiles is not None:
        # `torch.quantile` takes 16 million values at most, which a volume may exceed.
        found = np.percentile(image.flatten(1).numpy(), settings.percentiles, axis=1).astype(np.float32)
        shape = (len(image), *[1] * (image.ndim - 1))
        lows, highs = (torch.from_numpy(values).reshape(shape) for values in found)
        return _scaled(image.clamp(lows, highs), lows, highs - lows, where)
    assert settings.transform is not None
    return _by_transform(image, settings.transform, where)


def _scaled(image: Tensor, low: Tensor, scale: Tensor, where: str) -> Tensor:
    if not bool((scale > 0).all()):
        raise DataError(f"{where}: a channel has one value only; it cannot be normalised")
    return (image - low) / scale


def _by_channel(values: float | tuple[float, ...], image: Tensor) -> Tensor:
    return torch.tensor(values, dtype=image.dtype).reshape(-1, *[1] * (image.ndim - 1))


def load_transform(name: str, where: str) -> Callable[[Tensor], Any]:
    """The user's own transform `package.module:name`. Its module is imported, which runs code.

    Raises:
        ModelError: It cannot be imported, or called.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ModelError(
            f"{where}: preprocessing.intensity.transform {name!r} cannot be imported ({error}); correct the name, or "
            "put its folder on PYTHONPATH"
        ) from error
    if not callable(found):
        raise ModelError(
            f"{where}: preprocessing.intensity.transform {name!r} is {type(found).__name__}; a transform or a function "
            "from an image (C, *S) to one is needed"
        )
    return found  # type: ignore[no-any-return]


def _by_transform(image: Tensor, name: str, where: str) -> Tensor:
    transform = load_transform(name, where)
    try:
        found = transform(image.clone())
    except _FAILURES as error:
        raise DataError(f"{where}: preprocessing.intensity.transform {name!r} fails on the image ({error})") from error
    if not isinstance(found, Tensor | np.ndarray) or tuple(found.shape) != tuple(image.shape):
        shape = f"shape {tuple(found.shape)}" if isinstance(found, Tensor | np.ndarray) else type(found).__name__
        raise ModelError(
            f"{where}: preprocessing.intensity.transform {name!r} gives {shape} for an image (C, *S) of shape "
            f"{tuple(image.shape)}; it must change grey values alone, and be the transform itself, not what makes one"
        )
    # MONAI's own tensors carry a history of what was done to them.
    plain = found.detach().as_subclass(Tensor) if isinstance(found, Tensor) else torch.from_numpy(found.copy())
    values = plain.to("cpu", torch.float32).clone()
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"{where}: preprocessing.intensity.transform {name!r} gives NaN or infinite values")
    return values
