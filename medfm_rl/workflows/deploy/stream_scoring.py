"""Scoring study by study: the masks of a call are added to a stream, and its state decides what they are worth."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.promises import Promise
from medfm_rl.quality.reports import BatchReport, QualityReport
from medfm_rl.runs.stream_history import UNKNOWN, StreamHistory, StreamIdentity, StudyCase, read_stream
from medfm_rl.runs.stream_promise import standing_of
from medfm_rl.runs.stream_state import add_studies, require_usable

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamRequest:
    """The stream that the studies of a call are of.

    Attributes:
        path: Its file; it is made where there is none.
        scanner: Name of the scanner.
        protocol: Protocol.
        site: Hospital or department.
        seed: Of the draws for audit, of a new stream.
    """

    path: Path
    scanner: str = UNKNOWN
    protocol: str = UNKNOWN
    site: str = UNKNOWN
    seed: int = 0

    def identity(self, quality_hash: str, audit_share: float) -> StreamIdentity:
        """What a stream must be that takes studies which that quality model assessed."""
        return StreamIdentity(self.scanner, self.protocol, self.site, quality_hash, self.seed, audit_share)

    def require_usable(self, quality_hash: str, audit_share: float) -> None:
        """Refuses a stream that would not take the studies, before anything is assessed.

        Raises:
            DataError: As in `add_studies`.
        """
        require_usable(self.path, self.identity(quality_hash, audit_share))
        warn_of_unknown_scanner(self.path, self.scanner)


@dataclass(frozen=True)
class StreamPlace:
    """What became of the studies of a call in their stream.

    Attributes:
        path: The stream.
        studies: How many studies it has now.
        added: Studies that are new.
        repeated: Masks that were in it already.
        drawn: Cases of the call that are drawn for audit.
    """

    path: Path
    studies: int
    added: int
    repeated: int
    drawn: frozenset[str]


def warn_of_unknown_scanner(path: Path, scanner: str) -> None:
    """Warns of a new stream of which nobody has said the scanner."""
    if scanner == UNKNOWN and not path.exists():
        _LOG.warning(
            "%s: nobody has said which scanner this stream is of (--scanner): studies of several in one stream hide a "
            "change of one of them, or look like a change where one is used more; no promise is in force for it",
            path,
        )


def settle_in_stream(
    request: StreamRequest,
    controller: QualityController,
    reports: Sequence[QualityReport],
    masks: Mapping[str, str],
    quality_hash: str,
    promise: Promise | None,
    simulated: bool,
) -> tuple[BatchReport, StreamPlace]:
    """Adds studies to a stream and gives their masks the verdicts of its state.

    All of them are added first: an alarm that one of them raises suspends the others too. Masks that were in the stream
    already are not added again, and have the verdict of its state now.

    Args:
        request: The stream.
        controller: Gives the verdicts, by the policy that also says which share is drawn for audit.
        reports: Of the masks, in the order of the studies.
        masks: Hash of the mask of each case.
        quality_hash: SHA-256 of the `quality.json` that assessed.
        promise: That of the reviewed patients of the run; None where there is none.
        simulated: Whether the images are simulated; the stream says so.

    Raises:
        DataError: As in `add_studies`.
    """
    found: list[BatchReport] = []

    def decide(history: StreamHistory) -> dict[str, str]:
        batch = controller.settle_in_stream(reports, standing_of(history, promise))
        found.append(batch)
        return {_study_case(report, masks).key: report.verdict for report in batch.reports}

    patients: dict[str, list[StudyCase]] = {}
    for report in reports:
        case = replace(_study_case(report, masks), simulated=simulated)
        patients.setdefault(report.patient_id, []).append(case)
    identity = request.identity(quality_hash, controller.terms.policy.audit_share)
    added, repeated = add_studies(request.path, identity, patients, decide=decide)
    history = read_stream(request.path)
    known = history.cases
    drawn = frozenset(report.case_id for report in reports if known[_study_case(report, masks).key].audit)
    return found[0], StreamPlace(request.path, len(history.studies), len(added), repeated, drawn)


def _study_case(report: QualityReport, masks: Mapping[str, str]) -> StudyCase:
    return StudyCase(
        case=report.case_id,
        mask=masks[report.case_id],
        verdict=report.verdict,
        predicted=report.mean_as_calibrated,
        mean_reward=report.mean.mean_reward,
        shift_distance=report.shift_distance,
        broken_rules=tuple(rule.rule for rule in report.rules if not rule.passed),
        look=report.look,
    )
