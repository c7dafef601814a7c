"""Low-rank adaptation (Hu et al., ICLR 2022, arXiv 2106.09685): one mechanism for the networks of every tool.

A weight W becomes W + (alpha / rank) B A, W stays as it is and only A and B learn. B is zero at the start, so that the
network is what it was. It is a parametrization of the layer itself and not a new layer in its place: layers that a
network knows under several names, as those of nnU-Net, learn all the same, and so do fused projections of attention.

To whatever reads or writes weights there is nothing to see: the state dict of such a network holds the merged weights
under the original names, and loading one makes them the new W, with B zero. So checkpoints, averages of weights and
exports are those of the tool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from medfm_rl.errors import ModelError
from medfm_rl.settings import LoRASettings

_WEIGHT: Final = "weight"


class LowRank(nn.Module):
    """A weight and a low-rank change of it; more than two axes count as one but for the first.

    Args:
        weight: The weight, `(N, ...)`.
        settings: Rank and alpha; the rank is never more than that of the weight.
        generator: Draws A; B is zero.
    """

    def __init__(self, weight: Tensor, settings: LoRASettings, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        rank = min(settings.rank, rows, columns)
        self.scale = settings.alpha / rank
        drawn = (2 * torch.rand(rank, columns, generator=generator) - 1) / columns**0.5
        self.down = Parameter(drawn.to(weight))
        self.up = Parameter(torch.zeros(rows, rank).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight."""
        return weight + self.scale * (self.up @ self.down).reshape(weight.shape)


def add_low_rank(
    module: nn.Module, parameters: Mapping[str, Parameter], settings: LoRASettings, generator: torch.Generator
) -> None:
    """Gives linear and convolutional layers a low-rank part, in place.

    Args:
        module: The network.
        parameters: Those of the network whose layers get a part. A weight that several layers share gets none.
        settings: Rank and alpha.
        generator: A CPU generator.

    Raises:
        ModelError: It is TorchScript, has low-rank parts already, or no such layer.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise ModelError("a TorchScript network takes no low-rank parts; use segmenter.train: all, or a factory")
    if low_rank_parameters(module):
        raise ModelError("the network has low-rank parts already")
    wanted = {id(parameter) for parameter in parameters.values()}
    owners = Counter(id(parameter) for part in module.modules() for parameter in part._parameters.values())
    layers = [
        part
        for part in module.modules()
        if isinstance(part, nn.Linear | _ConvNd) and id(part.weight) in wanted and owners[id(part.weight)] == 1
    ]
    if not layers:
        raise ModelError(
            "the network has no linear or convolutional layer for low-rank parts; use segmenter.train: all"
        )
    for layer in layers:
        parametrize.register_parametrization(layer, _WEIGHT, LowRank(layer.weight, settings, generator))
        layer.register_state_dict_post_hook(_save_merged)  # type: ignore[no-untyped-call]
        layer.register_load_state_dict_pre_hook(_load_merged)  # type: ignore[no-untyped-call]


def low_rank_parameters(module: nn.Module) -> dict[str, Parameter]:
    """A and B of every low-rank part, by name."""
    return {
        f"{name}.{of_part}": parameter
        for name, part in module.named_modules()
        if isinstance(part, LowRank)
        for of_part, parameter in part.named_parameters()
    }


def _save_merged(layer: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    del metadata
    inner = f"{prefix}parametrizations.{_WEIGHT}."
    for name in [name for name in state if name.startswith(inner)]:
        del state[name]
    state[prefix + _WEIGHT] = getattr(layer, _WEIGHT).detach()


def _load_merged(layer: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    del others
    if prefix + _WEIGHT not in state:
        return
    part = getattr(layer.parametrizations, _WEIGHT)[0]
    inner = f"{prefix}parametrizations.{_WEIGHT}."
    state[f"{inner}original"] = state.pop(prefix + _WEIGHT)
    state[f"{inner}0.down"], state[f"{inner}0.up"] = part.down.detach(), torch.zeros_like(part.up)
