"""A reward network that has learned nothing yet."""

from __future__ import annotations

import torch

from medfm_rl.adapters.grid import CaseGrid
from medfm_rl.reward.network import RewardNet
from medfm_rl.settings import NetworkSettings


def untrained_reward(settings: NetworkSettings, grid: CaseGrid, seed: int = 0) -> RewardNet:
    """A reward network for the images and masks of a grid, on the CPU; the caller's own chance stays as it is.

    Args:
        settings: Architecture.
        grid: The segmenter, or whatever else brings images and masks to the networks.
        seed: Of its weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RewardNet(settings, grid.schema.num_classes, grid.intensity_channels, len(grid.patch_size))
