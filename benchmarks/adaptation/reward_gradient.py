"""The control of the ablation: a policy that follows the gradient of the reward, without sampling actions."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmarks.harness.recording import quiet
from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.policies.distribution import kl_divergence
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import PPOSettings


def follow_gradient(
    policy: SegmenterAdapter,
    reward: RewardEnsemble,
    images: Tensor,
    references: Tensor,
    target: Tensor,
    settings: PPOSettings,
    seed: int,
) -> None:
    """Changes a policy along the gradient of the reward of its softmax, in place.

    As PPO it sees source images, with rewards from their references, and as many target images in random appearances,
    with rewards of the networks for the plain ones; half of each, `updates * n_epochs` steps of `n_envs` images.

    Args:
        policy: Images `(B, C, *S)` to logits.
        reward: Frozen.
        images: Source images `(N, C, *S)` as PPO sees them.
        references: Their ground truth `(N, *S)`.
        target: `(M, C, *S)`.
        settings: Of PPO.
        seed: Of the order and of appearances.
    """
    frozen = copy.deepcopy(policy).eval().requires_grad_(False)
    policy.eval()
    generator = torch_generator(seed, "reward gradient")
    optimiser = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
    half = settings.n_envs // 2
    steps = settings.updates * settings.n_epochs
    for step in range(steps):
        rows = torch.randint(len(images), (settings.n_envs - half,), generator=generator)
        plain = target[torch.randint(len(target), (half,), generator=generator)]
        shown = torch.cat([images[rows], randomise_appearance(plain, None, settings.appearance_strength, generator)])
        log_probs = policy(shown).log_softmax(dim=1)
        probabilities = log_probs.exp()
        right = probabilities[: len(rows)].gather(1, references[rows].long()[:, None])[:, 0]
        assessed = reward.relaxed_map(plain, probabilities[len(rows) :])
        with torch.no_grad():
            near = frozen(shown).log_softmax(dim=1)
        kl = kl_divergence(log_probs, near).mean()
        loss = settings.kl_coef * kl - torch.cat([right, assessed]).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
        optimiser.step()
        quiet("following the gradient", step + 1, steps)
