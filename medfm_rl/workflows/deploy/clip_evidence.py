"""What time says of the masks of scored clips: rules over time, and how far neighbouring frames agree."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medfm_rl.anatomy.clips import ClipAnatomy, measure_clip
from medfm_rl.data.clips.continuity import interruptions
from medfm_rl.data.layouts import CaseFile, find_ventricle
from medfm_rl.errors import UserError
from medfm_rl.reward.consistency import agreement_over_time
from medfm_rl.types import Clip, LabelMap, LabelSchema

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipEvidence:
    """What time says of the masks of a clip.

    Attributes:
        agreement: Of each frame the mean Dice over structures with what its neighbours, carried along by the images'
            motion, say of it, by case id.
        broken: Rules over time that are broken, in words; empty also where no structure is the left ventricle.
        doubts: Why a person has to look at the clip whatever its frames are like, in words: it is not one plane without
            a break, or, where a structure is the left ventricle, shows no whole beat of it.
    """

    agreement: Mapping[str, float]
    broken: tuple[str, ...]
    doubts: tuple[str, ...] = ()

    @property
    def least(self) -> tuple[str, float]:
        """The frame that agrees least with its neighbours, and how far it does."""
        return min(self.agreement.items(), key=lambda found: found[1])


def evidence_of_clip(clip: Clip, masks: LabelMap, schema: LabelSchema) -> ClipEvidence:
    """What time says of the masks `(T, H, W)` of a clip, class indices."""
    agreement = agreement_over_time(clip.frames[:, 0], masks, schema.classes).mean(axis=1)
    names = [clip.frame(index).case_id for index in range(len(masks))]
    by_frame = dict(zip(names, agreement.tolist(), strict=True))
    anatomy = _anatomy_of(clip, masks, schema)
    doubts = interruptions(clip)
    if anatomy is None:
        return ClipEvidence(by_frame, (), doubts)
    return ClipEvidence(by_frame, anatomy.broken, (*doubts, *anatomy.doubts))


def broken_over_time(clip: Clip, masks: LabelMap, schema: LabelSchema) -> tuple[str, ...]:
    """The rules over time that masks `(T, H, W)` break; none where no structure is the left ventricle."""
    found = _anatomy_of(clip, masks, schema)
    return () if found is None else found.broken


def _anatomy_of(clip: Clip, masks: LabelMap, schema: LabelSchema) -> ClipAnatomy | None:
    ventricle = find_ventricle(schema)
    return None if ventricle is None else measure_clip(masks, schema, ventricle, clip.plane_spacing)


def evidence_over_time(
    files: Sequence[CaseFile], read_mask: Callable[[CaseFile, Clip, int], LabelMap], schema: LabelSchema
) -> dict[str, ClipEvidence]:
    """What time says of each clip of which every frame is there and has a mask.

    Args:
        files: Cases that were assessed, frames of clips among them.
        read_mask: Reads the mask of a frame.
        schema: Structures.

    Returns:
        By clip; a clip that cannot be looked at is logged and left out.
    """
    clips: dict[str, dict[int, CaseFile]] = {}
    for file in files:
        if file.clip_id is not None and file.frame is not None:
            clips.setdefault(file.clip_id, {})[file.frame] = file
    found = {}
    for clip_id, frames in clips.items():
        first = next(iter(frames.values()))
        if first.clip is None or len(frames) < first.clip.count:
            continue
        try:
            clip = first.read_clip()
            masks = np.stack([read_mask(frames[index], clip, index) for index in range(len(clip.frames))])
        except UserError as error:
            _LOG.warning("clip %s is not looked at over time: %s", clip_id, error)
            continue
        evidence = evidence_of_clip(clip, masks, schema)
        names = [frames[index].case_id for index in range(len(masks))]
        agreement = dict(zip(names, evidence.agreement.values(), strict=True))
        found[clip_id] = ClipEvidence(agreement, evidence.broken, evidence.doubts)
    return found
