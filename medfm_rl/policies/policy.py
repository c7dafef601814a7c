"""A segmenter, and perhaps a critic, as a stable-baselines3 policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.nn import Parameter

from medfm_rl.policies.distribution import DenseCategorical


class DenseActorCriticPolicy(ActorCriticPolicy):
    """pi(action / image) from a segmenter's logits, V(image) as a map from a critic.

    Actor and critic share no parameters and have an optimiser each, so the loss of one cannot move the other. The
    policy is always in evaluation mode: gradients flow, but dropout is off and no batch statistics move, so that the
    ratio of new to old probabilities is exactly 1 before the first step.

    Args:
        observation_space: Observation space of the environment.
        action_space: Flat `MultiDiscrete`, one class count per pixel.
        lr_schedule: Learning rate of the actor.
        use_sde: As in stable-baselines3; must be False.
        segmenter: Images `(B, C, *S)` to logits `(B, K, *S)`; trained in place.
        critic: Images `(B, C, *S)` to values `(B, 1, *S)`, or None for a critic-free baseline.
        trainable: Parameters of the segmenter that may change; all where None. The rest is frozen.
        critic_learning_rate: Learning rate of the critic; not used where there is none.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        use_sde: bool = False,
        *,
        segmenter: nn.Module,
        critic_learning_rate: float,
        critic: nn.Module | None = None,
        trainable: Sequence[Parameter] | None = None,
    ) -> None:
        if use_sde:
            raise ValueError("state-dependent exploration is for continuous actions")
        # The parent of the parent: ActorCriticPolicy would build a multilayer perceptron that nobody needs.
        BasePolicy.__init__(self, observation_space, action_space)
        if not isinstance(action_space, spaces.MultiDiscrete) or observation_space.shape is None:
            raise TypeError("a dense policy needs a MultiDiscrete action space and a Box observation space")
        self.grid = tuple(observation_space.shape[1:])
        self.num_classes = int(action_space.nvec.flat[0])
        self.segmenter = segmenter
        self.critic = critic
        chosen = list(segmenter.parameters()) if trainable is None else list(trainable)
        segmenter.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        self.actor_parameters = chosen
        self.optimizer = torch.optim.Adam(chosen, lr=lr_schedule(1), eps=1e-5, fused=True)
        self.critic_optimizer = None
        if critic is not None:
            shared = {id(p) for p in critic.parameters()} & {id(p) for p in segmenter.parameters()}
            if shared:
                raise ValueError("actor and critic share parameters: the loss of one would move the other")
            self.critic_optimizer = torch.optim.Adam(critic.parameters(), lr=critic_learning_rate, eps=1e-5, fused=True)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        del mode
        return super().train(False)

    def distribution(self, images: Tensor) -> DenseCategorical:
        """The policy on images `(B, C, *S)`."""
        return DenseCategorical(self.segmenter(images))

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Value maps `(B, *S)` of images `(B, C, *S)`.

        Raises:
            ValueError: The policy has no critic.
        """
        if self.critic is None:
            raise ValueError("the policy has no critic")
        values: Tensor = self.critic(obs)
        return values[:, 0]

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Flat actions `(B, prod(S))`, value maps (empty without a critic) and log-probability maps `(B, *S)`."""
        distribution = self.distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        values = self.predict_values(obs) if self.critic is not None else obs.new_empty(0)
        return actions.flatten(1), values, distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Value maps, log-probability maps and entropy maps of actions, flat or gridded."""
        if not isinstance(obs, Tensor):
            raise TypeError("a dense policy observes one image tensor")
        distribution = self.distribution(obs)
        values = self.predict_values(obs) if self.critic is not None else obs.new_empty(0)
        return values, distribution.log_prob(actions.reshape(-1, *self.grid)), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> DenseCategorical:
        """The policy on images `(B, C, *S)`."""
        if not isinstance(obs, Tensor):
            raise TypeError("a dense policy observes one image tensor")
        return self.distribution(obs)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self.get_distribution(observation).get_actions(deterministic=deterministic).flatten(1)

    def predict(
        self,
        observation: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]],
        state: tuple[np.ndarray[Any, Any], ...] | None = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], ...] | None]:
        """Flat uint8 actions for one image `(C, *S)` or a batch `(B, C, *S)`; argmax where deterministic."""
        actions, state = super().predict(observation, state, episode_start, deterministic)
        return actions.astype(np.uint8), state
