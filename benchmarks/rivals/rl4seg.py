"""RL4Seg as published: rewards from validity and shape correction, no source images.

Facts and coefficients are from the paper (arXiv 2406.17902) and its code; nothing of the code is used. What differs
from medfm-rl stays in: no temperature, one reward network, samples without correlation, the last iteration is returned.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.metrics.overlap import dice
from medfm_rl.networks import build_unet
from medfm_rl.pipeline.images import Progress
from medfm_rl.policies import DenseCategorical
from medfm_rl.reward.shape_prior import ShapePrior, train_shape_prior
from medfm_rl.seeding import derive_seed, torch_generator
from medfm_rl.settings import NetworkSettings, ShapePriorSettings
from rivals.problem import BATCH, Problem, predict

_ITERATIONS = 2
_REWARD_STEPS, _PPO_EPOCHS, _INNER_EPOCHS = 600, 5, 5
_LEARNING_RATE, _CLIP = 5e-4, 0.2
_WEIGHT_NOISE = (0.005, 0.01, 0.015, 0.02)
_CONTRASTS, _NOISES = (0.7, 0.8), (0.05, 0.1)
_AGREEMENT = 0.95
_NETWORK = NetworkSettings(channels=(16, 32, 64, 128), norm="batch")


@dataclass(frozen=True, eq=False)
class _Records:
    """D_R of one iteration: images, the actions shown on them and the references that they are compared with."""

    images: Tensor
    actions: Tensor
    references: Tensor


def adapt(problem: Problem, progress: Progress) -> TorchModuleAdapter:
    """Collect, reward, PPO, twice, from the source model."""
    num_classes = problem.anatomy.schema.num_classes
    prior = train_shape_prior(
        problem.source_masks,
        num_classes,
        ShapePriorSettings(),
        derive_seed(problem.seed, "rl4seg prior"),
        torch.device("cpu"),
        lambda done, total: progress("RL4Seg shape prior", done, total),
    )
    reference = copy.deepcopy(problem.source_model).eval().requires_grad_(False)
    policy = copy.deepcopy(problem.source_model).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(problem.seed, "rl4seg networks"))
        channels, ndim = problem.source_model.in_channels, len(problem.source_model.patch_size)
        critic = build_unet(_NETWORK, ndim, channels, 1)
        # Image and action enter as one channel each.
        reward = build_unet(_NETWORK, ndim, channels + 1, 1)
    collected: list[_Records] = []
    for iteration in range(1, _ITERATIONS + 1):
        generator = torch_generator(problem.seed, "rl4seg", iteration)
        records, approximate = _collect(policy, prior, problem, generator)
        collected.append(records)
        _train_reward(reward, collected, generator, progress)
        _ppo(policy, critic, reward, reference, problem, approximate, iteration, generator, progress)
    return policy.eval()


@torch.no_grad()
def _collect(
    policy: TorchModuleAdapter, prior: ShapePrior, problem: Problem, generator: torch.Generator
) -> tuple[_Records, dict[int, Tensor]]:
    """Actions with their references, and the masks that are good enough to be references in PPO, by image."""
    images, anatomy = problem.target.images, problem.anatomy
    masks = predict(policy, images)
    sampled = torch.cat([DenseCategorical(policy(batch)).sample(generator) for batch in images.split(BATCH)])
    corrected = prior.project(masks)
    good, kept = {}, []
    for row, (mask, projection) in enumerate(zip(masks.numpy(), corrected.numpy(), strict=True)):
        agreement = float(dice(mask, projection, anatomy.schema.num_classes).mean())
        if agreement > _AGREEMENT and anatomy.is_valid(mask):
            good[row] = masks[row]
        elif anatomy.is_valid(projection):
            kept.append((images[row], sampled[row].to(torch.uint8), corrected[row]))
    rows = list(good)
    if rows:
        shown, references = images[rows], masks[rows]
        for action in _distorted(policy, shown, generator):
            kept += list(zip(shown, action, references, strict=True))
        others = torch.randint(len(images), (len(rows),), generator=generator)
        kept += list(zip(shown, sampled[others].to(torch.uint8), references, strict=True))
    if not kept:
        raise RuntimeError("RL4Seg collects nothing: no mask is valid, and none becomes valid on the shape prior")
    return _Records(*(torch.stack(column) for column in zip(*kept, strict=True))), good


def _distorted(policy: TorchModuleAdapter, images: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Masks of noisy weights, of lower contrast and of noisy images."""
    found = []
    for scale in _WEIGHT_NOISE:
        noisy = copy.deepcopy(policy)
        for parameter in noisy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        found.append(predict(noisy, images))
    for factor in _CONTRASTS:
        mean = images.mean(dim=tuple(range(1, images.ndim)), keepdim=True)
        found.append(predict(policy, mean + factor * (images - mean)))
    # Theirs is relative to images in [0, 1].
    spread = images.amax() - images.amin()
    for scale in _NOISES:
        found.append(predict(policy, images + scale * spread * torch.randn(images.shape, generator=generator)))
    return found


