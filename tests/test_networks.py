from __future__ import annotations

import pytest
import torch

from medfm_rl.networks import argmax_classes, build_padded_unet, build_unet, mixed_precision
from medfm_rl.settings import NetworkSettings

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_a_network_computes_in_bfloat16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    layer = torch.nn.Conv2d(1, 2, 3)
    with mixed_precision(CPU, 2):
        assert layer(torch.zeros(1, 1, 8, 8)).dtype == dtype
    assert layer(torch.zeros(1, 1, 8, 8)).dtype == torch.float32


def test_a_pytorch_that_does_not_tell_what_the_processor_has_gets_single_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    with mixed_precision(CPU, 2):
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.float32


def test_a_3d_network_trains_in_single_precision_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    layer = torch.nn.Conv3d(128, 128, 3, padding=1)
    images = torch.randn(4, 128, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(layer(images).square().mean(), layer.weight)[0]
    for _ in range(5):
        with mixed_precision(CPU, 3):
            loss = layer(images).float().square().mean()
        assert torch.equal(torch.autograd.grad(loss, layer.weight)[0], expected)


def test_weights_and_gradients_stay_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    torch.manual_seed(0)
    network = build_unet(NetworkSettings(channels=(4, 8)), 2, 1, 2).eval()
    images = torch.randn(2, 1, 16, 16)
    exact = torch.autograd.grad(network(images).square().mean(), list(network.parameters()))
    with mixed_precision(CPU, 2):
        logits = network(images)
    rough = torch.autograd.grad(logits.float().square().mean(), list(network.parameters()))
    assert {gradient.dtype for gradient in rough} == {torch.float32}
    one, other = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (exact, rough))
    # bfloat16 has 8 significant bits: a few roundings of 1/256 add up.
    assert (one - other).norm() < 0.05 * one.norm()


@pytest.mark.parametrize("size", [(8, 12), (16, 8, 4)])
def test_padding_changes_neither_weights_nor_results_where_there_is_nothing_to_pad(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = build_unet(NetworkSettings(channels=(4, 8, 8)), len(size), 2, 3).eval()
    padded = build_padded_unet(NetworkSettings(channels=(4, 8, 8)), len(size), 2, 3).eval()
    assert list(padded.state_dict()) == list(plain.state_dict())
    padded.load_state_dict(plain.state_dict())
    images = torch.randn(2, 2, *size)
    assert torch.equal(padded(images), plain(images))


def test_a_side_that_cannot_be_halved_is_grown_by_its_last_pixels_and_cut_again() -> None:
    torch.manual_seed(0)
    network = build_padded_unet(NetworkSettings(channels=(4, 8, 8)), 2, 1, 1).eval()
    images = torch.randn(1, 1, 8, 12)
    images[:, :, 6:], images[:, :, :, 9:] = images[:, :, 5:6], images[:, :, :, 8:9]
    assert torch.equal(network(images[:, :, :6, :9]), network(images)[:, :, :6, :9])


@pytest.mark.parametrize(("shape", "dim"), [((3, 4, 5), 0), ((2, 3, 4, 5), 1), ((2, 3, 4, 5, 6), 1)])
def test_the_class_is_the_first_of_the_largest_values(shape: tuple[int, ...], dim: int) -> None:
    few_values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).float()
    found = argmax_classes(few_values, dim)
    assert found.dtype == torch.int64
    assert torch.equal(found, torch.from_numpy(few_values.numpy().argmax(dim)))
