"""Masks of cases one by one, where those of frames may come from a segmenter of whole clips."""

from __future__ import annotations

from typing import final

import numpy as np

from medfm_rl.adapters.base import SegmenterAdapter
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError
from medfm_rl.types import Case, Clip, LabelMap


def segment_frames(segmenter: SegmenterAdapter, clip: Clip) -> LabelMap:
    """Class indices `(T, H, W)` of every frame of a clip.

    Raises:
        DataError: As in `SegmenterAdapter.segment_clip`.
    """
    masks = np.zeros((len(clip.frames), *clip.frames.shape[2:]), dtype=np.uint8)
    for frame in segmenter.segment_clip(clip):
        masks[frame.index] = segmenter.restore(frame.logits, frame.sample)
    return masks


@final
class CaseMasks:
    """Has cases segmented one by one; the masks of the last clip are kept, where its frames are segmented together.

    Args:
        segmenter: Makes the masks.
    """

    def __init__(self, segmenter: SegmenterAdapter) -> None:
        self._segmenter = segmenter
        self._clip: tuple[str, str] | None = None
        self._masks: LabelMap | DataError | None = None

    def segment(self, file: CaseFile, case: Case) -> LabelMap:
        """Class indices `(*S)` of a case, whatever it is.

        Args:
            file: The case.
            case: The same, read.

        Raises:
            DataError: It cannot be segmented.
        """
        found = self.in_clip(file)
        return self._segmenter.segment(case) if found is None else found

    def in_clip(self, file: CaseFile) -> LabelMap | None:
        """Class indices `(H, W)` of a frame whose clip is segmented as a whole; None for any other case.

        Raises:
            DataError: The clip cannot be read or segmented.
        """
        if file.clip is None or file.frame is None or not self._segmenter.segments_clips:
            return None
        clip = (str(file.clip_id), file.clip.hash())
        if clip != self._clip:
            try:
                self._masks = segment_frames(self._segmenter, file.read_clip())
            except DataError as error:
                # Every frame asks, and none has a mask.
                self._masks = error
            self._clip = clip
        if isinstance(self._masks, DataError):
            raise DataError(str(self._masks)) from self._masks
        assert self._masks is not None
        mask: LabelMap = self._masks[file.frame]
        return mask
