"""Optimisation of one case against the reward networks: by their gradient, or by PPO."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.base import Scope
from medfm_rl.adapters.grid import Sample
from medfm_rl.anatomy.cleaning import clean_up
from medfm_rl.correction.corrector import CaseCorrector, Original, Proposal, Stop, appearances
from medfm_rl.correction.verifier import Verifier
from medfm_rl.networks import argmax_classes, one_hot
from medfm_rl.policies.distribution import DenseCategorical, kl_divergence
from medfm_rl.policies.losses import clipped_policy_loss, greedy_advantages, normalise_advantages
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.reward.score import paired_scores, structure_regions
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import CorrectionSettings
from medfm_rl.structures import Structures, exclusive
from medfm_rl.tiling import over_tiles, tiled_reward_map
from medfm_rl.types import LabelMap

_DRAWS = 4
_EPOCHS = 3
_CLIP_RANGE = 0.2
_CORRELATION_LENGTH = 4.0


class TestTimeOptimiser(CaseCorrector):
    """Follows the reward in the logits of one case, or in a copy of the segmenter's weights.

    By its gradient: the reward networks see the action of every step; their gradient reaches the logits through the
    softmax (the straight-through estimator, Bengio et al., arXiv 1308.3432). Or by PPO: every step samples masks on
    random appearances of the case and verifies them on the case as it is, as RL4Seg3D does (arXiv 2510.14244). A KL
    term holds the logits near the deployed ones. The step with the highest reward is proposed; step 0, the original,
    competes. What the anatomy rules say of parts and holes is then done to it.

    Args:
        adapter: The deployed segmenter; it is never changed.
        reward: What is followed.
        verifier: Decides; its network must not be one of `reward`.

    Raises:
        ModelError: The verifier is one of the reward networks.
    """

    # Not a test, whatever its name says to pytest.
    __test__ = False

    def __init__(self, adapter: SegmenterAdapter, reward: RewardEnsemble, verifier: Verifier) -> None:
        super().__init__(adapter, verifier)
        verifier.require_other_than(reward)
        self.reward = reward

    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        """The step with the highest reward, from the segmenter's own mask on."""
        settings, adapter = self.settings, self.adapter
        reward, patch, structures = self.reward.to(adapter.device), adapter.patch_size, adapter.schema.classes
        image, deployed = sample.image.to(adapter.device), logits.to(adapter.device)
        search = self._search(image, deployed)
        first = original.action.to(adapter.device)
        with torch.no_grad():
            first_map = tiled_reward_map(reward, image, first, patch)
        ascent: _Ascent = (
            _GradientAscent(search, reward, image, deployed, patch, settings)
            if settings.objective == "reward"
            else _PolicyAscent(search, reward, sample, adapter.intensity_channels, image, patch, settings)
        )
        gains: list[float] = []
        best, best_gain = 0, 0.0
        kept: LabelMap | None = None
        stopped: Stop = "steps"
        for step in range(settings.steps + 1):
            action, reward_map = ascent.look()
            pair = (first_map[None], first[None]), (reward_map[None], action[None])
            old, new = paired_scores(*pair, structures)
            gains.append(0.0 if step == 0 and original.own else float((new - old).mean()))
            if gains[-1] > best_gain:
                best, best_gain, kept = step, gains[-1], search.labels(sample)
            if step - best >= settings.patience:
                stopped = "patience"
                break
            if step == settings.steps:
                break
            if time.monotonic() > deadline:
                stopped = "time"
                break
            if not ascent.improve():
                stopped = "not finite"
                break
        labels = clean_up(original.labels if kept is None else kept, self.verifier.anatomy)
        return Proposal(labels, tuple(gains), best, stopped)

    def _search(self, image: Tensor, deployed: Tensor) -> _Search:
        match self.settings.optimise:
            case "logits":
                return _LogitSearch(self.adapter, deployed, self.settings)
            case "norm" | "decoder" | "all" as scope:
                return _WeightSearch(self.adapter, image, scope, self.settings)


