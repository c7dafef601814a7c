"""One pass of a segmenter's network, to find out whether it can be adapted before anything depends on it."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from medfm_rl.adapters.base import SegmenterAdapter, noise_patch
from medfm_rl.adapters.conformance import ConformanceError, check_logits
from medfm_rl.adapters.probabilities import probabilities_in
from medfm_rl.errors import UserError

_FAILURES: Final = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""What networks raise where they are given what they do not take; it is the user's code."""


@torch.no_grad()
def find_obstacles(adapter: SegmenterAdapter, device: torch.device) -> tuple[str, ...]:
    """Why a segmenter cannot be adapted; empty where it can. Its network runs once, on noise of the size of a patch.

    Args:
        adapter: It is left on the device, in evaluation mode.
        device: Where the network runs.
    """
    found = adapter.obstacles()
    adapter.to(device).eval()
    images = noise_patch(adapter).to(adapter.device)
    try:
        logits: Tensor = adapter(images)
        check_logits(logits, adapter.schema.num_classes, images)
        probabilities = probabilities_in(logits, adapter, images)
        if probabilities is not None:
            return (*found, probabilities)
        adapter.trainable("all")
    except (UserError, ConformanceError) as error:
        return (*found, str(error))
    except torch.OutOfMemoryError:
        return (*found, f"one patch of shape {tuple(images.shape)} does not fit into the memory of {device}")
    except _FAILURES as error:
        return (
            *found,
            f"the network fails on an image of shape {tuple(images.shape)}, which is that of the channels and the "
            f"patch it is described with ({_cause(error)}); correct the description or the network",
        )
    return found


def _cause(error: Exception) -> str:
    """What went wrong, in one line; TorchScript says it last, after where."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (lines[-1] if "TorchScript" in lines[0] else lines[0]).strip()[:160]
