"""Choice of a candidate without labels, by a judge that no policy was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from medfm_rl.data.files import write_json
from medfm_rl.metrics.bootstrap import paired_bootstrap
from medfm_rl.reward.collection import ImageSet
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.score import structure_scores


@dataclass(frozen=True)
class Candidate:
    """A policy that competes.

    Attributes:
        name: "source" or the folder of averaged checkpoints.
        score: Mean judge score over the selection images, in [0, 1].
        gain: Mean difference to the source policy on the same images.
        confidence: Share of bootstrap draws over patients in which the difference is positive.
    """

    name: str
    score: float
    gain: float
    confidence: float


@dataclass(frozen=True)
class Selection:
    """What the judge decided.

    Attributes:
        chosen: Name of the chosen candidate.
        candidates: All of them, the source policy first.
    """

    chosen: str
    candidates: tuple[Candidate, ...]

    def write(self, path: Path) -> None:
        """Writes the decision and all scores as JSON."""
        write_json(path, asdict(self))


@torch.no_grad()
def judge_scores(
    segmenter: nn.Module, judge: RewardNet, images: Tensor, num_classes: int, device: torch.device
) -> np.ndarray:
    """Judge score of each image's argmax action, `(N,)`: the mean over structures."""
    scores = []
    segmenter.eval()
    for batch in images.split(16):
        on_device = batch.to(device)
        actions = segmenter(on_device).argmax(dim=1)
        maps = judge.reward_map(on_device, actions)
        scores.append(structure_scores(maps, actions, num_classes).mean(dim=1).cpu())
    return torch.cat(scores).numpy()


def select(names: Sequence[str], scores: Sequence[np.ndarray], images: ImageSet, confidence: float) -> Selection:
    """Picks the candidate that the judge likes best; step 0 competes and wins ties.

    Args:
        names: Candidates, the source policy first.
        scores: Judge scores `(N,)` of each candidate on the selection images.
        images: The selection images.
        confidence: A candidate must beat the source policy in this share of bootstrap draws over patients.
    """
    candidates = [Candidate(names[0], float(scores[0].mean()), 0.0, 0.0)]
    for name, score in zip(names[1:], scores[1:], strict=True):
        difference = paired_bootstrap(scores[0], score, images.patient_ids)
        candidates.append(Candidate(name, float(score.mean()), difference.mean, difference.probability_positive))
    eligible = [candidates[0], *(item for item in candidates[1:] if item.confidence >= confidence)]
    return Selection(max(eligible, key=lambda item: item.score).name, tuple(candidates))
