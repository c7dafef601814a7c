"""Correction of a frame by its neighbours in the clip: temporal smoothing, which the verifier has to accept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.grid import Sample
from medfm_rl.anatomy.cleaning import clean_up
from medfm_rl.correction.corrector import CaseCorrector, Original, Proposal
from medfm_rl.correction.verifier import Verifier
from medfm_rl.reward.consistency import vote_of_neighbours
from medfm_rl.types import Case, LabelMap

_OWN = 1.0
"""What the frame counts itself; each neighbour counts 1 over its distance, so that four have three votes."""


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A frame beside the one that is corrected.

    Attributes:
        case: The frame.
        labels: Its mask, class indices `(H, W)`.
        weight: What it counts.
    """

    case: Case
    labels: LabelMap
    weight: float


class NeighbourVote(CaseCorrector):
    """Averages the segmenter's probabilities with the masks of the neighbours, carried along by the images' motion.

    What the rules say of parts and holes is done to the average. An image that is no frame of a clip has no neighbours,
    and nothing is proposed.

    Args:
        adapter: The deployed segmenter, of two dimensions.
        verifier: Decides.
    """

    def __init__(self, adapter: SegmenterAdapter, verifier: Verifier) -> None:
        super().__init__(adapter, verifier)
        self.neighbours: Mapping[str, Sequence[Neighbour]] = {}
        """By case; whoever knows the clip sets them before its frames are corrected."""

    @torch.no_grad()
    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        """The average."""
        del deadline
        known = self.neighbours.get(sample.case_id, ())
        if not known:
            return Proposal(original.labels)
        told = []
        for neighbour in known:
            seen = self.adapter.preprocess_frame(neighbour.case, neighbour.labels)
            action = self.adapter.preprocess_labels(neighbour.labels, seen).cpu().numpy()
            told.append((seen.image[0].cpu().numpy(), action, neighbour.weight))
        votes = torch.from_numpy(vote_of_neighbours(sample.image[0].cpu().numpy(), told, len(logits)))
        own = logits.float().softmax(dim=0)
        if not original.own:
            own = F.one_hot(original.action.long(), len(logits)).movedim(-1, 0).float()
        weight = sum(neighbour.weight for neighbour in known)
        mean = (_OWN * own + weight * votes) / (_OWN + weight)
        labels = clean_up(self.adapter.restore(mean.clamp_min(1e-12).log(), sample), self.verifier.anatomy)
        return Proposal(labels, views=len(known))
