"""A segmenter that reads masks from grey values, so that a test decides what it makes of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.settings import NetworkSettings, PreprocessingSettings, RewardSettings
from medfm_rl.types import LabelSchema

SCHEMA = LabelSchema(("background", "a", "b"), (0, 10, 20))


class GreyReader(nn.Module):
    """Segments images whose grey value is the class index, after moving it through `table`."""

    def __init__(self, *table: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table, dtype=torch.float32), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return -((images - self.table[None, :, None, None]) ** 2)


def make_segmenter(*table: int, schema: LabelSchema = SCHEMA) -> TorchModuleAdapter:
    """The class whose entry in the table is nearest to a grey value; (0, 1, 2) reads images as they are drawn."""
    preprocessing = PreprocessingSettings(size=(16, 16), grid="native", intensity="none")
    return TorchModuleAdapter(GreyReader(*table), schema, preprocessing).eval()


def make_reward() -> RewardEnsemble:
    torch.manual_seed(0)
    return RewardEnsemble([RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 3)], RewardSettings())
