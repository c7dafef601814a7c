"""Low-rank parts on the networks of torch; `check_adapter` looks at them for every adapter."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from medfm_rl.adapters import TorchModuleAdapter, add_low_rank
from medfm_rl.errors import ModelError
from medfm_rl.settings import LoRASettings, PreprocessingSettings
from medfm_rl.types import LabelSchema


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def named(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters())


def with_low_rank(module: nn.Module, **settings: object) -> nn.Module:
    add_low_rank(module, named(module), LoRASettings.model_validate(settings), seeded())
    return module


def change(module: nn.Module) -> None:
    """Sets every part to a change that shows."""
    with torch.no_grad():
        for name, parameter in named(module).items():
            if name.endswith((".up", ".down")):
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(len(name))))


def test_a_weight_changes_by_alpha_over_rank_times_the_product() -> None:
    layer = nn.Linear(3, 2)
    initial = layer.weight.detach().clone()
    with_low_rank(layer, rank=1, alpha=6.0)
    assert torch.equal(layer.weight, initial)
    part = layer.parametrizations.weight[0]
    with torch.no_grad():
        part.down.copy_(torch.tensor([[1.0, 0.0, 2.0]]))
        part.up.copy_(torch.tensor([[1.0], [-1.0]]))
    expected = torch.tensor([[6.0, 0.0, 12.0], [-6.0, 0.0, -12.0]])
    torch.testing.assert_close(layer.weight - initial, expected)


def test_the_rank_is_never_more_than_that_of_the_weight() -> None:
    layer = with_low_rank(nn.Conv2d(1, 8, 1), rank=4)
    assert layer.parametrizations.weight[0].down.shape == (1, 1)  # type: ignore[union-attr, index]


def test_the_state_dict_is_that_of_the_merged_network() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 4, 2)).eval()
    network = with_low_rank(copy.deepcopy(plain))
    change(network)
    images = torch.randn(2, 1, 4, 4, generator=seeded())
    assert network.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(images), network(images))


def test_loading_weights_makes_them_the_new_start() -> None:
    network, other = with_low_rank(nn.Linear(3, 2)), nn.Linear(3, 2)
    change(network)
    network.load_state_dict(other.state_dict())
    assert torch.equal(network.weight, other.weight)


def test_copies_share_nothing() -> None:
    network = with_low_rank(nn.Linear(3, 2))
    before = network.weight.detach().clone()
    twin = copy.deepcopy(network)
    change(twin)
    assert not torch.equal(twin.weight, before)
    assert torch.equal(network.weight, before)
    assert torch.equal(twin.state_dict()["weight"], twin.weight)


class Aliased(nn.Module):
    """As nnU-Net does it: a layer under two names, of which the pass uses the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.all_modules = nn.Sequential(self.conv, nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.all_modules(images)
        return features


def test_layers_under_two_names_learn_and_are_saved_under_both() -> None:
    network = Aliased()
    keys = network.state_dict().keys()
    with_low_rank(network)
    change(network)
    network(torch.ones(1, 1, 2, 2)).sum().backward()
    assert network.conv.parametrizations.weight[0].down.grad is not None  # type: ignore[union-attr, index]
    state = network.state_dict()
    assert state.keys() == keys
    assert torch.equal(state["conv.weight"], state["all_modules.0.weight"])
    assert torch.equal(state["conv.weight"], network.conv.weight)


def test_weights_that_two_layers_share_stay_shared() -> None:
    one, two, three = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    two.weight = one.weight
    network = with_low_rank(nn.Sequential(one, two, three))
    change(network)
    assert torch.equal(network[0].weight, network[1].weight)  # type: ignore[index]
    assert {name.partition(".")[0] for name in named(network) if name.endswith(".up")} == {"2"}


def test_parts_are_added_once_and_only_where_there_are_layers() -> None:
    with pytest.raises(ModelError, match="already"):
        with_low_rank(with_low_rank(nn.Linear(2, 2)))
    with pytest.raises(ModelError, match="no linear or convolutional layer"):
        with_low_rank(nn.BatchNorm2d(3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_torchscript_is_refused() -> None:
    module = torch.jit.script(nn.Conv2d(1, 2, 1))
    schema, preprocessing = LabelSchema.from_structures({"LV": 1}), PreprocessingSettings(size=(8, 8))
    adapter = TorchModuleAdapter(module, schema, preprocessing)
    with pytest.raises(ModelError, match="TorchScript network takes no low-rank parts"):
        with_low_rank(adapter)


def test_the_decoder_alone_can_have_them(tiny_unet: TorchModuleAdapter, tmp_path: Path) -> None:
    decoder = tiny_unet.trainable("decoder")
    add_low_rank(tiny_unet, decoder, LoRASettings(), seeded())
    added = {name.partition(".parametrizations")[0] for name in tiny_unet.trainable("lora")}
    assert added == {name.removesuffix(".weight") for name, value in decoder.items() if value.ndim > 1}
    change(tiny_unet)
    images = torch.randn(2, 1, 16, 16, generator=seeded())
    tiny_unet.export(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(TorchModuleAdapter.load(tmp_path / "out")(images), tiny_unet(images))


def test_there_is_no_scope_lora_without_them(tiny_unet: TorchModuleAdapter) -> None:
    with pytest.raises(ModelError, match="no parameters in the scope 'lora'"):
        tiny_unet.trainable("lora")