class _Ascent(ABC):
    """A way to follow the reward: looks at the present step, then makes the next.

    Args:
        search: What changes.
        reward: What is followed.
        image: `(C, *S')`.
        patch: Size of its tiles.
        settings: `kl_coef`.
    """

    def __init__(
        self,
        search: _Search,
        reward: RewardEnsemble,
        image: Tensor,
        patch: tuple[int, ...],
        settings: CorrectionSettings,
    ) -> None:
        self.search = search
        self.reward = reward
        self.image = image
        self.patch = patch
        self.kl_coef = settings.kl_coef
        self.optimiser = torch.optim.Adam(search.parameters, search.learning_rate)

    @abstractmethod
    def look(self) -> tuple[Tensor, Tensor]:
        """The action of the present step and its reward map, `(*S')` both."""

    @abstractmethod
    def improve(self) -> bool:
        """Makes a step; False where the loss is not finite, and nothing has changed."""

    def _step(self, loss: Tensor) -> bool:
        if not bool(loss.isfinite()):
            return False
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return True


class _GradientAscent(_Ascent):
    """The gradient of the reward in and around the structures, through the softmax."""

    def __init__(
        self,
        search: _Search,
        reward: RewardEnsemble,
        image: Tensor,
        deployed: Tensor,
        patch: tuple[int, ...],
        settings: CorrectionSettings,
    ) -> None:
        super().__init__(search, reward, image, patch, settings)
        self.original = argmax_classes(deployed, dim=0)
        self.log_deployed = deployed.log_softmax(dim=0)

    def look(self) -> tuple[Tensor, Tensor]:
        self.logits = self.search.logits()
        self.action = argmax_classes(self.logits.detach(), dim=0)
        probabilities = self.logits.softmax(dim=0)
        certain = one_hot(self.action, len(self.logits), dim=0).to(probabilities)
        # The value of the action, the gradient of the softmax.
        memberships = certain + probabilities - probabilities.detach()
        self.reward_map = over_tiles(
            lambda shown, parts: self.reward.relaxed_map(shown, parts)[:, None], [self.image, memberships], self.patch
        )[0]
        return self.action, self.reward_map.detach()

    def improve(self) -> bool:
        region = _region(self.original, self.action, exclusive(len(self.logits)))
        divergence = kl_divergence(self.logits.log_softmax(dim=0)[None], self.log_deployed[None])
        loss = self.kl_coef * divergence.sum() - (self.reward_map * region).sum()
        return self._step(loss / region.sum().clamp_min(1))


class _PolicyAscent(_Ascent):
    """PPO: masks sampled on random appearances, verified on the case as it is, against the argmax of each."""

    def __init__(
        self,
        search: _Search,
        reward: RewardEnsemble,
        sample: Sample,
        channels: int,
        image: Tensor,
        patch: tuple[int, ...],
        settings: CorrectionSettings,
    ) -> None:
        super().__init__(search, reward, image, patch, settings)
        self.views = appearances(sample, _DRAWS, channels).to(image)
        self.generator = torch_generator(0, "test-time PPO", sample.case_id)
        with torch.no_grad():
            self.log_deployed = search.views(self.views).log_softmax(dim=1)

    @torch.no_grad()
    def look(self) -> tuple[Tensor, Tensor]:
        action = argmax_classes(self.search.logits(), dim=0)
        return action, tiled_reward_map(self.reward, self.image, action, self.patch)

    def improve(self) -> bool:
        policy = DenseCategorical(self.search.views(self.views))
        with torch.no_grad():
            actions = policy.sample(self.generator, _CORRELATION_LENGTH)
            greedy = policy.mode()
            advantages = greedy_advantages(self._reward_maps(actions), actions, self._reward_maps(greedy), greedy)
            advantages = normalise_advantages(advantages)
            old = policy.log_prob(actions)
        for epoch in range(_EPOCHS):
            if epoch > 0:
                policy = DenseCategorical(self.search.views(self.views))
            loss, _, _ = clipped_policy_loss(policy.log_prob(actions), old, advantages, _CLIP_RANGE)
            loss = loss + self.kl_coef * kl_divergence(policy.log_probs, self.log_deployed).mean()
            if not self._step(loss):
                return False
        return True

    def _reward_maps(self, actions: Tensor) -> Tensor:
        # All draws at once: a network is faster on a batch.
        return over_tiles(
            lambda shown, labels: self.reward(shown.expand(len(actions), *shown.shape[1:]), labels[0])[None],
            [self.image, actions],
            self.patch,
        )


