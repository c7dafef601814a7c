"""Judged masks of target cases as the reward networks see them: preprocessed images with the masks on their grid."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medfm_rl.adapters import Sample, SegmenterAdapter
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError
from medfm_rl.feedback import FeedbackStore
from medfm_rl.progress import Progress
from medfm_rl.reward.judgements import Comparison, JudgedMask, Judgement, Judgements
from medfm_rl.runs.learned_feedback import JudgedCase, LearnedFeedback, PreferredCase
from medfm_rl.settings import FeedbackSettings
from medfm_rl.tiling import tile_boxes
from medfm_rl.types import Case
from medfm_rl.workflows.adapt.feedback.reviewed_images import mask_on_image


def load_judged(
    settings: FeedbackSettings,
    learned: LearnedFeedback,
    files: Sequence[CaseFile],
    adapter: SegmenterAdapter,
    left_out: Collection[str],
    progress: Progress,
) -> Judgements | None:
    """Reads and preprocesses what was judged; None where nothing was.

    Args:
        settings: The store, and the weight of judgements.
        learned: What teaches.
        files: The cases of the target.
        adapter: Preprocesses.
        left_out: Patients whose judgements teach nothing: candidates are compared on their images.
        progress: Told how many cases were read.

    Raises:
        DataError: A case is no more among those of the target, an image cannot be read, a mask has another grid, or a
            judgement is of a structure that the segmenter does not have.
        FeedbackError: A mask is not in the store, or has other structures.
    """
    by_case: dict[str, list[JudgedCase | PreferredCase]] = {}
    for each in learned.judgements:
        if each.patient_id not in left_out:
            by_case.setdefault(each.case_id, []).append(each)
    if not by_case:
        return None
    by_name = {file.case_id: file for file in files}
    with FeedbackStore.open(settings.store) as opened:
        reading = _Reading(opened, adapter)
        for done, (case_id, said) in enumerate(by_case.items(), 1):
            if case_id not in by_name:
                raise DataError(f"feedback: case {case_id} is no more among those of the target; put it back")
            reading.add(by_name[case_id].read(), said)
            progress("reading judged images", done, len(by_case))
    return Judgements(tuple(reading.masks), tuple(reading.said), adapter.schema.classes, settings.judgement_weight)


@dataclass(eq=False)
class _Reading:
    """What was read so far."""

    store: FeedbackStore
    adapter: SegmenterAdapter
    masks: list[JudgedMask] = field(default_factory=list)
    said: list[Judgement | Comparison] = field(default_factory=list)

    def add(self, case: Case, said: Sequence[JudgedCase | PreferredCase]) -> None:
        sample = self.adapter.preprocess(case)
        boxes = tile_boxes(sample.image.shape[1:], self.adapter.patch_size)
        images = torch.stack([sample.image[(slice(None), *box)] for box in boxes])
        places: dict[str, int] = {}
        for each in said:
            hashes = (each.mask,) if isinstance(each, JudgedCase) else (each.better, each.worse)
            for sha256 in hashes:
                if sha256 not in places:
                    places[sha256] = len(self.masks)
                    labels = self._labels(sha256, each.case_id, case, sample)
                    tiles = torch.stack([labels[box] for box in boxes])
                    self.masks.append(JudgedMask(images, tiles, each.patient_id))
            structure = self._index(each)
            if isinstance(each, JudgedCase):
                self.said.append(Judgement(places[each.mask], structure, each.scale, each.value, each.trust))
            else:
                self.said.append(Comparison(places[each.better], places[each.worse], structure, each.trust))

    def _labels(self, sha256: str, case_id: str, case: Case, sample: Sample) -> Tensor:
        mask = mask_on_image(self.store, sha256, case_id, case.shape)
        return self.adapter.preprocess_labels(mask.labels_for(self.adapter.schema), sample)

    def _index(self, said: JudgedCase | PreferredCase) -> int | None:
        schema = self.adapter.schema
        if said.structure is None or said.structure in schema.structures:
            return None if said.structure is None else 1 + schema.structures.index(said.structure)
        raise DataError(
            f"feedback: what was said of structure {said.structure!r} of case {said.case_id} teaches nothing, for the "
            f"segmenter has {', '.join(schema.structures)}; remove that entry (`medfm-rl feedback remove`), or leave "
            "its kind out of feedback.kinds"
        )
