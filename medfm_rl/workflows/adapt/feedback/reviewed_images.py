"""Reviewed target cases as the networks see them: preprocessed images with the masks of the reviewers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError
from medfm_rl.feedback import FeedbackStore, Mask
from medfm_rl.feedback.agreement import consensus
from medfm_rl.progress import Progress
from medfm_rl.reward.collection import ImageSet, ReviewedImages
from medfm_rl.runs.learned_feedback import LearnedFeedback, ReviewedCase
from medfm_rl.tiling import tile_boxes
from medfm_rl.types import LabelMap


def load_reviewed(
    store: str, learned: LearnedFeedback, files: Sequence[CaseFile], adapter: SegmenterAdapter, progress: Progress
) -> ReviewedImages | None:
    """Reads and preprocesses what teaches; None where no mask does.

    Raises:
        DataError: A case is no more among those of the target, an image cannot be read, or a mask has another grid.
        FeedbackError: A mask is not in the store, or has other structures.
    """
    if not learned.reviewed:
        return None
    by_name: Mapping[str, CaseFile] = {file.case_id: file for file in files}
    images, masks, case_ids, patient_ids, trust, axes = [], [], [], [], [], []
    with FeedbackStore.open(store) as opened:
        for done, reviewed in enumerate(learned.reviewed, 1):
            if reviewed.case_id not in by_name:
                raise DataError(f"feedback: case {reviewed.case_id} is no more among those of the target; put it back")
            case = by_name[reviewed.case_id].read()
            sample = adapter.preprocess(case)
            labels = adapter.preprocess_labels(_agreed(opened, reviewed, adapter, case.shape), sample)
            for box in tile_boxes(sample.image.shape[1:], adapter.patch_size):
                images.append(sample.image[(slice(None), *box)])
                masks.append(labels[box])
                case_ids.append(reviewed.case_id)
                patient_ids.append(reviewed.patient_id)
                trust.append(reviewed.trust)
                axes.append(adapter.grid_axes(sample))
            progress("reading reviewed images", done, len(learned.reviewed))
    shown = ImageSet(torch.stack(images), tuple(case_ids), tuple(patient_ids), tuple(axes))
    accepted = frozenset(reviewed.case_id for reviewed in learned.reviewed if not reviewed.drawn)
    return ReviewedImages(shown, torch.stack(masks), tuple(trust), accepted)


def _agreed(
    store: FeedbackStore, reviewed: ReviewedCase, adapter: SegmenterAdapter, shape: tuple[int, ...]
) -> LabelMap:
    """The mask of the one reviewer, or the consensus of several."""
    found = [mask_on_image(store, sha256, reviewed.case_id, shape) for sha256 in reviewed.masks]
    agreed = found[0] if len(found) == 1 else consensus(found)
    return agreed.labels_for(adapter.schema)


def mask_on_image(store: FeedbackStore, sha256: str, case_id: str, shape: tuple[int, ...]) -> Mask:
    """A mask of the store, of the size of its image.

    Raises:
        DataError: It has another size.
        FeedbackError: It is not in the store.
    """
    mask = store.mask(sha256)
    if mask.shape != shape:
        raise DataError(
            f"feedback: mask {sha256[:12]} of case {case_id} has size {mask.shape} and the image {shape}; remove that "
            "entry (`medfm-rl feedback remove`) or correct its mask"
        )
    return mask
