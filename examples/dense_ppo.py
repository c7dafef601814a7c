"""Any torch module as a policy: PPO with a reward for every pixel, in a few seconds on drawn squares.

    python examples/dense_ppo.py

The reward here is the truth itself; in a run it is a reward network (`medfm_rl.reward.network.RewardEnsemble`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.policies import DensePPO
from medfm_rl.settings import PPOHyperparameters


def main() -> None:
    """Draws squares, segments them badly, learns, and segments them well."""
    rng = np.random.default_rng(0)
    labels = np.zeros((64, 16, 16), np.uint8)
    for label_map in labels:
        row, column = rng.integers(1, 8, 2)
        label_map[row : row + 6, column : column + 6] = 1
    images = (labels + rng.normal(0, 0.3, labels.shape)).astype(np.float32)[:, None]

    torch.manual_seed(0)
    segmenter = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))
    env = SegmentationVecEnv(images, reward=no_reward_needed, num_classes=2, n_envs=16, references=labels)
    ppo = DensePPO(env, segmenter, PPOHyperparameters(learning_rate=1e-2), device="cpu")
    print(f"right pixels before: {share_right(ppo, images, labels):.3f}")
    ppo.learn(16 * 40)
    print(f"right pixels after:  {share_right(ppo, images, labels):.3f}")


def no_reward_needed(images: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Every image has its truth here."""
    raise NotImplementedError


def share_right(ppo: DensePPO, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of pixels that the argmax action gets right."""
    actions, _ = ppo.predict(images, deterministic=True)
    return float((actions.reshape(labels.shape) == labels).mean())


if __name__ == "__main__":
    main()
