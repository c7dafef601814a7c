"""RL4Seg as published: rewards from validity and shape correction, no source images.

Facts and coefficients are from the paper (arXiv 2406.17902) and its code; nothing of the code is used.

Theirs: 4 iterations of collecting D_R, a new reward network, and PPO with a critic that is carried on. D_R and the
references of good masks are kept from one iteration to the next; an image that is good again gets its newer mask. All
the coefficients below. An iteration ends with the epoch of PPO that has the highest mean reward of sampled actions, a
quantity without labels. No temperature, one reward network, samples without correlation; the last iteration is
returned. One candidate is the published recipe: Adam 5e-4, batch statistics that move while the actor is trained, and
weights that are halved and perturbed before PPO, the source model's too, and the critic's from the second iteration on.

Changed: 3 epochs of PPO in each iteration instead of 5, and 300 steps of 16 for a reward network instead of 50 epochs
of 64; its learning rate falls after 2 of 12 validations without progress instead of 10 of 50, on a tenth of D_R, 128
records at most. For n target images the first PPO takes 15 n / 8 steps of the actor; theirs, on about 2500 images,
7825. The best epoch is chosen on the target images themselves, not on a part held out for it: there may be 32 in all.
Reward network and critic are small U-Nets of this package. Theirs calls a mask good that is valid and has a Dice above
.95 with its projection. The shape prior here, of fewer masks, does not give the source's own ground truth back so well
(CAMUS 4CH: a median of .93), and no mask would be good: here it is enough to have the Dice that 95 % of the ground
truth have (.95 at most). A second candidate is for short runs, which may not repair halved weights, and for segmenters
whose batch statistics had better stay: neither is done to it, and it has Adam 1e-4. `steadiest` chooses.

Left out: the morphological repair before the projection (it keeps one piece of each structure, and is made for two of
the heart; the shape prior here learns to remove pieces). Not followed, because it looks unintended or contradicts the
paper: the accuracy against target labels as reward, which their configuration of the experiment names; reward and
reference networks in training mode; noisy weights left in place for the noisy images and contrasts; the agreement with
the projection of the last structure alone; gradients of the critic in the norm that clips the actor's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.problem import BATCH, Problem, predict, steadiest
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.metrics.overlap import dice
from medfm_rl.networks import build_unet
from medfm_rl.policies import DenseCategorical
from medfm_rl.progress import Progress
from medfm_rl.reward.shape_prior import ShapePrior, train_shape_prior
from medfm_rl.seeding import derive_seed, torch_generator
from medfm_rl.settings import NetworkSettings, ShapePriorSettings

_ITERATIONS = 4
_REWARD_STEPS, _VALIDATE_EVERY, _PATIENCE = 300, 25, 2
_PPO_EPOCHS, _INNER_EPOCHS = 3, 5
_CLIP = 0.2
_WEIGHT_NOISE = (0.005, 0.01, 0.015, 0.02)
_CONTRASTS, _NOISES = (0.7, 0.8), (0.05, 0.1)
_AGREEMENT, _TYPICAL = 0.95, 0.05
_PRIOR = ShapePriorSettings(epochs=100)
_SHRINK, _PERTURB = 0.5, 0.01
_NETWORK = NetworkSettings(channels=(16, 32, 64, 128), norm="batch")


@dataclass(frozen=True)
class _Recipe:
    """The differences of the candidates: learning rate, moving batch statistics, and shrinking before an iteration."""

    learning_rate: float
    train_mode: bool
    shrink: bool


_RECIPES = {"as published": _Recipe(5e-4, True, True), "for short runs": _Recipe(1e-4, False, False)}


@dataclass(frozen=True, eq=False)
class _Records:
    """D_R of one iteration: images, the actions shown on them and the references that they are compared with."""

    images: Tensor
    actions: Tensor
    references: Tensor


@dataclass(frozen=True, eq=False)
class _Correction:
    """The shape prior, and the Dice between a mask and its projection above which a valid mask is a good one."""

    prior: ShapePrior
    agreement: float


@dataclass(frozen=True, eq=False)
class _Lesson:
    """The teachers of the PPO of an iteration: D_R so far, its reward network, and the references so far, by image."""

    collected: tuple[_Records, ...]
    references: dict[int, Tensor]
    reward: nn.Module


def adapt(problem: Problem, progress: Progress) -> TorchModuleAdapter:
    """Collect, reward, PPO, four times, from the source model, by two recipes."""
    prior = train_shape_prior(
        problem.source_masks,
        problem.anatomy.schema.num_classes,
        _PRIOR,
        derive_seed(problem.seed, "rl4seg prior"),
        torch.device("cpu"),
        lambda done, total: progress("RL4Seg shape prior", done, total),
    )
    correction = _Correction(prior, _typical_agreement(prior, problem))
    # The same for both: it is made from the source model.
    first = _prepare(copy.deepcopy(problem.source_model).eval(), correction, problem, None, 1, progress)
    candidates = {name: _iterate(problem, correction, recipe, first, progress) for name, recipe in _RECIPES.items()}
    return steadiest(candidates, problem)


def _typical_agreement(prior: ShapePrior, problem: Problem) -> float:
    """The Dice with its projection that 95 % of the source's ground truth have, at most the published limit."""
    masks, structures = problem.source_masks, problem.anatomy.schema.classes
    found = [dice(*pair, structures).mean() for pair in zip(masks.numpy(), prior.project(masks).numpy(), strict=True)]
    return min(_AGREEMENT, float(np.quantile(found, _TYPICAL)))


