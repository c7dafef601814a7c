"""Whether a proposed mask is better than the original, by what the proposal was not made for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.grid import Sample
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.correction.views import segmented_views
from medfm_rl.errors import ModelError
from medfm_rl.metrics.overlap import dice
from medfm_rl.quality.evidence import expected_dice, soft_dice
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.settings import CorrectionSettings, RewardSettings
from medfm_rl.tiling import tiled_reward_map
from medfm_rl.types import Case, LabelMap


@dataclass(frozen=True)
class Verification:
    """The finding of the verifier.

    Attributes:
        accepted: Whether the proposal replaces the original.
        reasons: Why, in words.
        gain: Dice that the verifier expects of the proposal minus that of the original, mean over structures.
        gains: The same by structure.
        change: 1 - mean Dice between both masks, in [0, 1].
        broken_before: Anatomy rules that the original breaks, with measured values.
        broken_after: Those that the proposal breaks.
        views: Views of the case that it looked at.
    """

    accepted: bool
    reasons: tuple[str, ...]
    gain: float
    gains: dict[str, float]
    change: float
    broken_before: tuple[str, ...]
    broken_after: tuple[str, ...]
    views: int


class Verifier:
    """A reward network that nothing was optimised against, views that nothing was made of, the rules and the distance.

    A proposal is accepted where its Dice is expected to be higher by a margin, no structure's is lower by more than a
    tolerance, every anatomy rule is met, it is not too far from the original, and there was time to look at all views.
    What Dice is to be expected of a mask is the mean of two opinions: of the network
    (`medfm_rl.quality.evidence.expected_dice`), and of the segmenter in random views that only the verifier sees
    (`medfm_rl.quality.evidence.soft_dice` with their mean). The network alone hardly knows which of two masks of one
    image is better; the segmenter alone is sure of its systematic errors.

    Args:
        network: Trained on other patients than the networks that proposals are made with.
        anatomy: The rules.
        settings: What a correction has to gain and may cost, and how; the methods go by the same.
    """

    def __init__(self, network: RewardNet, anatomy: Anatomy, settings: CorrectionSettings) -> None:
        self.network = RewardEnsemble([network], RewardSettings())
        self.anatomy = anatomy
        self.settings = settings

    def require_other_than(self, reward: RewardEnsemble) -> None:
        """Refuses networks that proposals are made with.

        Raises:
            ModelError: One of them is the verifier's.
        """
        for member in reward.members:
            if any(_same(member, own) for own in self.network.members):
                raise ModelError(
                    "the verifier is one of the reward networks: it would agree with whatever they lead to"
                )

    @torch.no_grad()
    def compare(
        self,
        adapter: SegmenterAdapter,
        case: Case,
        sample: Sample,
        logits: Tensor,
        before: LabelMap,
        after: LabelMap,
        deadline: float = math.inf,
    ) -> Verification:
        """Compares two masks of a case.

        Args:
            adapter: The segmenter.
            case: The image.
            sample: The same, preprocessed by the adapter.
            logits: `(K, *S')` of the segmenter for the sample, on the CPU.
            before: The original, class indices `(*S)` on the case's own grid.
            after: The proposal.
            deadline: `time.monotonic()` after which no view is begun but the first.
        """
        schema = adapter.schema
        probabilities = logits.float().softmax(dim=0)
        count = self.settings.views
        seen = list(segmented_views(adapter, sample, probabilities, count, "views of the verifier", deadline))
        mean = torch.stack(seen).mean(dim=0)
        old, new = (self._expected(adapter, sample, mean, labels) for labels in (before, after))
        gains = dict(zip(schema.structures, (new - old).tolist(), strict=True))
        gain = float((new - old).mean())
        spacing = case.geometry.array_spacing
        broken = [
            tuple(str(rule) for rule in self.anatomy.check(labels, spacing) if not rule.passed)
            for labels in (before, after)
        ]
        change = 1 - float(dice(before, after, schema.classes).mean())
        objections = (*self._lack_of_time(len(seen)), *self._objections(gain, gains, change, broken[1]))
        agreed = (
            f"the verifier expects a Dice that is {gain:.3f} higher, at least {self.settings.margin:g}; "
            "every rule is met",
        )
        return Verification(not objections, objections or agreed, gain, gains, change, broken[0], broken[1], len(seen))

    def _expected(self, adapter: SegmenterAdapter, sample: Sample, mean: Tensor, labels: LabelMap) -> Tensor:
        """Dice of each structure to be expected by network and views, `(R,)`."""
        device = adapter.device
        action = adapter.preprocess_labels(labels, sample).cpu()
        map_ = tiled_reward_map(self.network.to(device), sample.image.to(device), action.to(device), adapter.patch_size)
        expected = expected_dice(map_.cpu()[None], action[None], adapter.schema.classes)[0]
        return (expected + soft_dice(mean, action, adapter.schema.classes)) / 2

    def _lack_of_time(self, seen: int) -> tuple[str, ...]:
        # All views, for what is accepted must not depend on how busy a machine is. Of 70 masks of CAMUS that a vote
        # changed, 11 were accepted after 8 of 16 views, and 5 of these no longer after 16; after 12 views 9, and 2 of
        # these. After 8 views the gain was .004 from that of 32 (root mean square), and the margin is .005.
        wanted = self.settings.views
        if seen == wanted:
            return ()
        return (f"time: the verifier could look at {seen} of {wanted} views, and accepts nothing on fewer",)

    def _objections(
        self, gain: float, gains: dict[str, float], change: float, broken: tuple[str, ...]
    ) -> tuple[str, ...]:
        margin, limit = self.settings.margin, self.settings.max_change
        found = []
        if not gain >= margin:
            found.append(f"the verifier expects a change of Dice of {gain:+.3f}, at least {margin:+g} is needed")
        found += [
            f"the verifier expects the Dice of {name} to fall by {-lost:.3f}"
            for name, lost in gains.items()
            if lost < -self.settings.tolerance
        ]
        if change > limit:
            found.append(f"it is too far from the original: 1 - Dice is {change:.3f}, at most {limit:g} is allowed")
        return (*found, *broken)


def _same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    """Whether two networks are the same function: the same weights, whatever their temperature."""
    if one is two:
        return True
    if not isinstance(one, RewardNet) or not isinstance(two, RewardNet):
        return False
    ours, theirs = one.state_dict(), two.state_dict()
    if [(name, value.shape) for name, value in ours.items()] != [(name, value.shape) for name, value in theirs.items()]:
        return False
    return all(torch.equal(value.cpu(), theirs[name].cpu()) for name, value in ours.items() if name != "temperature")