class _Search(ABC):
    """The unknowns that are optimised: parameters, and the logits `(K, *S')` that they give."""

    parameters: list[Tensor]
    learning_rate: float

    @abstractmethod
    def logits(self) -> Tensor:
        """Differentiable logits at the present step."""

    @abstractmethod
    def views(self, images: Tensor) -> Tensor:
        """Differentiable logits `(V, K, *S')` at the present step on other appearances `(V, C, *S')` of the case."""

    @abstractmethod
    def labels(self, sample: Sample) -> LabelMap:
        """The mask of the present step on the case's own grid."""


class _LogitSearch(_Search):
    """A smooth change of the logits: given on a coarser grid, interpolated linearly."""

    def __init__(self, adapter: SegmenterAdapter, deployed: Tensor, settings: CorrectionSettings) -> None:
        self.adapter = adapter
        self.deployed = deployed
        self.learning_rate = settings.learning_rate
        coarse = [max(1, -(-side // settings.smoothness)) for side in deployed.shape[1:]]
        self.change = torch.zeros((1, len(deployed), *coarse), device=deployed.device, requires_grad=True)
        self.parameters = [self.change]
        self.mode = "bilinear" if len(coarse) == 2 else "trilinear"

    def logits(self) -> Tensor:
        size = self.deployed.shape[1:]
        return self.deployed + F.interpolate(self.change, size=size, mode=self.mode, align_corners=False)[0]

    def views(self, images: Tensor) -> Tensor:
        # The mask itself is the policy, whatever the image looks like.
        return self.logits().expand(len(images), *self.deployed.shape)

    def labels(self, sample: Sample) -> LabelMap:
        return self.adapter.restore(self.logits().detach().cpu(), sample)


class _WeightSearch(_Search):
    """Weights of a copy of the segmenter, which stays in evaluation mode: its statistics do not move."""

    def __init__(self, adapter: SegmenterAdapter, image: Tensor, scope: Scope, settings: CorrectionSettings) -> None:
        self.twin = copy.deepcopy(adapter).eval().requires_grad_(False)
        self.image = image
        self.learning_rate = settings.weight_learning_rate
        self.parameters = list(self.twin.trainable(scope).values())
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def logits(self) -> Tensor:
        return over_tiles(self.twin, [self.image], self.twin.patch_size)

    def views(self, images: Tensor) -> Tensor:
        # All views at once: a network is faster on a batch.
        logits = over_tiles(
            lambda *tiles: self.twin(torch.cat(tiles)).flatten(0, 1)[None], list(images), self.twin.patch_size
        )
        return logits.reshape(len(images), -1, *logits.shape[1:])

    def labels(self, sample: Sample) -> LabelMap:
        # As the tool itself segments, with its own tiles and mirroring.
        return self.twin.restore(self.twin.predict_logits(sample), sample)


def _region(one: Tensor, two: Tensor, structures: Structures) -> Tensor:
    """Where either action has a structure, and around it, `(*S)` of 0 and 1; everything where neither has one."""
    found = torch.maximum(structure_regions(one[None], structures), structure_regions(two[None], structures))
    region = found.amax(dim=1)[0]
    return region if bool(region.any()) else torch.ones_like(region)
