"""A vote of random views of a case, in which what the reward networks believe counts most."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.grid import Sample
from medfm_rl.anatomy.cleaning import clean_up
from medfm_rl.correction.corrector import CaseCorrector, Original, Proposal
from medfm_rl.correction.verifier import Verifier
from medfm_rl.correction.views import segmented_views
from medfm_rl.networks import argmax_classes, log_of, one_hot
from medfm_rl.quality.evidence import expected_dice, soft_dice
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.tiling import tiled_reward_map
from medfm_rl.types import LabelMap

_TEMPERATURE = 0.02
"""A mask whose worth is .02 lower, a point of Dice, counts 1/e: of 17 views a few decide, and seldom one alone."""
_PRICE_OF_RULES = 0.05
"""How much less the best mask that meets the rules may be worth: rules of a source need not hold on a target."""


class ViewVote(CaseCorrector):
    """Segments a case as it is and in random views, and averages their probabilities, the better masks more.

    The worth of a mask is the Dice to be expected of it by the reward networks, plus its Dice with the mean of the
    views. What the rules say of parts and holes is done to the average. Where it breaks a rule all the same, the masks
    that break none vote alone, if the best of them is worth nearly as much as the best of all. This is reward-weighted
    averaging over actions (Peters and Schaal, ICML 2007) with random views for exploration, and no weight of the
    segmenter is touched.

    Args:
        adapter: The deployed segmenter.
        reward: What masks are weighed by.
        verifier: Decides; its network must not be one of `reward`, and it looks at views of its own.
        others: Their proposals vote, too.

    Raises:
        ModelError: The verifier is one of the reward networks.
    """

    def __init__(
        self,
        adapter: SegmenterAdapter,
        reward: RewardEnsemble,
        verifier: Verifier,
        others: Sequence[CaseCorrector] = (),
    ) -> None:
        super().__init__(adapter, verifier)
        verifier.require_other_than(reward)
        self.reward = reward
        self.others = others

    @torch.no_grad()
    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        """The weighted average; its gains are those of the votes over the original, in expected Dice."""
        adapter, count = self.adapter, self.settings.views
        own = logits.float().softmax(dim=0)
        # The mask to be corrected comes first, and is the segmenter's own vote where that has made it.
        first = [own] if original.own else [one_hot(original.action, len(logits), dim=0), own]
        found = list(segmented_views(adapter, sample, own, count, "views", deadline))
        others = list(self._of_others(sample, logits, original, deadline))
        votes = torch.stack([*first, *found, *(self._as_vote(sample, other, len(logits)) for other in others)])
        worth = self._worth(sample, votes)
        weights = (worth / _TEMPERATURE).softmax(dim=0)
        labels = self._average(sample, votes, weights)
        if not self._meets_rules(sample, labels):
            eligible = torch.tensor([self._meets_rules(sample, self._tidied(sample, vote)) for vote in votes])
            if eligible.any() and float(worth[eligible].max()) >= float(worth.max()) - _PRICE_OF_RULES:
                weights = torch.where(eligible, worth / _TEMPERATURE, -torch.inf).softmax(dim=0)
                labels = self._average(sample, votes, weights)
        gains = tuple(((worth - worth[0]) / 2).tolist())
        cut = len(found) < count or len(others) < len(self.others) or any(other.stopped == "time" for other in others)
        return Proposal(labels, gains, int(weights.argmax()), "time" if cut else "done", len(found))

    def _of_others(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Iterator[Proposal]:
        for other in self.others:
            if time.monotonic() > deadline:
                return
            with torch.enable_grad():
                proposal = other.propose(sample, logits, original, deadline)
            yield proposal

    def _as_vote(self, sample: Sample, proposal: Proposal, num_classes: int) -> Tensor:
        return one_hot(self.adapter.preprocess_labels(proposal.labels, sample).cpu(), num_classes, dim=0)

    def _worth(self, sample: Sample, votes: Tensor) -> Tensor:
        """Of the mask of each vote `(V, K, *S')`: expected Dice plus Dice with the mean vote, `(V,)` in [0, 2]."""
        adapter = self.adapter
        reward, image = self.reward.to(adapter.device), sample.image.to(adapter.device)
        mean = votes.mean(dim=0)
        found = []
        for vote in votes:
            action = argmax_classes(vote, dim=0)
            map_ = tiled_reward_map(reward, image, action.to(adapter.device), adapter.patch_size).cpu()
            expected = expected_dice(map_[None], action[None], adapter.schema.classes)[0]
            found.append(expected.mean() + soft_dice(mean, action, adapter.schema.classes).mean())
        return torch.stack(found)

    def _average(self, sample: Sample, votes: Tensor, weights: Tensor) -> LabelMap:
        return self._tidied(sample, torch.einsum("v,v...->...", weights, votes))

    def _tidied(self, sample: Sample, probabilities: Tensor) -> LabelMap:
        return clean_up(self.adapter.restore(log_of(probabilities), sample), self.verifier.anatomy)

    def _meets_rules(self, sample: Sample, labels: LabelMap) -> bool:
        return self.verifier.anatomy.is_valid(labels, sample.geometry.array_spacing)
