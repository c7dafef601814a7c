"""Whether the values that a network is shown can be those that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from medfm_rl.adapters.base import SegmenterAdapter, evaluating

_MOST_TIMES: Final = 4.0
"""How far the spread may be from what a batch normalisation remembers, and how many of its spreads the mean: another
scanner moves both by less than two, a division by 255 that is missing by a hundred."""
_USUAL_MOST: Final = 20.0
"""Beyond this a network without a normalisation of its own hardly ever learned."""
_STATED_MOST: Final = 100.0
"""The same where somebody has stated how values are scaled: air in CT that is centred on soft tissue lies at -30, and
a division by 255 that is missing makes 1,000 of 5."""
_STATED_LEAST: Final = 0.01
"""And the least that the largest value can be: of 8 bits, divided by 255 twice, .004 is left."""
_MANY: Final = 0.01
"""Share of the values that must lie beyond it: metal in CT is less."""
_NORMALISATIONS: Final = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_REMEDY: Final = (
    "say in preprocessing.intensity how the images were scaled that it learned on, such as {divide: 255} or "
    "{mean: .., std: ..}"
)


@torch.no_grad()
def range_doubts(adapter: SegmenterAdapter, images: Tensor) -> tuple[str, ...]:
    """Why a network was hardly trained on such values; empty where nothing speaks against it.

    A batch normalisation remembers mean and variance of what came to it in training. The first one that images pass
    tells what they had to look like; one that was never trained, or is not there, tells nothing. A network whose first
    normalisation is by image does not care how its input is scaled.

    Args:
        adapter: A segmenter that has no obstacle.
        images: Some that were preprocessed for it, `(N, C, *S)` of its patch size.
    """
    with evaluating(adapter), _first_normalisation(adapter) as seen:
        adapter(images.to(adapter.device))
    grey = images[:, : adapter.intensity_channels]
    low, high = float(grey.min()), float(grey.max())
    if low == high:
        return (_constant(low, adapter.stated_scaling),)
    first, entering = seen[0] if seen else (None, None)
    if isinstance(first, nn.modules.batchnorm._BatchNorm) and entering is not None:
        remembered = _remembered(first)
        if remembered is not None:
            return _unlike(entering, *remembered, low, high)
    by_image = isinstance(first, nn.modules.instancenorm._InstanceNorm | nn.GroupNorm | nn.LayerNorm)
    return () if by_image else _beyond_use(grey, adapter.stated_scaling, low, high)


def _constant(value: float, scaling: str | None) -> str:
    how = "" if scaling in (None, "none") else f" (intensity: {scaling})"
    return (
        f"the network is shown nothing but the value {value:.4g}{how}: in the middle of each of a few images there is "
        f"nothing to be seen; look at them, and {_REMEDY}"
    )


def _beyond_use(grey: Tensor, scaling: str | None, low: float, high: float) -> tuple[str, ...]:
    """Whether hardly any network learned on values of such a size, where nothing in the network tells."""
    usual = f"and most networks learned on values of about -3 to 3; {_REMEDY}"
    if scaling == "none":
        if max(-low, high) > _USUAL_MOST:
            shown = f"values from {low:.4g} to {high:.4g}, as they stand in the files (intensity: none)"
            return (f"the network is shown {shown}, {usual}",)
    elif scaling is not None:
        small = max(-low, high) < _STATED_LEAST
        if small or float((grey.abs() > _STATED_MOST).float().mean()) > _MANY:
            ranges = "0 to 255 and not 0 to 1" if small else "0 to 1 and not 0 to 255"
            return (
                f"with intensity: {scaling} the network is shown values from {low:.4g} to {high:.4g}, {usual}; this "
                f"one may be for images of another range, such as {ranges}",
            )
    return ()


@contextmanager
def _first_normalisation(network: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Gives a list that takes up the first layer of normalisation that is called in the block, and its input."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not seen:
            seen.append((module, inputs[0].detach().float().cpu()))

    layers = [module for module in network.modules() if isinstance(module, _NORMALISATIONS)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _remembered(layer: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation of each channel in training; None where the layer has none or never learned."""
    mean, variance = layer.running_mean, layer.running_var
    if mean is None or variance is None or (bool((mean == 0).all()) and bool((variance == 1).all())):
        return None
    return mean.float().cpu(), variance.float().cpu().clamp_min(1e-12).sqrt()


def _unlike(entering: Tensor, mean: Tensor, spread: Tensor, low: float, high: float) -> tuple[str, ...]:
    values = entering.movedim(1, 0).flatten(1)
    times = float((values.std(dim=1) / spread).median())
    away = float(((values.mean(dim=1) - mean).abs() / spread).median())
    if 1 / _MOST_TIMES <= times <= _MOST_TIMES and away <= _MOST_TIMES:
        return ()
    return (
        f"the network was hardly trained on values as it is shown, {low:.4g} to {high:.4g}: what comes to its first "
        f"batch normalisation varies {times:.3g} times as much as in training, and lies {away:.3g} standard deviations "
        f"of then away; {_REMEDY}",
    )
