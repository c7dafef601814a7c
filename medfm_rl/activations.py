"""What a network keeps for its gradient, and how to keep less of it by computing it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_MOST_CONVOLUTIONS: Final = 3
"""Of a block: what lies between two places where activations are kept. A residual unit has up to three."""


@dataclass(frozen=True)
class Activations:
    """Bytes that one image leaves in the memory until its gradient is computed.

    Attributes:
        kept: Where everything is kept.
        recomputed: Where only what enters each block is kept, and one block at a time is computed again.
    """

    kept: int
    recomputed: int


def measure_activations(network: nn.Module, images: Tensor) -> Activations:
    """Runs a network once with a graph, which is thrown away.

    Args:
        network: Images to a tensor; its mode stays, and no gradient is computed.
        images: One image `(1, C, *S)`, on its device.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    seen: set[int] = set()
    kept = [0]
    entering, within = list[int](), list[int]()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept[0] += storage.nbytes()
        return tensor

    def note(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
        before = kept[0]
        entering.append(sum(value.nbytes for value in inputs if isinstance(value, Tensor)))
        result = forward(*inputs, **named)
        within.append(kept[0] - before)
        return result

    wanted = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    try:
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            _blocks_called_by(network, note),
        ):
            # Held until all is counted: the memory of what is freed would be given to others, and counted once.
            result = network(images)
        del result
    finally:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(wanted[name])
    recomputed = kept[0] - sum(within) + sum(entering) + max(within, default=0)
    return Activations(kept[0], min(kept[0], recomputed))


@contextmanager
def recomputed_activations(network: nn.Module, wanted: bool = True) -> Iterator[None]:
    """What a network computes in the block keeps what enters its blocks, and computes the rest again for the gradient.

    About a third more time for a fraction of the memory (Chen et al., arXiv 1604.06174). Blocks are the smallest parts
    of a few convolutions each; a TorchScript has none, and is left as it is. Gradients are the same.

    Args:
        network: The network.
        wanted: Where False, nothing is other than outside.
    """
    if not wanted:
        yield
        return

    def again(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False, **named)

    with _blocks_called_by(network, again):
        yield


@contextmanager
def _blocks_called_by(network: nn.Module, call: Callable[..., Any]) -> Iterator[None]:
    blocks = list(_blocks(network))
    for block in blocks:
        # On the instance: it goes before the method of the class, and leaves no trace when it is removed.
        block.__dict__["forward"] = partial(call, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of a network that have at most so many convolutions, and something beside one."""
    for child in module.children():
        if isinstance(child, torch.jit.ScriptModule):
            continue
        convolutions = sum(isinstance(part, nn.modules.conv._ConvNd) for part in child.modules())
        leaves = sum(not any(True for _ in part.children()) for part in child.modules())
        callable_part = type(child).forward is not nn.Module.forward and "forward" not in child.__dict__
        if 1 <= convolutions <= _MOST_CONVOLUTIONS and leaves > 1 and callable_part:
            yield child
        else:
            yield from _blocks(child)
