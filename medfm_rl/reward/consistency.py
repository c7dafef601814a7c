"""Consistency over time: what the neighbours of a frame, carried along by the images' motion, say of its mask.

Hearts move smoothly, and a segmenter that sees frames one by one does not know it (RL4Seg3D, arXiv 2510.14244). A frame
in which it fails is mostly one among others in which it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from medfm_rl.data.clips.motion import carry, find_motion
from medfm_rl.metrics.overlap import dice
from medfm_rl.structures import Structures, count_classes
from medfm_rl.types import FloatArray, LabelMap

NEIGHBOURS = 2
"""Frames on either side that are asked."""


def neighbours_of(place: int, count: int, reach: int = NEIGHBOURS) -> list[tuple[int, float]]:
    """Places of the neighbours of a frame in a clip, and what each counts: 1 over its distance.

    Args:
        place: Of the frame, counted from 0.
        count: Frames of the clip.
        reach: How many on either side.
    """
    near = range(max(0, place - reach), min(count, place + reach + 1))
    return [(other, 1 / abs(other - place)) for other in near if other != place]


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
    votes = np.zeros((num_classes, *frame.shape), np.float32)
    for other, labels, weight in neighbours:
        carried = carry(labels, find_motion(frame, other))
        for index in range(num_classes):
            votes[index] += np.float32(weight) * (carried == index)
    return (votes / sum(weight for _, _, weight in neighbours)).astype(np.float32)


def agreement_over_time(
    frames: npt.NDArray[np.generic], masks: LabelMap, structures: Structures, reach: int = 1
) -> npt.NDArray[np.float64]:
    """Dice of each structure of each frame with what its neighbours, carried along, say: `(T, R)` in [0, 1].

    1 throughout for a clip of one frame: nothing speaks against it.

    Args:
        frames: Grey values `(T, H, W)`.
        masks: Class indices `(T, H, W)`.
        structures: Class indices of each structure.
        reach: Neighbours on either side.
    """
    found = np.ones((len(masks), len(structures)))
    for place, votes in _votes(frames, masks, count_classes(structures), reach):
        found[place] = dice(masks[place], votes.argmax(axis=0).astype(np.uint8), structures)
    return found


def _votes(
    frames: npt.NDArray[np.generic], masks: LabelMap, num_classes: int, reach: int
) -> Iterator[tuple[int, FloatArray]]:
    for place in range(len(masks)):
        near = neighbours_of(place, len(masks), reach)
        if near:
            told = [(frames[other].astype(np.float32), masks[other], weight) for other, weight in near]
            yield place, vote_of_neighbours(frames[place].astype(np.float32), told, num_classes)
