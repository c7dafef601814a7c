"""One case of `medfm-rl correct`: its mask is corrected, proposed, referred or kept, and written with its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medfm_rl.adapters import Sample
from medfm_rl.adapters.clips import CaseMasks, segment_frames
from medfm_rl.correction import CaseCorrector, CorrectionResult
from medfm_rl.data.files import replace_on_success
from medfm_rl.data.images import write_labels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.names import file_of_case
from medfm_rl.errors import DataError
from medfm_rl.reports.corrections import correction_figure
from medfm_rl.reports.figures import figure_bytes
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.reward.score import structure_scores
from medfm_rl.runs.case_records import CaseRecords, hash_case, label_path
from medfm_rl.tiling import tiled_reward_map
from medfm_rl.types import Case, Clip, FloatArray, LabelMap
from medfm_rl.workflows.deploy.clip_correction import correct_clip
from medfm_rl.workflows.deploy.correction_outputs import is_cut, picture_path, record_of
from medfm_rl.workflows.deploy.given_masks import GivenMasks
from medfm_rl.workflows.deploy.memory import must_fit


@dataclass(frozen=True)
class Job:
    """What is to be done with a case, or with frames of a clip.

    Attributes:
        unit: The case, or the clip.
        chosen: The case, or the frames to be corrected.
        every: All frames of the clip, whose masks are its context; none for a case.
        keep: Whether the mask of the case stays.
    """

    unit: CaseFile
    chosen: tuple[CaseFile, ...]
    every: tuple[CaseFile, ...] = ()
    keep: bool = False

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the case, or of the frames to be corrected."""
        return tuple(file.case_id for file in self.chosen)


