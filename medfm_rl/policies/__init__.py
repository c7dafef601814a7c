"""Dense policies and PPO on stable-baselines3: one decision, one ratio and one advantage for every pixel."""

from medfm_rl.policies.buffer import DenseRolloutBuffer
from medfm_rl.policies.checkpoints import ACTOR
from medfm_rl.policies.distribution import DenseCategorical
from medfm_rl.policies.policy import DenseActorCriticPolicy
from medfm_rl.policies.ppo import DensePPO

__all__ = ["ACTOR", "DenseActorCriticPolicy", "DenseCategorical", "DensePPO", "DenseRolloutBuffer"]
