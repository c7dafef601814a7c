"""What a network keeps for its gradient, counted by hand, and computed again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from medfm_rl.activations import measure_activations, recomputed_activations
from medfm_rl.networks import build_unet
from medfm_rl.settings import NetworkSettings


def block(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels, 3, padding=1), nn.Softplus(), nn.Softplus())


def unet(ndim: int) -> nn.Module:
    torch.manual_seed(0)
    return build_unet(NetworkSettings(channels=(4, 8, 16), residual_units=2), ndim, 1, 3).eval()


def gradients(network: nn.Module, images: Tensor, recompute: bool) -> list[Tensor]:
    network.zero_grad()
    with recomputed_activations(network, recompute):
        found = network(images)
    found.square().mean().backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def test_what_two_blocks_keep_is_what_counting_by_hand_gives() -> None:
    """Each block keeps what enters its three layers: the image or the one before, and two of its own channels."""
    network = nn.Sequential(block(1, 4), block(4, 2))
    found = measure_activations(network, torch.rand(1, 1, 8, 8))
    plane = 4 * 8 * 8
    # The second block is entered by what leaves the first, 4 channels.
    assert found.kept == plane * (1 + 4 + 4 + 4 + 2 + 2)
    first, second = plane * (1 + 4 + 4), plane * (4 + 2 + 2)
    assert found.recomputed == plane * (1 + 4) + max(first, second)


@pytest.mark.parametrize("ndim", [2, 3])
def test_gradients_of_what_is_computed_again_are_the_same(ndim: int) -> None:
    network, images = unet(ndim), torch.randn(1, 1, *(16,) * ndim)
    kept, again = gradients(network, images, False), gradients(network, images, True)
    assert len(kept) == len(list(network.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


@pytest.mark.parametrize("ndim", [2, 3])
def test_less_is_kept_and_nothing_is_left_behind(ndim: int) -> None:
    network, images = unet(ndim), torch.randn(1, 1, *(16,) * ndim)
    frozen = next(iter(network.parameters())).requires_grad_(False)
    found = measure_activations(network, images)
    assert 0 < found.recomputed < 0.8 * found.kept
    assert not frozen.requires_grad
    with recomputed_activations(network):
        network(images)
    assert all("forward" not in part.__dict__ for part in network.modules())
    # A copy computes with its own weights.
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.equal(twin(images), network(images))


class Scaled(nn.Module):
    """A block that is called by a name of its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.bend = nn.PReLU()

    def forward(self, images: torch.Tensor, *, scale: float) -> torch.Tensor:
        return scale * self.bend(self.convolution(images))


class Calling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Scaled()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.block(images, scale=2.0)
        return found


def test_a_block_may_be_called_with_named_arguments() -> None:
    network, images = Calling(), torch.randn(1, 1, 8, 8)
    kept, again = gradients(network, images, False), gradients(network, images, True)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
