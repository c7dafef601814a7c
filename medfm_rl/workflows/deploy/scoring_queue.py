"""Cases that wait to be assessed together.

Sums in a network go in another order where a batch is of another size, and the last digits of a score with it. So cases
are assessed together that lie in one block of the list: one process and workers have the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.clips import CaseMasks
from medfm_rl.data.checks import (
    CaseFacts,
    case_facts,
    facts_by_schema,
    facts_of_record,
    image_facts,
    record_of_facts,
)
from medfm_rl.data.each_case import OF_ONE_CASE, case_alone
from medfm_rl.data.files import hash_file, replace_on_success
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.data.labels import hash_labels, read_labels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.notices import collected_notices
from medfm_rl.data.probabilities import confidence_of, require_all
from medfm_rl.errors import DataError, UserError
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.packed import PackedReports
from medfm_rl.quality.reports import QualityReport
from medfm_rl.quality.submission import Submission, cases_at_once, is_a_batch
from medfm_rl.reports.scores import thumbnail
from medfm_rl.runs.case_records import CaseRecords, hash_case, hash_segmenter, label_path, reward_path
from medfm_rl.types import Case, Clip, LabelMap
from medfm_rl.workflows.deploy.given_masks import GivenMasks
from medfm_rl.workflows.deploy.memory import must_fit
from medfm_rl.workflows.deploy.scoring import CaseTrace, Cause, Traces, Unassessed, thumbnail_path
from medfm_rl.workflows.deploy.workers import NOBODY, Crew, Nobody

_Waiting = tuple[Submission, dict[str, Any]]
"""A case and what its report depends on."""


class _NotAssessedError(UserError):
    """A case that cannot be assessed, and the cause."""

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


@contextmanager
def _caused_by(cause: Cause, case_id: str) -> Iterator[None]:
    """Says of an error of a case in the block what is at fault."""
    try:
        with case_alone(case_id):
            yield
    except UserError as error:
        raise _NotAssessedError(str(error), cause) from error


@dataclass(frozen=True)
class Refused:
    """A case that a worker could not assess.

    Attributes:
        why: Why it could not.
        facts: What it had read of it.
    """

    why: Unassessed
    facts: CaseFacts | None


def blocks_of(files: Sequence[CaseFile]) -> list[Sequence[CaseFile]]:
    """Cases that lie side by side in a list, as many as are assessed together where all are as large as the first."""
    size = cases_at_once(_pixels_of_first(files)) if len(files) > 1 else 1
    return [files[start : start + size] for start in range(0, len(files), size)]


def _pixels_of_first(files: Sequence[CaseFile]) -> int:
    """Pixels of the first image that can be read; 1 where none can."""
    for file in files:
        try:
            with collected_notices():
                return int(np.prod(file.read().shape))
        except (UserError, *OF_ONE_CASE):
            # It is named when its turn comes.
            continue
    return 1


class ScoringQueue:
    """Takes cases one by one, and assesses together those of which no report is there yet.

    Args:
        controller: Assesses masks.
        networks: SHA-256 of what assesses, by name.
        given: The masks; None where a segmenter makes them.
        segmenter: Makes the masks; None where they are given.
        records: Of earlier calls, and where results are written.

    Attributes:
        reports: By case, of those that were assessed.
        unassessed: By case, of those that could not be.
        facts: By case, of those that were read, and of their masks where they are given.
        made_by: Hashes of what makes the masks; none where they are given.
    """

    def __init__(
        self,
        controller: QualityController,
        networks: Mapping[str, str],
        given: GivenMasks | None,
        segmenter: SegmenterAdapter | None,
        records: CaseRecords,
    ) -> None:
        self.controller = controller
        self.networks = dict(networks)
        self.given = given
        self.segmenter = None if segmenter is None else segmenter.to(controller.device)
        self.made_by = {} if segmenter is None else hash_segmenter(segmenter)
        self.out = records.out
        self.records = records
        self.reports = PackedReports()
        self.unassessed: dict[str, Unassessed] = {}
        self.facts: dict[str, CaseFacts] = {}
        self._mask_hashes: dict[str, str] = {}
        self._inputs: dict[str, dict[str, Any]] = {}
        self._waiting: list[_Waiting] = []
        self._masks = None if self.segmenter is None else CaseMasks(self.segmenter)

    @property
    def maker(self) -> dict[str, str]:
        """Hashes of what makes masks and assesses them."""
        return {**self.made_by, **self.networks}

    def require_own(self, files: Sequence[CaseFile]) -> None:
        """Refuses an output folder where masks or reward maps of something else would be replaced.

        Raises:
            DataError: There is a mask that this command did not make, or made by another segmenter; or a reward map of
                another command.
        """
        for file in files:
            self.records.require_no_others(file.case_id, reward_path(self.out, file.case_id))
            if self.segmenter is not None:
                self.records.require_own(file.case_id, label_path(self.out, file.case_id), self.made_by)

    def take(self, file: CaseFile, crew: Crew | Nobody = NOBODY) -> None:
        """Takes the report that there is, or lets the case wait for enough others to be assessed with it.

        A case that cannot be made ready is noted as not assessed.

        Args:
            file: The case.
            crew: Workers who have it; it is waited for.
        """
        try:
            with case_alone(file.case_id):
                self._take(file, crew.wait_for(file.case_id))
        except UserError as error:
            # Where the worker died, nothing more is known of it.
            self._inputs.setdefault(file.case_id, dict(self.maker))
            self._refuse(file.case_id, error)

    def finish(self) -> dict[str, Refused]:
        """Assesses the cases that wait, gives those that could not be assessed, and forgets all of them.

        The reports are in the records.
        """
        self.assess_waiting()
        refused = {name: Refused(found, self.facts.get(name)) for name, found in self.unassessed.items()}
        for kept in (self.reports, self.unassessed, self.facts, self._mask_hashes, self._inputs):
            kept.clear()
        return refused

    def _take(self, file: CaseFile, refused: Refused | None) -> None:
        inputs = self._inputs_of(file)
        known = self.records.reuse(file.case_id, inputs)
        if known is not None:
            # Whose it is comes from the call, which may tell patients apart in another way than the one before.
            self.reports[file.case_id] = replace(QualityReport.from_json(known["report"]), patient_id=file.patient_id)
            self._mask_hashes[file.case_id] = known["mask"]
            if known.get("facts") is not None:
                self.facts[file.case_id] = facts_of_record(file, known["facts"])
            return
        if refused is not None:
            if refused.facts is not None:
                self.facts[file.case_id] = refused.facts
            self.unassessed[file.case_id] = refused.why
            return
        with _caused_by("input_unusable", file.case_id), must_fit(f"case {file.case_id}", self.controller.device):
            case = file.read()
        self.facts[file.case_id] = case_facts(file, image_facts(case))
        self.records.begin(file.case_id, inputs)
        with must_fit(f"case {file.case_id}", self.controller.device):
            self._waiting.append((self._submission(file, case), inputs))
        if is_a_batch([submission for submission, _ in self._waiting]):
            self.assess_waiting()

    def assess_waiting(self) -> None:
        """Assesses the cases that wait, and writes what was found; one that fails keeps no other back."""
        waiting, self._waiting = self._waiting, []
        for submission, inputs, report in self._assess(waiting):
            try:
                with case_alone(report.case_id):
                    self._write(submission, inputs, report)
            except UserError as error:
                self._refuse(report.case_id, error)
                continue
            self.reports[report.case_id] = report

    def traces(self, files: Sequence[CaseFile]) -> Traces:
        """The files of cases and what they were made of, by case."""
        return Traces({file.case_id: file for file in files}, self._trace_of)

    def _trace_of(self, file: CaseFile) -> CaseTrace:
        return CaseTrace(
            file,
            self._mask_path(file.case_id),
            self._inputs[file.case_id],
            partial(self.records.files_of, file.case_id),
            self._mask_hashes.get(file.case_id),
        )

    def read_mask(self, file: CaseFile, clip: Clip, frame: int) -> LabelMap:
        """The mask of a frame that was assessed, class indices `(H, W)`.

        Raises:
            DataError: It cannot be read.
        """
        path = self._mask_path(file.case_id)
        if path is None:
            raise DataError(f"case {file.case_id}: its mask is no more in {self.out}")
        in_files = None if self.given is None else self.given.in_files
        shape, frames = clip.frames.shape[2:], len(clip.frames)
        return read_labels(path, self.controller.schema, shape, clip.geometry, in_files, frame, frames=frames)

    def _refuse(self, case_id: str, error: UserError) -> None:
        cause: Cause = error.cause if isinstance(error, _NotAssessedError) else "not_assessed"
        self.unassessed[case_id] = Unassessed(str(error), cause)

    def _assess(self, waiting: Sequence[_Waiting]) -> list[tuple[Submission, dict[str, Any], QualityReport]]:
        cases = ", ".join(f"case {submission.case.case_id}" for submission, _ in waiting)
        try:
            with case_alone(cases.removeprefix("case ")), must_fit(cases, self.controller.device):
                reports = self.controller.assess_batch([submission for submission, _ in waiting])
            return [(*item, report) for item, report in zip(waiting, reports, strict=True)]
        except UserError as error:
            if len(waiting) == 1:
                self._refuse(waiting[0][0].case.case_id, error)
                return []
        # It does not say whose fault it is: alone, each case answers for itself. Not within the handling of the error,
        # which holds all that the networks had made of the batch.
        return [found for item in waiting for found in self._assess([item])]

    def _write(self, submission: Submission, inputs: Mapping[str, Any], report: QualityReport) -> None:
        case = submission.case
        rewards = reward_path(self.out, case.case_id)
        write_image(rewards, report.reward_map, case.geometry)
        picture = thumbnail_path(self.out, case.case_id)
        with replace_on_success(picture) as temporary:
            temporary.write_bytes(
                thumbnail(case.image[0], submission.labels, report.reward_map, self.controller.schema)
            )
        mask = self._mask_hashes[case.case_id] = hash_labels(submission.labels)
        files = [rewards, picture, *([] if self.segmenter is None else [label_path(self.out, case.case_id)])]
        outputs = self.records.hash_files(files)
        result = {"report": report.to_json(), "mask": mask, "facts": record_of_facts(self.facts[case.case_id])}
        self.records.write(case.case_id, inputs, result, outputs)

    def _mask_path(self, case_id: str) -> Path | None:
        """The file of a case's mask, where it is known or was written."""
        if self.given is not None:
            return self.given.paths.get(case_id)
        path = label_path(self.out, case_id)
        return path if path.exists() else None

    def _inputs_of(self, file: CaseFile) -> dict[str, Any]:
        """Hashes of everything that the report of a case depends on; those found before an error are kept."""
        found = self._inputs[file.case_id] = dict(self.maker)
        with _caused_by("input_unusable", file.case_id):
            found.update(hash_case(file, self.segmenter))
        if self.given is not None:
            with _caused_by("mask_missing", file.case_id):
                self.given.path(file.case_id)
            with _caused_by("mask_unusable", file.case_id):
                found.update(self.given.hashes(file.case_id))
            if self.given.probabilities is not None:
                with _caused_by("probabilities_unusable", file.case_id):
                    found["probabilities"] = hash_file(require_all(self.given.probabilities, file.case_id))
        return found

    def _submission(self, file: CaseFile, case: Case) -> Submission:
        controller = self.controller
        if self.segmenter is None:
            assert self.given is not None
            schema, in_files = self.given.schema, self.given.in_files
            with _caused_by("mask_unusable", file.case_id):
                labels = self.given.read(case)
            mask = facts_by_schema(labels, schema)
            self.facts[file.case_id] = replace(self.facts[file.case_id], mask=mask)
            if self.given.probabilities is None:
                return controller.submit(case, labels)
            with _caused_by("probabilities_unusable", file.case_id):
                path = require_all(self.given.probabilities, file.case_id)
                confidence = confidence_of(path, case, labels, schema, in_files or schema)
            return controller.submit(case, labels, confidence)
        assert self._masks is not None
        if self.segmenter is controller.grid:
            submission = controller.segment(case, self._masks.in_clip(file))
        else:
            submission = controller.submit(case, self._masks.segment(file, case))
        write_labels(label_path(self.out, file.case_id), submission.labels, case.geometry, controller.schema)
        return submission