def _iterate(
    problem: Problem, correction: _Correction, recipe: _Recipe, first: _Lesson, progress: Progress
) -> TorchModuleAdapter:
    policy = copy.deepcopy(problem.source_model).eval()
    critic = _new_network(problem, "critic", problem.source_model.in_channels)
    lesson = first
    for iteration in range(1, _ITERATIONS + 1):
        if iteration > 1:
            lesson = _prepare(policy, correction, problem, lesson, iteration, progress)
        generator = torch_generator(problem.seed, "rl4seg PPO", iteration)
        if recipe.shrink:
            shrink_and_perturb(policy, generator)
            if iteration > 1:
                shrink_and_perturb(critic, generator)
        _ppo(policy, critic, lesson, problem, recipe, iteration, generator, progress)
    return policy


def _new_network(problem: Problem, key: str, in_channels: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(problem.seed, "rl4seg", key))
        return build_unet(_NETWORK, len(problem.source_model.patch_size), in_channels, 1)


@torch.no_grad()
def shrink_and_perturb(net: nn.Module, generator: torch.Generator) -> None:
    """Halves all weights, those of normalisation too, and adds noise; biases stay (Ash and Adams, arXiv 1910.08475)."""
    for name, parameter in net.named_parameters():
        if "weight" in name:
            parameter.mul_(_SHRINK).add_(torch.randn(parameter.shape, generator=generator) * _PERTURB)


def _prepare(
    policy: TorchModuleAdapter,
    correction: _Correction,
    problem: Problem,
    before: _Lesson | None,
    iteration: int,
    progress: Progress,
) -> _Lesson:
    generator = torch_generator(problem.seed, "rl4seg", iteration)
    records, good = _collect(policy, correction, problem, generator)
    collected = (*(before.collected if before else ()), *([records] if records else []))
    if not collected:
        raise RuntimeError("RL4Seg collects nothing: no mask is valid, and none becomes valid on the shape prior")
    # Image and action enter as one channel each.
    reward = _new_network(problem, f"reward {iteration}", problem.source_model.in_channels + 1)
    _train_reward(reward, collected, generator, progress)
    return _Lesson(collected, (before.references if before else {}) | good, reward)


@torch.no_grad()
def _collect(
    policy: TorchModuleAdapter, correction: _Correction, problem: Problem, generator: torch.Generator
) -> tuple[_Records | None, dict[int, Tensor]]:
    """Actions with their references, where there are any, and the masks that are good enough for PPO, by image."""
    images, anatomy = problem.target.images[:], problem.anatomy
    masks = predict(policy, images)
    sampled = torch.cat([DenseCategorical(policy(batch)).sample(generator) for batch in images.split(BATCH)])
    corrected = correction.prior.project(masks)
    good, kept = {}, []
    for row, (mask, projection) in enumerate(zip(masks.numpy(), corrected.numpy(), strict=True)):
        agreement = float(dice(mask, projection, anatomy.schema.classes).mean())
        if agreement > correction.agreement and anatomy.is_valid(mask):
            good[row] = masks[row]
        elif anatomy.is_valid(projection):
            kept.append((images[row], sampled[row].to(torch.uint8), corrected[row]))
    rows = list(good)
    if rows:
        shown, references = images[rows], masks[rows]
        for actions in _distorted(policy, shown, generator):
            # An empty mask says nothing.
            kept += [row for row in zip(shown, actions, references, strict=True) if bool(row[1].any())]
        others = torch.randint(len(images), (len(rows),), generator=generator)
        kept += list(zip(shown, sampled[others].to(torch.uint8), references, strict=True))
    records = _Records(*(torch.stack(column) for column in zip(*kept, strict=True))) if kept else None
    return records, good


