"""What a network tells of the values that it was trained on."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.intensity import normalise
from medfm_rl.adapters.value_range import range_doubts
from medfm_rl.settings import PreprocessingSettings
from medfm_rl.types import LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1})


def adapter_of(*layers: nn.Module, intensity: str | dict[str, object] = "none") -> TorchModuleAdapter:
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


def shown(file: Tensor, intensity: str | dict[str, object]) -> tuple[str, ...]:
    """What is said of a network without a normalisation where images `(N, C, *S)` are scaled by these settings."""
    adapter = adapter_of(nn.Conv2d(1, 4, 1), intensity=intensity)
    return range_doubts(adapter, torch.stack([normalise(image, adapter.preprocessing, "an image") for image in file]))


@pytest.mark.parametrize(
    ("intensity", "said"),
    [
        ({"mean": 0.4, "std": 0.2}, r"with intensity: \{mean: 0.4, std: 0.2\} .* shown values from 2\.\d+ to 127\d"),
        ({"divide": 0.001}, r"with intensity: \{divide: 0.001\} .* to 2.5\d*e\+05"),
        ({"window": [1000, 2000]}, r"nothing but the value 0 \(intensity: \{window: \[1000.0, 2000.0\]\}\)"),
        ({"window": [-900, -800]}, "nothing but the value 1 "),
    ],
)
def test_scaling_for_images_of_another_range_is_doubted(intensity: dict[str, object], said: str) -> None:
    (doubt,) = shown(images(255), intensity)
    assert re.search(said, doubt)


def test_dividing_what_is_small_already_is_doubted_where_nothing_in_the_network_tells() -> None:
    (doubt,) = shown(images(), {"divide": 255})
    assert re.search(r"with intensity: \{divide: 255.0\} .* to 0.0039\d*, .* such as 0 to 255 and not 0 to 1$", doubt)
    # A dark image of 8 bits.
    assert shown(images(12), {"divide": 255}) == ()


def test_images_of_one_value_are_doubted_whatever_the_network() -> None:
    for layers in ((nn.Conv2d(1, 4, 1),), (nn.Conv2d(1, 4, 1), nn.InstanceNorm2d(4))):
        (doubt,) = range_doubts(adapter_of(*layers), torch.zeros(2, 1, 16, 16))
        assert "nothing but the value 0:" in doubt


@pytest.mark.parametrize(
    "intensity",
    [
        "zscore",
        "minmax",
        {"percentiles": [1, 99]},
        {"window": [-160, 240]},
        {"divide": 1000},
        {"mean": -300, "std": 450},
        {"mean": 40, "std": 40},
    ],
)
def test_sensible_scalings_of_ct_are_not_doubted(intensity: str | dict[str, object]) -> None:
    ct = images(1400, -1000)
    # A piece of metal.
    ct[:, :, 8, 8] = 30000
    assert shown(ct, intensity) == ()
