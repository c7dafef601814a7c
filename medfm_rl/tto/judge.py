"""Whether a proposed mask is better than the original, by what the proposal was not made for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.base import Sample
from medfm_rl.metrics.overlap import dice
from medfm_rl.metrics.validity import Anatomy
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.score import paired_scores
from medfm_rl.reward.tiles import judge_tiles
from medfm_rl.settings import CorrectionSettings, RewardSettings
from medfm_rl.types import Case, LabelMap


@dataclass(frozen=True)
class Judgement:
    """What the judge found.

    Attributes:
        accepted: Whether the proposal replaces the original.
        reasons: Why, in words.
        gain: Judge's mean reward of the proposal minus that of the original, mean over structures.
        gains: The same by structure.
        change: 1 - mean Dice between both masks, in [0, 1].
        broken_before: Anatomy rules that the original breaks, with measured values.
        broken_after: Those that the proposal breaks.
    """

    accepted: bool
    reasons: tuple[str, ...]
    gain: float
    gains: dict[str, float]
    change: float
    broken_before: tuple[str, ...]
    broken_after: tuple[str, ...]


class Judge:
    """A reward network that nothing was optimised against, the anatomy rules, and the distance moved.

    A proposal is accepted where the network prefers it by a margin, over the same pixels, no structure loses more than
    a tolerance, every anatomy rule is met, and it is not too far from the original.

    Args:
        network: Trained on other patients than the networks that proposals are made with.
        anatomy: The rules.
        settings: `margin`, `tolerance` and `max_change`.
    """

    def __init__(self, network: RewardNet, anatomy: Anatomy, settings: CorrectionSettings) -> None:
        self.network = RewardEnsemble([network], RewardSettings())
        self.anatomy = anatomy
        self.settings = settings

    @torch.no_grad()
    def compare(
        self, adapter: SegmenterAdapter, case: Case, sample: Sample, before: LabelMap, after: LabelMap
    ) -> Judgement:
        """Compares two masks of a case.

        Args:
            adapter: Brings masks to the grid of the network.
            case: The image.
            sample: The same, preprocessed by the adapter.
            before: The original, class indices `(*S)` on the case's own grid.
            after: The proposal.
        """
        schema, device = adapter.schema, adapter.device
        self.network.to(device)
        image = sample.image.to(device)
        actions = [adapter.preprocess_labels(labels, sample).to(device) for labels in (before, after)]
        maps = [judge_tiles(self.network, image, action, adapter.patch_size) for action in actions]
        one, two = ((values[None], action[None]) for values, action in zip(maps, actions, strict=True))
        old, new = paired_scores(one, two, schema.num_classes)
        differences = (new - old)[0].cpu().tolist()
        gains = dict(zip(schema.structures, differences, strict=True))
        gain = sum(differences) / len(differences)
        spacing = case.geometry.array_spacing
        broken = [
            tuple(str(rule) for rule in self.anatomy.check(labels, spacing) if not rule.passed)
            for labels in (before, after)
        ]
        change = 1 - float(dice(before, after, schema.num_classes).mean())
        objections = self._objections(gain, gains, change, broken[1])
        agreed = (f"the judge's mean reward rises by {gain:.3f}, at least {self.settings.margin:g}; every rule is met",)
        return Judgement(not objections, objections or agreed, gain, gains, change, broken[0], broken[1])

    def _objections(
        self, gain: float, gains: dict[str, float], change: float, broken: tuple[str, ...]
    ) -> tuple[str, ...]:
        margin, limit = self.settings.margin, self.settings.max_change
        found = []
        if not gain >= margin:
            found.append(f"the judge's mean reward changes by {gain:+.3f}, at least {margin:+g} is needed")
        found += [
            f"the judge's reward of {name} falls by {-lost:.3f}"
            for name, lost in gains.items()
            if lost < -self.settings.tolerance
        ]
        if change > limit:
            found.append(f"it is too far from the original: 1 - Dice is {change:.3f}, at most {limit:g} is allowed")
        return (*found, *broken)
