from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.settings import NetworkSettings, PreprocessingSettings
from medfm_rl.types import Case, LabelSchema


@pytest.fixture
def unet(schema: LabelSchema) -> TorchModuleAdapter:
    torch.manual_seed(0)
    network = NetworkSettings(channels=(4, 8), residual_units=0)
    return TorchModuleAdapter.build_unet(network, schema, PreprocessingSettings(size=(16, 16))).eval()


@pytest.fixture
def batch_unet(schema: LabelSchema) -> TorchModuleAdapter:
    """With batch normalisation: it has weights, and statistics that must not move."""
    torch.manual_seed(0)
    network = NetworkSettings(channels=(4, 8), residual_units=0, norm="batch")
    return TorchModuleAdapter.build_unet(network, schema, PreprocessingSettings(size=(16, 16))).eval()


@pytest.fixture
def case(make_case: Callable[..., Case]) -> Case:
    return make_case(shape=(16, 16))