def _reward_input(images: Tensor, actions: Tensor) -> Tensor:
    return torch.cat([images, actions[:, None].to(images.dtype)], dim=1)


def _train_reward(net: nn.Module, collected: list[_Records], generator: torch.Generator, progress: Progress) -> None:
    images, actions, references = (
        torch.cat([getattr(records, name) for records in collected]) for name in ("images", "actions", "references")
    )
    order = torch.randperm(len(images), generator=generator)
    validation, training = order[: max(1, len(order) // 10)], order[max(1, len(order) // 10) :]
    right = (actions == references).float()[:, None]
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    best, best_state = float("inf"), copy.deepcopy(net.state_dict())
    for step in range(1, _REWARD_STEPS + 1):
        net.train()
        rows = training[torch.randint(len(training), (BATCH,), generator=generator)]
        loss = F.binary_cross_entropy_with_logits(net(_reward_input(images[rows], actions[rows])), right[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 0:
            net.eval()
            with torch.no_grad():
                losses = [
                    F.binary_cross_entropy_with_logits(
                        net(_reward_input(images[part], actions[part])), right[part], reduction="sum"
                    )
                    for part in validation.split(BATCH)
                ]
            total = float(torch.stack(losses).sum())
            if total < best:
                best, best_state = total, copy.deepcopy(net.state_dict())
        progress("RL4Seg reward network", step, _REWARD_STEPS)
    net.load_state_dict(best_state)
    net.eval()


def _ppo(
    policy: TorchModuleAdapter,
    critic: nn.Module,
    reward: nn.Module,
    reference: TorchModuleAdapter,
    problem: Problem,
    approximate: dict[int, Tensor],
    iteration: int,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    entropy_weight, divergence_weight = 0.3 / (2 * iteration), 0.1 / (2 * iteration)
    images = problem.target.images
    actor_optimiser = torch.optim.Adam(policy.parameters(), lr=_LEARNING_RATE)
    critic_optimiser = torch.optim.Adam(critic.parameters(), lr=_LEARNING_RATE)
    batches = [
        rows
        for _ in range(_PPO_EPOCHS)
        for rows in torch.randperm(len(images), generator=generator).split(8 * iteration)
    ]
    critic.train()
    for done, rows in enumerate(batches, 1):
        shown = images[rows]
        with torch.no_grad():
            rollout = DenseCategorical(policy(shown))
            actions = rollout.sample(generator)
            has_reference = torch.tensor([int(row) in approximate for row in rows])
            rewards = torch.sigmoid(reward(_reward_input(shown, actions)))[:, 0]
            for place, row in enumerate(rows.tolist()):
                if row in approximate:
                    actions[place] = approximate[row].to(actions.dtype)
            before = rollout.log_prob(actions)
            of_reference = DenseCategorical(reference(shown)).log_prob(actions)
        for _ in range(_INNER_EPOCHS):
            current = DenseCategorical(policy(shown))
            log_probabilities = current.log_prob(actions)
            values = torch.sigmoid(critic(shown))[:, 0]
            total = rewards - divergence_weight * (log_probabilities.detach() - of_reference)
            total[has_reference] = 1.0
            advantages = total - values.detach()
            ratio = (log_probabilities - before).exp()
            clipped = ratio.clamp(1 - _CLIP, 1 + _CLIP)
            objective = torch.min(advantages * ratio, advantages * clipped).mean()
            loss = -objective - entropy_weight * current.entropy().mean()
            actor_optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            actor_optimiser.step()
            critic_loss = F.mse_loss(values, rewards)
            critic_optimiser.zero_grad()
            critic_loss.backward()
            critic_optimiser.step()
        progress(f"RL4Seg PPO {iteration}/{_ITERATIONS}", done, len(batches))