class CorrectionBench:
    """Corrects a case or keeps its mask, or takes what was done before.

    Args:
        corrector: Proposes and decides.
        reward: Shown beside the masks.
        records: What was done before, and where.
        common: What the result of every case depends on.
        propose_only: Whether every mask stays.
        masks: The masks to be corrected; None for those of the corrector's segmenter.
        originals: The masks of cases that are not corrected; None: the segmenter makes them.
    """

    def __init__(
        self,
        corrector: CaseCorrector,
        reward: RewardEnsemble,
        records: CaseRecords,
        common: dict[str, Any],
        propose_only: bool,
        masks: GivenMasks | None,
        originals: GivenMasks | None,
    ) -> None:
        self.corrector = corrector
        self.reward = reward
        self.out = records.out
        self.records = records
        self.common = common
        self.propose_only = propose_only
        self.masks = masks
        self.originals = originals
        self._masks = CaseMasks(corrector.adapter)

    @property
    def maker(self) -> Mapping[str, Any]:
        """Hashes and settings of what corrects."""
        return self.common

    def take(self, job: Job) -> None:
        """Does a job; what came of it is in the records.

        Raises:
            UserError: It cannot be done.
        """
        if job.keep:
            self.keep(job.chosen[0])
        else:
            self.correct(job)

    def finish(self) -> dict[str, Any]:
        """Every job is done when it is taken."""
        return {}

    def correct(self, job: Job, done: bool = False) -> list[Mapping[str, Any]]:
        """Corrects a case, or frames of a clip together, and says what came of each.

        Args:
            job: Which.
            done: Whether a worker has just done it: what a busy machine has cut is no reason to do it again then.

        Raises:
            UserError: It cannot be corrected.
        """
        if job.every:
            return self.handle_clip(job.chosen, job.every, done)
        return [self.handle(job.chosen[0], done)]

    def handle(self, file: CaseFile, done: bool = False) -> Mapping[str, Any]:
        """Corrects a case, and says what came of it; `done` as in `correct`."""
        inputs = {**self.common, **hash_case(file, self.corrector.adapter)}
        if self.masks is not None:
            inputs |= self.masks.hashes(file.case_id)
        known: Mapping[str, Any] | None = self.records.reuse(file.case_id, inputs)
        # What a busy machine cut is no result to hand out again.
        if known is not None and (done or not is_cut(known)):
            return known
        self.records.begin(file.case_id, inputs)
        with must_fit(f"case {file.case_id}", self.corrector.adapter.device):
            case = file.read()
            original = None if self.masks is None else self.masks.read(case)
            result = self.corrector.correct(case, original=original)
            return self._finish(case, result, inputs)

    def handle_clip(
        self, chosen: Sequence[CaseFile], every: Sequence[CaseFile], done: bool = False
    ) -> list[Mapping[str, Any]]:
        """Corrects frames of one clip together, and says what came of each, in their order.

        Args:
            chosen: The frames to be corrected.
            every: All frames of the clip, whose masks are its context.
            done: As in `correct`.

        Raises:
            DataError: A frame or its mask is missing or cannot be read.
        """
        clip_hash = "" if chosen[0].clip is None else chosen[0].clip.hash()
        context: dict[str, Any] = {"clip": clip_hash, "chosen": sorted(file.case_id for file in chosen)}
        if self.masks is not None:
            context["masks_of_clip"] = [self.masks.hashes(file.case_id) for file in every]
        inputs = [{**self.common, **hash_case(file, self.corrector.adapter), **context} for file in chosen]
        known = [self.records.reuse(file.case_id, of) for file, of in zip(chosen, inputs, strict=True)]
        found = [record for record in known if record is not None and (done or not is_cut(record))]
        if len(found) == len(chosen):
            return found
        for file, of in zip(chosen, inputs, strict=True):
            self.records.begin(file.case_id, of)
        with must_fit(f"clip {chosen[0].clip_id}", self.corrector.adapter.device):
            clip = chosen[0].read_clip()
            masks = self._masks_of_clip(clip, every)
            places = [file.frame for file in chosen if file.frame is not None]
            names = {file.frame: file.case_id for file in every if file.frame is not None}
            corrected = correct_clip(self.corrector, clip, masks, places, self.masks is None, names)
            return [
                self._finish(file.read(), corrected.results[place], of)
                for file, place, of in zip(chosen, places, inputs, strict=True)
            ]

    def _masks_of_clip(self, clip: Clip, every: Sequence[CaseFile]) -> LabelMap:
        """Masks of all frames before any correction, `(T, H, W)`."""
        if self.masks is None:
            return segment_frames(self.corrector.adapter, clip)
        if len(every) < len(clip.frames):
            raise DataError(
                f"clip {clip.clip_id}: {len(every)} of its {len(clip.frames)} frames are among the images, and a clip "
                "is corrected with all of them"
            )
        return np.stack([self.masks.read(file.read()) for file in every])

    def _finish(self, case: Case, result: CorrectionResult, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Writes what came of a case, and gives its record."""
        decision = "referred"
        if result.accepted:
            decision = "proposed" if self.propose_only else "corrected"
        mask = result.before if self.propose_only else result.mask
        rewards, files = self._write(case, result, decision, mask)
        record = record_of(result, case, decision, rewards)
        self.records.close_mask(record, inputs, mask, files, record)
        return record

    def keep(self, file: CaseFile) -> None:
        """Writes the mask of a case that is not corrected.

        Raises:
            UserError: There is none, or it cannot be read or made.
        """
        adapter = self.corrector.adapter
        inputs = {name: self.common[name] for name in ("format", "segmenter", "inference")}
        if self.originals is None:
            inputs |= {**hash_case(file, adapter), "mask": None}
        else:
            inputs |= {**hash_case(file, None), **self.originals.hashes(file.case_id)}
        if self.records.reuse(file.case_id, inputs) is not None:
            return
        with must_fit(f"case {file.case_id}", adapter.device):
            case = file.read()
            mask = self._masks.segment(file, case) if self.originals is None else self.originals.read(case)
        labels = label_path(self.out, file.case_id)
        self.records.begin(file.case_id, inputs)
        write_labels(labels, mask, case.geometry, adapter.schema)
        self.records.close_mask({"case": file.case_id, "decision": "kept"}, inputs, mask, [labels], {})

    def _write(
        self, case: Case, result: CorrectionResult, decision: str, mask: LabelMap
    ) -> tuple[tuple[float, float], list[Path]]:
        """Writes masks and picture; returns the mean rewards before and after, and the files."""
        schema = self.corrector.adapter.schema
        labels = label_path(self.out, case.case_id)
        proposal = file_of_case(self.out / "proposals", case.case_id, ".nii.gz")
        picture = picture_path(self.out, case.case_id)
        # One of an earlier call with other settings would look like one of this call.
        proposal.unlink(missing_ok=True)
        if decision == "proposed":
            write_labels(proposal, result.after, case.geometry, schema)
        sample = self.corrector.adapter.preprocess_frame(case, result.before)
        (map_before, before), (map_after, after) = (
            self._reward_of(sample, found) for found in (result.before, result.after)
        )
        title = f"{case.case_id}: {decision}"
        figure = correction_figure(case.image[0], result.before, map_before, result.after, map_after, schema, title)
        with replace_on_success(picture) as temporary:
            temporary.write_bytes(figure_bytes(figure))
        write_labels(labels, mask, case.geometry, schema)
        return (before, after), [labels, picture, *([proposal] if decision == "proposed" else [])]

    @torch.no_grad()
    def _reward_of(self, sample: Sample, labels: LabelMap) -> tuple[FloatArray, float]:
        """The reward map of a mask on the case's own grid, and its mean in and around the structures."""
        adapter = self.corrector.adapter
        action = adapter.preprocess_labels(labels, sample).to(adapter.device)
        found = tiled_reward_map(self.reward, sample.image.to(adapter.device), action, adapter.patch_size)
        mean = float(structure_scores(found[None], action[None], adapter.schema.classes).mean())
        return adapter.restore_map(found, sample).clip(0, 1), mean
