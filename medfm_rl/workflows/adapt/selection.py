"""Choice of a candidate without labels, by a reward network that no policy was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from medfm_rl.data.files import read_versioned_json, write_versioned_json
from medfm_rl.errors import DataError
from medfm_rl.metrics.bootstrap import paired_bootstrap
from medfm_rl.networks import argmax_classes
from medfm_rl.reward.collection import ImageSet
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.score import compared_scores
from medfm_rl.runs.folder import current_name

_FORMAT = 2
_ADVICE = "put back what `adapt` wrote there, or delete it and resume the run"
_BATCH = 16
"""Images that are rated at once."""


@dataclass(frozen=True)
class Candidate:
    """A policy that competes.

    Attributes:
        name: "source", "fine-tuning" or the folder of averaged checkpoints.
        score: Mean reward over the selection images, in [0, 1]; over the structures that it or the incumbent has.
        gain: Mean difference to the incumbent on the same images and structures.
        confidence: Share of bootstrap draws over patients in which the difference exceeds the margin.
    """

    name: str
    score: float
    gain: float
    confidence: float


@dataclass(frozen=True)
class Selection:
    """The decision of the held-out reward network.

    Attributes:
        chosen: Name of the chosen candidate.
        incumbent: Name of the one that was to be beaten.
        candidates: All of them, the source policy first.
    """

    chosen: str
    incumbent: str
    candidates: tuple[Candidate, ...]

    def write(self, path: Path) -> None:
        """Writes the decision and all scores as JSON, whole or not at all."""
        write_versioned_json(path, _FORMAT, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `write` wrote, also where version 0.1 did: candidates have the names of today.

        Raises:
            DataError: The file is missing, is no such decision, or was written by a newer version.
        """
        content = read_versioned_json(path, _FORMAT, _ADVICE)
        try:
            candidates = tuple(
                Candidate(**{**each, "name": current_name(each["name"])}) for each in content["candidates"]
            )
            return cls(current_name(content["chosen"]), current_name(content["incumbent"]), candidates)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: not a decision between candidates ({error!r}); {_ADVICE}") from error


@dataclass(frozen=True, eq=False)
class RatedMasks:
    """The argmax actions of a policy on the selection images, and the held-out reward of each pixel; both on the CPU.

    Attributes:
        maps: Reward maps `(N, *S)`.
        actions: `(N, *S)` uint8, class indices.
    """

    maps: Tensor
    actions: Tensor


@torch.no_grad()
def rate_masks(segmenter: nn.Module, held_out: RewardNet, images: Tensor, device: torch.device) -> RatedMasks:
    """Segments images `(N, C, *S)` and rates the masks with the held-out reward network."""
    maps, masks = [], []
    segmenter.eval()
    for batch in images.split(_BATCH):
        on_device = batch.to(device)
        actions = argmax_classes(segmenter(on_device), dim=1)
        maps.append(held_out.reward_map(on_device, actions).cpu())
        masks.append(actions.to("cpu", torch.uint8))
    return RatedMasks(torch.cat(maps), torch.cat(masks))


def paired_ratings(
    before: RatedMasks, after: RatedMasks, num_classes: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out rewards `(N,)` of the masks of two policies, image by image over the structures that either mask has.

    On its own a mask without a structure has no region there that could be rated. Slices and patches lack structures,
    and a false one must not score above none.
    """
    scores: tuple[list[Tensor], list[Tensor]] = ([], [])
    for rows in torch.arange(len(before.maps)).split(_BATCH):
        one, other = ((of.maps[rows].to(device), of.actions[rows].to(device)) for of in (before, after))
        for found, values in zip(scores, compared_scores(one, other, num_classes), strict=True):
            found.append(values.cpu())
    return torch.cat(scores[0]).numpy(), torch.cat(scores[1]).numpy()


def select(
    names: Sequence[str],
    scores: Sequence[tuple[np.ndarray, np.ndarray]],
    images: ImageSet,
    confidence: float,
    margin: float,
    incumbent: str,
) -> Selection:
    """Replaces the incumbent by the candidate with the highest held-out reward, where that network is sure.

    A network that learned from other images is a weak witness: it overturns what there is reason to believe in
    beforehand, and decides nothing else.

    Args:
        names: Candidates, the source policy first.
        scores: For each candidate the held-out rewards `(N,)` of the incumbent and its own, as compared with each other
            on the selection images.
        images: The selection images.
        confidence: Share of bootstrap draws over patients that count as being sure.
        margin: By how much a candidate must be better in those draws: what was trained against networks that learnt
            from the same kind of data pleases this one a little, whether or not it is better.
        incumbent: The candidate that stays without such evidence. Where the source policy beats it, that is returned.
    """
    candidates = []
    for name, (own, score) in zip(names, scores, strict=True):
        if name == incumbent:
            candidates.append(Candidate(name, float(score.mean()), 0.0, 0.0))
            continue
        difference = paired_bootstrap(own, score, images.patient_ids)
        beyond = paired_bootstrap(own + margin, score, images.patient_ids)
        candidates.append(Candidate(name, float(score.mean()), difference.mean, beyond.probability_positive))
    sure = [item for item in candidates if item.confidence >= confidence]
    if any(item.name == names[0] for item in sure):
        return Selection(names[0], incumbent, tuple(candidates))
    # By the gain: scores of two candidates need not be over the same structures.
    ahead = max(sure, key=lambda item: item.gain, default=None)
    return Selection(incumbent if ahead is None else ahead.name, incumbent, tuple(candidates))
