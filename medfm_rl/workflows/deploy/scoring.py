"""The result of scoring: of each case its report or why there is none, and what scored it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.names import file_of_case
from medfm_rl.quality.model import QualityModel
from medfm_rl.quality.reports import BatchReport
from medfm_rl.quality.reviewed_errors import ReviewedErrors
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
        read_outputs: Reads what `outputs` gives.
        mask_hash: Hash of the labels that were assessed; None where none were.
    """

    file: CaseFile
    mask: Path | None
    inputs: Mapping[str, Any]
    read_outputs: Callable[[], Mapping[str, str]] = dict
    mask_hash: str | None = None

    @property
    def outputs(self) -> Mapping[str, str]:
        """SHA-256 of the files that were written, by their names in the output folder; they are in the records."""
        return self.read_outputs()


@dataclass(frozen=True)
class Traces(Mapping[str, CaseTrace]):
    """The traces of cases by their names, each made when it is asked for.

    Attributes:
        files: The cases by name, in the order in which they were given.
        trace: Makes that of a case.
    """

    files: Mapping[str, CaseFile]
    trace: Callable[[CaseFile], CaseTrace]

    def __getitem__(self, case_id: str) -> CaseTrace:
        return self.trace(self.files[case_id])

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class ScoredBy:
    """The networks and models that scored a batch.

    Attributes:
        model: The quality model.
        quality_hash: SHA-256 of its file.
        segmenter: Hash of the weights that made the masks; None where the masks came as files.
        made_by: `model_hash` of the segmenter that made them; None where that is not known.
        gates: SHA-256 of further networks that were asked, by name.
        policy: What the site does with verdicts.
        reviewed: What reviewed patients know of predictions, by which they were moved; None where nobody has.
    """

    model: QualityModel
    quality_hash: str
    segmenter: str | None
    made_by: str | None
    gates: Mapping[str, str]
    policy: SitePolicy
    reviewed: ReviewedErrors | None

    @property
    def reviews(self) -> dict[str, Any]:
        """Which reviews moved predictions, under `reviews` as records have it; empty where none did."""
        found = self.reviewed
        if found is None:
            return {}
        known = {"feedback": found.feedback, "feedback_hash": found.feedback_hash, "patients": found.count}
        return {"reviews": known}


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
    traces: Traces
    scorer: ScoredBy
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
        return list(self.traces.files.values())

    @cached_property
    def _tally(self) -> Counter[tuple[str | None, ...]]:
        """Masks by verdict, guarantee and action."""
        return Counter((report.verdict, report.guarantee, report.action) for report in self.batch.reports)

    def count(self, verdict: str) -> int:
        """Cases with that verdict."""
        found = sum(number for (of, _, _), number in self._tally.items() if of == verdict)
        return found + (len(self.unassessed) if verdict == "refer" else 0)

    def accepted(self, guarantee: str) -> int:
        """Cases with the verdict `accept` that are worth that."""
        return sum(number for (of, worth, _), number in self._tally.items() if (of, worth) == ("accept", guarantee))

    def acted(self, action: str) -> int:
        """Cases with which the policy does that."""
        found = sum(number for (_, _, done), number in self._tally.items() if done == action)
        return found + (len(self.unassessed) if action == "refer" else 0)
