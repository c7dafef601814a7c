"""Consistency over time: what the neighbours of a frame, carried along by the images' motion, say of its mask.

Hearts move smoothly, and a segmenter that sees frames one by one does not know it (RL4Seg3D, arXiv 2510.14244). A frame
in which it fails is mostly one among others in which it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medfm_rl.data.clips.motion import neighbours_of, sum_of_neighbours
from medfm_rl.metrics.overlap import dice
from medfm_rl.networks import argmax_classes
from medfm_rl.rows import Rows
from medfm_rl.structures import Structures, count_classes
from medfm_rl.types import FloatArray, LabelMap


def vote_of_neighbours(
    frame: FloatArray, neighbours: Sequence[tuple[FloatArray, LabelMap, float]], num_classes: int
) -> FloatArray:
    """Share of its neighbours' votes that each class has at each pixel of a frame, `(K, H, W)` float32.

    Args:
        frame: Grey values `(H, W)`.
        neighbours: Of each its grey values `(H, W)`, its mask, class indices `(H, W)`, and what it counts; not empty.
        num_classes: K.

    Raises:
        ValueError: There is no neighbour.
    """
    if not neighbours:
        raise ValueError("a frame without neighbours has nobody to vote")
    classes = np.arange(num_classes)[:, None, None]
    told = [(other, (labels == classes).astype(np.float32), weight) for other, labels, weight in neighbours]
    votes = sum_of_neighbours(frame, told)
    return (votes / sum(weight for _, _, weight in neighbours)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class ClipVotes:
    """The votes on frames of clips by a policy's masks: 1 and 1/2 of those on either side, and 1 of the frame itself.

    Attributes:
        images: `(N, C, H, W)`, frames among them.
        clips: Rows of the frames of each clip, in their order.
        logits: The policy, images `(B, C, H, W)` to logits `(B, K, H, W)` on the CPU.
    """

    images: Rows
    clips: Sequence[Sequence[int]]
    logits: Callable[[Tensor], Tensor]

    @cached_property
    def rows(self) -> list[int]:
        """Of all frames of clips, one clip after the other."""
        return list(self._places)

    @cached_property
    def _places(self) -> dict[int, tuple[Sequence[int], int]]:
        """By row, its clip, and its place there."""
        return {row: (clip, place) for clip in self.clips for place, row in enumerate(clip)}

    def __contains__(self, row: int) -> bool:
        """Whether an image is a frame of a clip."""
        return row in self._places

    def on(self, row: int) -> Tensor:
        """Share of the votes that each class has at each pixel of a frame, `(K, H, W)`."""
        clip, place = self._places[row]
        near = neighbours_of(place, len(clip))
        seen = self.images[[row, *(clip[other] for other, _ in near)]]
        logits = self.logits(seen)
        shown, masks = seen[:, 0].numpy(), argmax_classes(logits, dim=1).to(torch.uint8).numpy()
        told = [(shown[index], masks[index], weight) for index, (_, weight) in enumerate(near, 1)]
        own = logits[0].float().softmax(dim=0)
        if not told:
            return own
        weight = sum(weight for _, _, weight in told)
        neighbours = torch.from_numpy(vote_of_neighbours(shown[0].astype(np.float32), told, len(own)))
        return (own + weight * neighbours) / (1 + weight)


@final
class NeighbourWord:
    """What the frames before and after say of actions: an `Informant` of the reward.

    Its word on a pixel is the share of the votes that the class of the action has there.

    Args:
        votes: On the images.
        shown: By row of the environment, that of the image among those of the votes.
        share: Of the word in the reward, in [0, 1].
        kept: Votes that are remembered: sampled and best actions on the images of a rollout are rated in turn.
    """

    def __init__(self, votes: ClipVotes, shown: Mapping[int, int], share: float, kept: int = 32) -> None:
        self.share = share
        self._votes, self._shown = votes, shown
        self._on = lru_cache(maxsize=kept)(votes.on)

    def says(self, action: Tensor, row: int) -> Tensor | None:
        """Its word on each pixel of an action `(H, W)`; None for an image that is no frame of a clip."""
        shown = self._shown.get(row)
        if shown is None or shown not in self._votes:
            return None
        return self._on(shown).gather(0, action.long()[None])[0]


def agreement_over_time(
    frames: npt.NDArray[np.generic], masks: LabelMap, structures: Structures
) -> npt.NDArray[np.float64]:
    """Dice of each structure of each frame with what those beside it, carried along, say: `(T, R)` in [0, 1].

    1 throughout for a clip of one frame: nothing speaks against it.

    Args:
        frames: Grey values `(T, H, W)`.
        masks: Class indices `(T, H, W)`.
        structures: Class indices of each structure.
    """
    found = np.ones((len(masks), len(structures)))
    for place, mask in enumerate(masks):
        near = neighbours_of(place, len(masks), reach=1)
        if near:
            told = [(frames[other].astype(np.float32), masks[other], weight) for other, weight in near]
            votes = vote_of_neighbours(frames[place].astype(np.float32), told, count_classes(structures))
            found[place] = dice(mask, votes.argmax(axis=0).astype(np.uint8), structures)
    return found