def _distorted(policy: TorchModuleAdapter, images: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Masks of noisy weights, of lower contrast and of noisy images."""
    found = []
    for scale in _WEIGHT_NOISE:
        noisy = copy.deepcopy(policy)
        for parameter in noisy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        found.append(predict(noisy, images))
    # Theirs are in [0, 1], where lower contrast has nothing to clamp and noise is followed by division by the maximum.
    axes = tuple(range(1, images.ndim))
    low = images.amin(dim=axes, keepdim=True)
    spread = images.amax(dim=axes, keepdim=True) - low
    unit = (images - low) / spread
    for factor in _CONTRASTS:
        mean = unit.mean(dim=axes, keepdim=True)
        found.append(predict(policy, low + spread * (mean + factor * (unit - mean))))
    for scale in _NOISES:
        noisy_unit = unit + scale * torch.randn(images.shape, generator=generator)
        found.append(predict(policy, low + spread * noisy_unit / noisy_unit.amax(dim=axes, keepdim=True)))
    return found


def _reward_input(images: Tensor, actions: Tensor) -> Tensor:
    return torch.cat([images, actions[:, None].to(images.dtype)], dim=1)


def _train_reward(
    net: nn.Module, collected: tuple[_Records, ...], generator: torch.Generator, progress: Progress
) -> None:
    images, actions, references = (
        torch.cat([getattr(records, name) for records in collected]) for name in ("images", "actions", "references")
    )
    order = torch.randperm(len(images), generator=generator)
    held_out = min(128, max(1, len(order) // 10))
    validation, training = order[:held_out], order[held_out:]
    right = (actions == references).float()[:, None]
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, patience=_PATIENCE)
    best, best_state = float("inf"), copy.deepcopy(net.state_dict())
    for step in range(1, _REWARD_STEPS + 1):
        net.train()
        rows = training[torch.randint(len(training), (BATCH,), generator=generator)]
        loss = F.binary_cross_entropy_with_logits(net(_reward_input(images[rows], actions[rows])), right[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % _VALIDATE_EVERY == 0:
            net.eval()
            with torch.no_grad():
                losses = [
                    F.binary_cross_entropy_with_logits(
                        net(_reward_input(images[part], actions[part])), right[part], reduction="sum"
                    )
                    for part in validation.split(BATCH)
                ]
            total = float(torch.stack(losses).sum())
            schedule.step(total)
            if total < best:
                best, best_state = total, copy.deepcopy(net.state_dict())
        progress("RL4Seg reward network", step, _REWARD_STEPS)
    net.load_state_dict(best_state)
    net.eval()


def _ppo(
    policy: TorchModuleAdapter,
    critic: nn.Module,
    lesson: _Lesson,
    problem: Problem,
    recipe: _Recipe,
    iteration: int,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Leaves the policy in evaluation mode, and it and the critic as they were after the best epoch."""
    entropy_weight, divergence_weight = 0.3 / (2 * iteration), 0.1 / (2 * iteration)
    images, reference = problem.target.images[:], copy.deepcopy(problem.source_model).eval()
    actor_optimiser = torch.optim.Adam(policy.parameters(), lr=recipe.learning_rate)
    critic_optimiser = torch.optim.Adam(critic.parameters(), lr=recipe.learning_rate)
    best, best_states = float("-inf"), (policy.state_dict(), critic.state_dict())
    critic.train()
    for epoch in range(1, _PPO_EPOCHS + 1):
        policy.train(recipe.train_mode)
        for rows in torch.randperm(len(images), generator=generator).split(8 * iteration):
            shown = images[rows]
            with torch.no_grad():
                rollout = DenseCategorical(policy(shown))
                actions = rollout.sample(generator)
                has_reference = torch.tensor([int(row) in lesson.references for row in rows])
                rewards = torch.sigmoid(lesson.reward(_reward_input(shown, actions)))[:, 0]
                for place, row in enumerate(rows.tolist()):
                    if row in lesson.references:
                        actions[place] = lesson.references[row].to(actions.dtype)
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
        mean = _mean_reward(policy.eval(), lesson.reward, images, generator)
        if mean > best:
            best, best_states = mean, (copy.deepcopy(policy.state_dict()), copy.deepcopy(critic.state_dict()))
        progress(f"RL4Seg PPO {iteration}/{_ITERATIONS}", epoch, _PPO_EPOCHS)
    policy.load_state_dict(best_states[0])
    critic.load_state_dict(best_states[1])


@torch.no_grad()
def _mean_reward(policy: TorchModuleAdapter, reward: nn.Module, images: Tensor, generator: torch.Generator) -> float:
    """Of actions that are sampled, as the authors' validation does."""
    maps = [
        torch.sigmoid(reward(_reward_input(batch, DenseCategorical(policy(batch)).sample(generator))))
        for batch in images.split(BATCH)
    ]
    return float(torch.cat(maps).mean())
