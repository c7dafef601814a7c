"""What is measured in masks of clips, beside their truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.post_processing import AS_IT_IS, PostProcessing
from medfm_rl.anatomy.clips import ClipAnatomy, measure_clip
from medfm_rl.anatomy.ejection import interval_of_draws, single_plane
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.anatomy.uncertainty import draw_clip
from medfm_rl.data.layouts import CaseFile, whole_clips
from medfm_rl.metrics.bootstrap import paired_bootstrap
from medfm_rl.metrics.overlap import dice
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.seeding import numpy_generator
from medfm_rl.structures import exclusive
from medfm_rl.types import Clip, FloatArray, LabelMap, LabelSchema
from medfm_rl.workflows.deploy.predict import segment_clip

VENTRICLE = "LV"


@dataclass(frozen=True, eq=False)
class KnownClip:
    """A clip with its truth.

    Attributes:
        clip: The clip.
        truth: Class indices `(T, H, W)`; of the ventricle alone where `ventricle_alone`.
        ventricle_alone: Whether the truth knows nothing else.
    """

    clip: Clip
    truth: LabelMap
    ventricle_alone: bool = False


def known_clips(files: Sequence[CaseFile], segmenter: SegmenterAdapter) -> Iterator[KnownClip]:
    """The clips of a data set with masks of every frame, one by one."""
    for whole in whole_clips(files):
        frames = [file for file in files if file.clip_id == whole.case_id]
        truth = np.stack([file.read_labelled(segmenter.schema).ground_truth for file in frames])
        yield KnownClip(whole.read_clip(), truth)


def measure_masks(known: KnownClip, masks: LabelMap, anatomy: Anatomy) -> dict[str, Any]:
    """Figures of the masks `(T, H, W)` of one clip."""
    schema = anatomy.schema
    scores = np.array(
        [_dice(mask, truth, known, schema).mean() for mask, truth in zip(masks, known.truth, strict=True)]
    )
    found = measure_clip(masks, schema, VENTRICLE, known.clip.plane_spacing)
    truth = measure_clip(known.truth, schema, VENTRICLE, known.clip.plane_spacing)
    ours, true = single_plane(found), single_plane(truth)
    error = None if ours is None or true is None else abs(ours.ef - true.ef)
    return {
        "clip": known.clip.clip_id,
        "patient": known.clip.patient_id,
        "dice": float(scores.mean()),
        "worst_frame_dice": float(scores.min()),
        "worst_frame": int(scores.argmin()),
        "valid_frames": float(np.mean([anatomy.is_valid(mask, known.clip.plane_spacing) for mask in masks])),
        "valid_over_time": found.valid,
        "broken": sorted({f"{rule.rule} of {rule.structure}" for rule in found.rules if not rule.passed}),
        "jitter": found.jitter,
        "true_jitter": truth.jitter,
        "ef": None if ours is None else ours.ef,
        "true_ef": None if true is None else true.ef,
        "ef_error": error,
    }


def measure_model(
    segmenter: SegmenterAdapter,
    reward: RewardEnsemble | None,
    clips: Sequence[KnownClip],
    anatomy: Anatomy,
    processing: PostProcessing = AS_IT_IS,
) -> tuple[list[dict[str, Any]], list[LabelMap]]:
    """Figures of each clip, with whether the intervals from reward maps cover the truth, and the masks.

    Args:
        segmenter: Makes the masks.
        reward: Gives their reward maps; None for none.
        clips: With truth, which is read to measure alone.
        anatomy: Rules of the image.
        processing: What is done to the masks.
    """
    rows, made = [], []
    for known in clips:
        masks, maps = segment_clip(segmenter, reward, known.clip, processing)
        row = measure_masks(known, masks, anatomy)
        if maps is not None:
            row |= _coverage(known, masks, maps, anatomy)
        rows.append(row)
        made.append(masks)
    return rows, made


def average(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over clips; of what a clip has none of, over the others."""
    names = ("dice", "worst_frame_dice", "valid_frames", "valid_over_time", "jitter", "true_jitter", "ef_error")
    more = ("ef_covered", "area_covered")
    found: dict[str, Any] = {}
    for name in (*names, *more):
        values = [float(row[name]) for row in rows if row.get(name) is not None]
        found[name] = float(np.mean(values)) if values else None
    return found | {"clips": len(rows), "with_ef": sum(row["ef"] is not None for row in rows)}


def gain_over(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By how much the Dice of the same clips differs, with an interval over patients."""
    first, second = (np.array([row["dice"] for row in rows]) for rows in (before, after))
    return asdict(paired_bootstrap(first, second, [row["patient"] for row in after]))


def _dice(mask: LabelMap, truth: LabelMap, known: KnownClip, schema: LabelSchema) -> FloatArray:
    if known.ventricle_alone:
        return dice((mask == 1).astype(np.uint8), (truth == 1).astype(np.uint8), exclusive(2))
    return dice(mask, truth, schema.classes)


def _coverage(known: KnownClip, masks: LabelMap, maps: FloatArray, anatomy: Anatomy) -> dict[str, Any]:
    """Whether the truth lies in the intervals of 90 %: of the ejection fraction, and of the ventricle's areas."""
    schema = anatomy.schema
    found: ClipAnatomy = measure_clip(masks, schema, VENTRICLE, known.clip.plane_spacing)
    rng = numpy_generator(0, "coverage", known.clip.clip_id)
    draws = draw_clip(masks, maps, schema, found, known.clip.plane_spacing, rng)
    interval = interval_of_draws([found], [draws])
    true = single_plane(measure_clip(known.truth, schema, VENTRICLE, known.clip.plane_spacing))
    areas = (known.truth == schema.index_of(VENTRICLE)).sum(axis=(1, 2))
    ends = draws.areas[VENTRICLE]
    covered = (areas >= ends[:, 0]) & (areas <= ends[:, 1])
    return {
        "interval": None if interval is None else asdict(interval),
        "ef_covered": None if interval is None or true is None else interval.ef[0] <= true.ef <= interval.ef[1],
        "area_covered": float(covered.mean()),
    }
