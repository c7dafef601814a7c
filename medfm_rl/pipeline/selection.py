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
from medfm_rl.networks import argmax_classes
from medfm_rl.reward.collection import ImageSet
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.score import structure_scores


@dataclass(frozen=True)
class Candidate:
    """A policy that competes.

    Attributes:
        name: "source", "warm-up" or the folder of averaged checkpoints.
        score: Mean judge score over the selection images, in [0, 1].
        gain: Mean difference to the incumbent on the same images.
        confidence: Share of bootstrap draws over patients in which the difference exceeds the margin.
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
        incumbent: Name of the one that was to be beaten.
        candidates: All of them, the source policy first.
    """

    chosen: str
    incumbent: str
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
        actions = argmax_classes(segmenter(on_device), dim=1)
        maps = judge.reward_map(on_device, actions)
        scores.append(structure_scores(maps, actions, num_classes).mean(dim=1).cpu())
    return torch.cat(scores).numpy()


def select(
    names: Sequence[str],
    scores: Sequence[np.ndarray],
    images: ImageSet,
    confidence: float,
    margin: float,
    incumbent: str,
) -> Selection:
    """Lets the judge replace the incumbent, where it is sure, by the candidate that it likes best.

    A judge that learnt from other images is a weak witness: it overturns what there is reason to believe in beforehand,
    and decides nothing else.

    Args:
        names: Candidates, the source policy first.
        scores: Judge scores `(N,)` of each candidate on the selection images.
        images: The selection images.
        confidence: Share of bootstrap draws over patients that count as being sure.
        margin: By how much a candidate must be better in those draws: what was trained against networks that learnt
            from the judge's own kind of data pleases the judge a little, whether or not it is better.
        incumbent: The candidate that stays without such evidence. Where the source policy beats it, that is returned.
    """
    own = scores[names.index(incumbent)]
    candidates = []
    for name, score in zip(names, scores, strict=True):
        if name == incumbent:
            candidates.append(Candidate(name, float(score.mean()), 0.0, 0.0))
            continue
        difference = paired_bootstrap(own, score, images.patient_ids)
        beyond = paired_bootstrap(own + margin, score, images.patient_ids)
        candidates.append(Candidate(name, float(score.mean()), difference.mean, beyond.probability_positive))
    sure = [item for item in candidates if item.confidence >= confidence]
    if any(item.name == names[0] for item in sure):
        return Selection(names[0], incumbent, tuple(candidates))
    ahead = max(sure, key=lambda item: item.score, default=None)
    return Selection(incumbent if ahead is None else ahead.name, incumbent, tuple(candidates))
