"""What a network tells of the values that it was trained on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.value_range import range_doubts
from medfm_rl.settings import PreprocessingSettings
from medfm_rl.types import LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1})


def adapter_of(*layers: nn.Module, intensity: str = "none") -> TorchModuleAdapter:
    settings = PreprocessingSettings(size=(16, 16), intensity=intensity)  # type: ignore[arg-type]
    return TorchModuleAdapter(nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(4, 2, 1)), SCHEMA, settings).eval()


def images(scale: float = 1.0, offset: float = 0.0) -> Tensor:
    return offset + scale * torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def trained_on(values: Tensor) -> TorchModuleAdapter:
    torch.manual_seed(0)
    adapter = adapter_of(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
    adapter.train()
    for _ in range(50):
        adapter(values)
    return adapter.eval()


def test_a_batch_normalisation_knows_values_that_it_was_not_trained_on() -> None:
    adapter = trained_on(images())
    assert range_doubts(adapter, images()) == ()
    # Another gain and offset, as scanners differ.
    assert range_doubts(adapter, images(1.6, 0.2)) == ()
    (doubt,) = range_doubts(adapter, images(255))
    assert "0.1" in doubt or "0 to 2" in doubt or "to 25" in doubt
    assert "{divide: 255}" in doubt
    assert not adapter.training


@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_it_is_said_in_both_directions(scale: float) -> None:
    assert len(range_doubts(trained_on(images()), images(scale))) == 1


def test_a_batch_normalisation_that_never_learned_says_nothing_of_its_own() -> None:
    adapter = adapter_of(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), intensity="zscore")
    assert range_doubts(adapter, images(255)) == ()


def test_values_of_files_are_doubted_where_no_layer_takes_care_of_them() -> None:
    plain = adapter_of(nn.Conv2d(1, 4, 1))
    assert range_doubts(plain, images(3)) == ()
    (doubt,) = range_doubts(plain, images(255))
    assert "intensity: none" in doubt
    assert range_doubts(adapter_of(nn.Conv2d(1, 4, 1), intensity="minmax"), images(255)) == ()
    assert range_doubts(adapter_of(nn.Conv2d(1, 4, 1), nn.InstanceNorm2d(4)), images(255)) == ()
