"""Reward maps of clips in a folder, as `predict` and `score` write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medfm_rl.data.clips.sequences import find_sequence, read_sequence
from medfm_rl.data.images import read_image
from medfm_rl.errors import DataError
from medfm_rl.types import Clip, FloatArray, frame_id

_ROUNDED = 1e-3


def read_reward_maps(clip: Clip, maps: Mapping[str, Path]) -> FloatArray:
    """Probability that each pixel of the masks of a clip is right, `(T, H, W)` in [0, 1].

    Args:
        clip: The clip.
        maps: Files by frame: a file for each, or the sequence of the clip.

    Raises:
        DataError: A map is missing, cannot be read, has another size, or values that are no probabilities.
    """
    paths = []
    for index in range(len(clip.frames)):
        path = maps.get(frame_id(clip.clip_id, index))
        if path is None:
            raise DataError(f"clip {clip.clip_id}: there is no reward map of frame {index} (counted from 0)")
        paths.append(path)
    shape = (len(paths), *clip.frames.shape[2:])
    if len(set(paths)) == 1:
        if find_sequence(paths[0], planes_over_time=True) is None:
            raise DataError(f"{paths[0]}: holds one reward map, and the clip has {len(paths)} frames")
        found = read_sequence(paths[0])[0][:, 0]
    else:
        found = np.stack([read_image(path)[0][0] for path in paths])
    if found.shape != shape:
        raise DataError(
            f"{paths[0]}: reward maps of size {found.shape} and a clip of {shape} (frames, rows, columns); they must "
            "be of the same clip"
        )
    if not (found.min() >= -_ROUNDED and found.max() <= 1 + _ROUNDED):
        raise DataError(
            f"{paths[0]}: has values from {found.min():g} to {found.max():g}, and reward maps are probabilities in "
            "[0, 1]; give the folder rewards/ of predict or score"
        )
    return np.clip(found, 0, 1)
