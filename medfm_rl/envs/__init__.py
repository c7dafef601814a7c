"""Segmentation as a Gymnasium environment, scalar and vectorised."""

import gymnasium

from medfm_rl.envs.segmentation import RewardFunction, RewardSource, SegmentationEnv, SegmentationVecEnv

__all__ = ["RewardFunction", "RewardSource", "SegmentationEnv", "SegmentationVecEnv"]

gymnasium.register(id="medfm_rl/Segmentation-v0", entry_point="medfm_rl.envs.segmentation:SegmentationEnv")
