"""The faster PReLU computes what PyTorch's does, to the last bit, and networks keep their weights under their names."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medfm_rl.networks import build_unet
from medfm_rl.prelu import FastPReLU, with_fast_prelu
from medfm_rl.settings import NetworkSettings


def gradients(module: nn.PReLU, values: Tensor, towards: Tensor, lower: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the gradients of values and slope."""
    values = values.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        found = module(values)
    found.backward(towards.to(found.dtype))
    assert values.grad is not None
    assert module.weight.grad is not None
    return found.detach(), values.grad, module.weight.grad


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=5).map(tuple),
    slope=st.floats(-2, 2, width=32),
    kind=st.sampled_from([(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)]),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_those_of_pytorch(
    shape: tuple[int, ...], slope: float, kind: tuple[torch.dtype, bool], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Halves, so that 0 itself, where the slope changes, is among them.
    values = (torch.randint(-4, 5, shape, generator=generator) / 2).to(kind[0])
    towards = torch.randn(shape, generator=generator)
    plain, fast = nn.PReLU(init=slope), FastPReLU(init=slope)
    for found, expected in zip(
        gradients(fast, values, towards, kind[1]), gradients(plain, values, towards, kind[1]), strict=True
    ):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(16, 16, 56, 56), (2, 8, 24, 24, 24)])
@pytest.mark.parametrize("lower", [False, True])
def test_large_sums_are_rounded_as_pytorch_rounds_them(shape: tuple[int, ...], lower: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values, towards = (torch.randn(shape, generator=generator) for _ in range(2))
    for found, expected in zip(
        gradients(FastPReLU(), values, towards, lower), gradients(nn.PReLU(), values, towards, lower), strict=True
    ):
        assert torch.equal(found, expected)


def test_a_slope_for_each_channel_is_left_to_pytorch() -> None:
    fast, plain = FastPReLU(3), nn.PReLU(3)
    values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(
        gradients(fast, values, values, False), gradients(plain, values, values, False), strict=True
    ):
        assert torch.equal(found, expected)


def test_a_network_learns_the_same_and_keeps_its_names() -> None:
    torch.manual_seed(0)
    fast = build_unet(NetworkSettings(channels=(4, 8)), 2, 1, 3)
    assert any(isinstance(module, FastPReLU) for module in fast.modules())
    plain = copy.deepcopy(fast)
    for parent in plain.modules():
        for name, child in parent.named_children():
            if isinstance(child, FastPReLU):
                slow = nn.PReLU()
                slow.weight = child.weight
                setattr(parent, name, slow)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 1, 16, 16)
    for network in (fast, plain):
        network(images).square().mean().backward()
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_a_shared_activation_stays_one_parameter() -> None:
    shared = nn.PReLU()
    network = with_fast_prelu(nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared))
    assert isinstance(network, nn.Sequential)
    assert network[1].weight is network[3].weight
    assert len(list(network.parameters())) == 5
