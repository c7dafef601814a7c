"""Whether what a network gives as logits are probabilities, as of a network that ends in a softmax or a sigmoid."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from medfm_rl.adapters.overlapping import region_logits
from medfm_rl.data.notices import warn_once
from medfm_rl.types import LabelSchema

SOFTMAX: Final = "the logits sum to 1: they are probabilities; give what comes before the softmax"
SIGMOID: Final = "the logits are the probabilities of a sigmoid; give what comes before it"
_ROUNDING = 1e-3
"""What a sum of probabilities differs from 1 in half precision."""
_SUMS: Final = ("CatBackward0", "AddBackward0", "SliceBackward0")
"""What logits of sets of regions are made with."""


def probabilities_in(logits: Tensor, network: nn.Module, images: Tensor) -> str | None:
    """What is wrong with logits that are probabilities; None where they are none.

    Numbers that sum to 1 everywhere come from a softmax. From numbers between 0 and 1 alone nobody can tell: of those
    it is asked whether a sigmoid is the last thing that the network does.

    Args:
        logits: `(B, K, *S)`, at least two classes.
        network: The module that they come from.
        images: `(B, C, *S)` of the patch size, that the network can be shown once more.
    """
    schema = getattr(network, "schema", None)
    if isinstance(schema, LabelSchema) and schema.overlaps:
        return _of_regions(logits, network, images)
    if not (float(logits.min()) >= 0 and float(logits.max()) <= 1 + _ROUNDING):
        return None
    sums = logits.float().sum(dim=1)
    if torch.allclose(sums, torch.ones_like(sums), atol=_ROUNDING):
        return SOFTMAX
    return SIGMOID if _ends_in_a_sigmoid(network, images) else None


def warn_of_probabilities(logits: Tensor, network: nn.Module, images: Tensor) -> None:
    """Says once that a mask comes from probabilities; the arguments are those of `probabilities_in`.

    The largest of them is that of the largest logit, so the mask is right; nothing else that is made of them is.
    """
    found = probabilities_in(logits, network, images)
    if found is not None:
        warn_once(
            f"the network of this segmenter gives no logits: {found}. Masks are the same, confidences are wrong, and "
            "adapt refuses this segmenter. Take its last layer off, or wrap it in a factory that does"
        )


def _of_regions(logits: Tensor, network: nn.Module, images: Tensor) -> str | None:
    """The same of logits of sets of regions that overlap, which are sums of the channels of a network."""
    z = torch.stack([region_logits(each) for each in logits])
    if not (float(z.min()) >= 0 and float(z.max()) <= 1 + _ROUNDING):
        return None
    with torch.enable_grad():
        waiting = [network(images.detach().clone().requires_grad_()).grad_fn]
    while waiting:
        function = waiting.pop()
        if type(function).__name__ == "SigmoidBackward0":
            return SIGMOID
        if type(function).__name__ in _SUMS:
            waiting += [before for before, _ in function.next_functions]
    return None


def _ends_in_a_sigmoid(network: nn.Module, images: Tensor) -> bool:
    # A network that is frozen has a gradient at its input alone.
    with torch.enable_grad():
        logits: Tensor = network(images.detach().clone().requires_grad_())
    return _is_of_a_sigmoid(logits.grad_fn)


def _is_of_a_sigmoid(step: Any) -> bool:
    """Whether a step of the graph is a sigmoid, or puts one beside the zeros of the background."""
    name = type(step).__name__
    if name in ("CatBackward0", "StackBackward0"):
        parts = [part for part, _ in step.next_functions if part is not None]
        return bool(parts) and all(_is_of_a_sigmoid(part) for part in parts)
    return name == "SigmoidBackward0"
