"""Masks of clips: of frames by a segmenter of whole clips, and of frames that are averaged with their neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from medfm_rl.adapters.base import SegmentedFrame, SegmenterAdapter
from medfm_rl.adapters.post_processing import AS_IT_IS, PostProcessing
from medfm_rl.data.clips.motion import mean_with_neighbours, neighbours_of
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import ConfigError, UserError
from medfm_rl.types import Case, Clip, FloatArray, LabelMap

_LEAST = 1e-7
"""Probability below which a logarithm says no more."""


def segmented_frames(segmenter: SegmenterAdapter, clip: Clip, over_time: bool = False) -> Iterator[SegmentedFrame]:
    """Every frame of a clip, segmented, in any order.

    Args:
        segmenter: Segments.
        clip: The clip.
        over_time: Whether each is averaged with its neighbours (`averaged_over_time`).

    Raises:
        DataError: As in `SegmenterAdapter.segment_clip`.
    """
    frames = segmenter.segment_clip(clip)
    return averaged_over_time(frames, len(clip.frames)) if over_time else frames


def averaged_over_time(frames: Iterable[SegmentedFrame], count: int) -> Iterator[SegmentedFrame]:
    """The frames of a clip, each averaged with what the frames before and after it say, carried along by the motion.

    Probabilities are averaged: its own count as one, those of two frames on either side as 1 over their distance. The
    logits of the result are logarithms of the mean. Frames may come in any order; those that are still to be asked are
    in memory, five where they come in the order of time.

    Args:
        frames: All frames of a clip, once each, of one size.
        count: How many there are.
    """
    held: dict[int, SegmentedFrame] = {}
    missing = set(range(count))
    asked_by = {index: [other for other, _ in neighbours_of(index, count)] for index in range(count)}
    for frame in frames:
        held[frame.index] = replace(frame, logits=frame.logits.float().softmax(dim=0))
        for index in sorted({frame.index, *asked_by[frame.index]} & missing):
            if index in held and all(other in held for other in asked_by[index]):
                missing.discard(index)
                yield replace(held[index], logits=_mean_logits(held, index, count))
        for index in [index for index in held if missing.isdisjoint((index, *asked_by[index]))]:
            del held[index]


def _mean_logits(held: Mapping[int, SegmentedFrame], index: int, count: int) -> Tensor:
    """Logits `(K, *S')` of a frame, from its probabilities and those of its neighbours."""
    told = [
        (_grey_values(held[other]), held[other].logits.numpy(), weight) for other, weight in neighbours_of(index, count)
    ]
    mean = mean_with_neighbours(held[index].logits.numpy(), _grey_values(held[index]), told)
    return torch.from_numpy(mean).clamp_min(_LEAST).log()


def _grey_values(frame: SegmentedFrame) -> FloatArray:
    values: FloatArray = frame.sample.image[0].float().numpy()
    return values


def segment_frames(segmenter: SegmenterAdapter, clip: Clip, processing: PostProcessing = AS_IT_IS) -> LabelMap:
    """Class indices `(T, H, W)` of every frame of a clip.

    Args:
        segmenter: Segments.
        clip: The clip.
        processing: What is done to the masks.

    Raises:
        DataError: As in `SegmenterAdapter.segment_clip`.
    """
    masks = np.zeros((len(clip.frames), *clip.frames.shape[2:]), dtype=np.uint8)
    for frame in segmented_frames(segmenter, clip, processing.over_time):
        masks[frame.index] = processing.of(segmenter.restore(frame.logits, frame.sample))
    return processing.of_clip(clip, masks)


def require_clips(files: Sequence[CaseFile], over_time: bool) -> None:
    """Refuses to average over time where time is not: whoever asked for it would take the masks for averaged.

    Raises:
        ConfigError: No case is a frame of a clip.
    """
    if over_time and all(file.clip is None for file in files):
        raise ConfigError(
            f"--over-time averages frames of clips, and none of the {len(files)} cases is one; leave it out, or say "
            "--layout clips where files of three axes, or folders of pictures, are clips"
        )


@final
class CaseMasks:
    """Has cases segmented one by one; the masks of the last clip are kept, where its frames are segmented together.

    Args:
        segmenter: Makes the masks.
        processing: What is done to them.
    """

    def __init__(self, segmenter: SegmenterAdapter, processing: PostProcessing = AS_IT_IS) -> None:
        self._segmenter = segmenter
        self._processing = processing
        self._clip: tuple[str, str] | None = None
        self._masks: LabelMap | UserError | None = None

    def segment(self, file: CaseFile, case: Case) -> LabelMap:
        """Class indices `(*S)` of a case, whatever it is.

        Args:
            file: The case.
            case: The same, read.

        Raises:
            DataError: It cannot be segmented.
        """
        found = self.in_clip(file)
        return self._processing.of(self._segmenter.segment(case)) if found is None else found

    def in_clip(self, file: CaseFile) -> LabelMap | None:
        """Class indices `(H, W)` of a frame whose clip is segmented as a whole; None for any other case.

        Raises:
            DataError: The clip cannot be read or segmented.
        """
        together = self._processing.over_time or self._segmenter.segments_clips
        if file.clip is None or file.frame is None or not together:
            return None
        clip = (str(file.clip_id), file.clip.hash())
        if clip != self._clip:
            try:
                self._masks = segment_frames(self._segmenter, file.read_clip(), self._processing)
            except UserError as error:
                # Every frame asks, and none has a mask.
                self._masks = error
            self._clip = clip
        if isinstance(self._masks, UserError):
            raise type(self._masks)(str(self._masks)) from self._masks
        assert self._masks is not None
        mask: LabelMap = self._masks[file.frame]
        return mask
