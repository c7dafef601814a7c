"""The result of scoring: of each case its report or why there is none, and what scored it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.names import file_of_case
from medfm_rl.quality import BatchReport, QualityModel, QualityReport
from medfm_rl.settings import SitePolicy
from medfm_rl.workflows.deploy.clip_evidence import ClipEvidence
from medfm_rl.workflows.deploy.stream_scoring import StreamPlace

Cause = Literal["input_unusable", "mask_missing", "mask_unusable", "probabilities_unusable", "not_assessed"]
"""Why a case could not be assessed: its image or prompts, its mask, the probabilities given with it, or else."""


def thumbnail_path(out: Path, case_id: str) -> Path:
    """Where the picture of a case lies in an output folder."""
    return file_of_case(out / "thumbnails", case_id, ".png")


@dataclass(frozen=True)
class Unassessed:
    """Why a case could not be assessed.

    Attributes:
        problem: In words.
        cause: For a program.
    """

    problem: str
    cause: Cause


@dataclass(frozen=True)
class CaseTrace:
    """The files of a case, and what they were made of.

    Attributes:
        file: The case.
        mask: File of its mask; None where there is none.
        inputs: Hashes of everything that its report depends on.
        outputs: SHA-256 of the files that were written, by their names in the output folder.
        mask_hash: Hash of the labels that were assessed; None where none were.
    """

    file: CaseFile
    mask: Path | None
    inputs: Mapping[str, Any]
    outputs: Mapping[str, str] = field(default_factory=dict)
    mask_hash: str | None = None


@dataclass(frozen=True)
class Scorer:
    """The networks and models that scored a batch.

    Attributes:
        model: The quality model.
        quality_hash: SHA-256 of its file.
        segmenter: Hash of the weights that made the masks; None where the masks came as files.
        made_by: `model_hash` of the segmenter that made them; None where that is not known.
        gates: SHA-256 of further networks that were asked, by name.
        policy: What the site does with verdicts.
    """

    model: QualityModel
    quality_hash: str
    segmenter: str | None
    made_by: str | None
    gates: Mapping[str, str]
    policy: SitePolicy


@dataclass(frozen=True)
class Scoring:
    """The result of a call of `score`.

    Attributes:
        batch: Reports and guarantees of the masks that could be assessed.
        unassessed: The others by case. Such a case is referred.
        traces: Of every case, by its name, in the order in which the cases were given.
        scorer: What scored them.
        place: What became of them in their stream; None where they were taken for a batch.
        over_time: What time says of the masks of each clip, by clip.
    """

    batch: BatchReport
    unassessed: Mapping[str, Unassessed]
    traces: Mapping[str, CaseTrace]
    scorer: Scorer
    place: StreamPlace | None = None
    over_time: Mapping[str, ClipEvidence] = field(default_factory=dict)

    def is_drawn(self, case_id: str) -> bool:
        """Whether a case is drawn for audit."""
        return self.place is not None and case_id in self.place.drawn

    @property
    def problems(self) -> dict[str, str]:
        """By case: why it could not be assessed, in words."""
        return {case_id: found.problem for case_id, found in self.unassessed.items()}

    @property
    def files(self) -> Sequence[CaseFile]:
        """The cases."""
        return [trace.file for trace in self.traces.values()]

    def count(self, verdict: str) -> int:
        """Cases with that verdict."""
        found = sum(report.verdict == verdict for report in self.batch.reports)
        return found + (len(self.unassessed) if verdict == "refer" else 0)

    def accepted(self, guarantee: str) -> int:
        """Cases with the verdict `accept` that are worth that."""
        return sum(report.verdict == "accept" and report.guarantee == guarantee for report in self.batch.reports)

    def acted(self, action: str) -> int:
        """Cases with which the policy does that."""
        found = sum(report.action == action for report in self.batch.reports)
        return found + (len(self.unassessed) if action == "refer" else 0)

    def report_of(self, case_id: str) -> QualityReport | None:
        """The report of a case; None where it could not be assessed."""
        return next((report for report in self.batch.reports if report.case_id == case_id), None)
