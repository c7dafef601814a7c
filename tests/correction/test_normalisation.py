from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.correction.normalisation import (
    InTEnt,
    balanced_entropy,
    estimate_statistics,
    minimise_entropy,
)
from medfm_rl.errors import ModelError
from medfm_rl.networks import pixel_entropy
from medfm_rl.settings import NetworkSettings, PreprocessingSettings
from medfm_rl.types import LabelSchema

SCHEMA = LabelSchema.from_structures({"disc": 1})
SIZE = (16, 16)


def batch_norm_unet() -> TorchModuleAdapter:
    torch.manual_seed(0)
    network = NetworkSettings(channels=(4, 8), residual_units=0, norm="batch")
    return TorchModuleAdapter.build_unet(network, SCHEMA, PreprocessingSettings(size=SIZE)).eval()


def test_statistics_of_the_target_replace_those_of_the_source() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1))
    adapter = TorchModuleAdapter(module, SCHEMA, PreprocessingSettings(size=SIZE)).eval()
    images = 3 + 2 * torch.randn(32, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    estimate_statistics(adapter, images.split(16))
    layer = module[0]
    halves = images.split(16)
    assert torch.allclose(layer.running_mean, images.mean(), atol=1e-5)
    assert torch.allclose(layer.running_var, torch.stack([half.var() for half in halves]).mean(), atol=1e-4)
    assert layer.momentum == 0.1
    assert not layer.training


def test_a_network_without_batch_normalisation_is_refused() -> None:
    adapter = TorchModuleAdapter(nn.Conv2d(1, 2, 1), SCHEMA, PreprocessingSettings(size=SIZE)).eval()
    with pytest.raises(ModelError, match="no batch normalisation"):
        estimate_statistics(adapter, [torch.zeros(2, 1, *SIZE)])


def test_balanced_entropy_weighs_the_predicted_classes_alike() -> None:
    # Three pixels of class 0 without doubt, one of class 1 with even odds but for a hair.
    probabilities = torch.tensor([[1.0, 1.0, 1.0, 0.4999], [0.0, 0.0, 0.0, 0.5001]])
    assert float(balanced_entropy(probabilities)) == pytest.approx(np.log(2) / 2, abs=1e-4)
    # A class that is nowhere predicted does not count.
    assert float(balanced_entropy(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))) == 0.0


def test_intent_mixes_probabilities_and_puts_the_statistics_back() -> None:
    module = batch_norm_unet().module
    before = copy.deepcopy(module.state_dict())
    images = 0.5 + torch.randn(3, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    mixed = InTEnt(module)
    together = mixed(images)
    assert torch.allclose(together.exp().sum(dim=1), torch.ones(3, *SIZE), atol=1e-5)
    # Batch-mates are other cases: they must not matter.
    assert torch.allclose(mixed(images[:1]), together[:1], atol=1e-5)
    # Apart from rounding: standard deviations are stored, and squared again.
    after = module.state_dict()
    assert all(torch.allclose(before[key].float(), after[key].float()) for key in before if "num_batches" not in key)


def test_entropy_falls_by_scale_and_shift_alone() -> None:
    adapter = batch_norm_unet()
    images = torch.randn(4, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    estimate_statistics(adapter, [images])
    before = copy.deepcopy(adapter.state_dict())

    @torch.no_grad()
    def entropy() -> float:
        return float(pixel_entropy(adapter(images).log_softmax(dim=1)).mean())

    start = entropy()
    minimise_entropy(adapter, [images] * 5, 0.01)
    estimate_statistics(adapter, [images])
    assert entropy() < start - 0.01
    norm = set(adapter.trainable("norm"))
    for name, value in adapter.named_parameters():
        assert torch.equal(value, before[name]) == (name not in norm), name
    assert all(value.requires_grad for value in adapter.parameters())


def test_tent_needs_a_scale_and_a_shift() -> None:
    adapter = TorchModuleAdapter(nn.Conv2d(1, 2, 1), SCHEMA, PreprocessingSettings(size=SIZE)).eval()
    with pytest.raises(ModelError, match="no normalisation with a scale and a shift"):
        minimise_entropy(adapter, (), 0.01)
