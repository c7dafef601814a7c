"""`medfm-rl score`: quality and verdict of every mask of a folder, whatever made the masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medfm_rl.data.checks import find_suspicious, notices
from medfm_rl.data.files import alone_writing
from medfm_rl.data.layouts import CaseFile, are_simulated
from medfm_rl.data.mask_labels import labels_in_masks, write_class_names
from medfm_rl.errors import ConfigError, DataError, ModelError
from medfm_rl.progress import Progress, silent
from medfm_rl.quality.gates import NO_GATES, Gates
from medfm_rl.quality.packed import packed
from medfm_rl.runs.case_records import CaseRecords, label_path
from medfm_rl.runs.judging import Judge
from medfm_rl.runs.models import Model
from medfm_rl.settings import RESEARCH, SitePolicy
from medfm_rl.workflows.deploy.clip_evidence import evidence_over_time
from medfm_rl.workflows.deploy.given_masks import GivenMasks
from medfm_rl.workflows.deploy.score_outputs import TABLE_FILE, audit_lines, withdraw_results, write_results
from medfm_rl.workflows.deploy.scoring import ScoredBy, Scoring
from medfm_rl.workflows.deploy.scoring_queue import ScoringQueue, blocks_of
from medfm_rl.workflows.deploy.stream_scoring import StreamRequest, settle_in_stream
from medfm_rl.workflows.deploy.worker import Piece
from medfm_rl.workflows.deploy.workers import Crew, Nobody, Workers, at_work, seen_by_all

_LOG = logging.getLogger(__name__)


class NothingAssessedError(DataError):
    """Not one case could be assessed; the results say so of each.

    Args:
        message: The first of the reasons.
        problems: By case, why.
    """

    def __init__(self, message: str, problems: Mapping[str, str]) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True)
class ScoreRequest:
    """Which masks are scored, and how.

    Attributes:
        masks: Masks by case, or None where a segmenter makes them.
        labels: The integers in these masks, as in `labels_in_masks`.
        probabilities: Files of the probabilities that their maker gave, by case; None where none are given.
        maker: Makes the masks where none are given; None for the segmenter of the run.
        gates: Further networks to be asked.
        policy: Limits that masks have to keep, and what is done with what is not proven.
        stream: The stream that these studies are of; None to take them for a batch.
    """

    masks: Mapping[str, Path] | None = None
    labels: str | None = None
    probabilities: Mapping[str, Path] | None = None
    maker: Model | None = None
    gates: Gates = NO_GATES
    policy: SitePolicy = RESEARCH
    stream: StreamRequest | None = None

    def __post_init__(self) -> None:
        if self.masks is not None and self.maker is not None:
            raise ConfigError("give either masks or a segmenter that makes them, not both")
        if self.masks is None and self.probabilities is not None:
            raise ConfigError("--probabilities are those of masks that are given: they go with --masks")

    @property
    def own(self) -> bool:
        """Whether the segmenter of the run makes the masks."""
        return self.masks is None and self.maker is None

    def given_folders(self) -> set[Path]:
        """Where masks and probabilities lie that are given."""
        return {path.parent for given in (self.masks, self.probabilities) for path in (given or {}).values()}


OWN_MASKS = ScoreRequest()
"""The masks that the segmenter of the run makes."""


@dataclass(frozen=True)
class ScoringOrder:
    """The work of `score`, for workers.

    Attributes:
        run: Loads the run, or the judge.
        maker: Loads what makes the masks; None where they are given, or the run makes them.
        request: Which masks are scored, and how; whoever makes them and the stream are no part of it.
        out: Output folder.
    """

    run: Callable[[str], Judge]
    maker: Callable[[str], Model] | None
    request: ScoreRequest
    out: Path

    @classmethod
    def of(cls, run: Judge, request: ScoreRequest, out: Path) -> ScoringOrder:
        """The order of a call.

        Raises:
            ConfigError: What makes the masks lies in memory alone.
        """
        maker = None if request.maker is None else request.maker.elsewhere()
        return cls(run.elsewhere(), maker, replace(request, maker=None, stream=None), out)

    def load(self, device: str) -> ScoringQueue:
        run = self.run(device)
        request = replace(self.request, maker=None if self.maker is None else self.maker(device))
        return _queue_of(run, request, CaseRecords(self.out, "score", run.identity, of_worker=True))


def score(
    run: Judge,
    files: Sequence[CaseFile],
    out: Path,
    request: ScoreRequest = OWN_MASKS,
    progress: Progress = silent,
    workers: Workers | None = None,
) -> Scoring:
    """Assesses masks and writes tables, reward maps, a page and the audit log.

    Cases that were assessed before, from the same files with the same networks, are not assessed again. A case that
    cannot be assessed is named and referred; the others are assessed. A warning is logged of each thing in what is read
    that looks suspicious, as `medfm-rl check` finds it.

    Studies of a stream are added to it, and its state says what their verdicts are worth, in place of the test of the
    batch; a share of the accepted masks is drawn for audit.

    Args:
        run: The run, or the judge, with the quality model.
        files: The images.
        out: Folder for the results.
        request: Which masks are scored, and how.
        progress: Told how far it is.
        workers: Assess cases side by side; the result is that of this process alone.

    Raises:
        UserError: The quality model or the stream cannot be used, files of these cases lie in `out` that something else
            wrote, or not one case could be assessed; or the workers cannot do the work, as in `at_work`.
    """
    order = None if workers is None else ScoringOrder.of(run, request, out)
    with alone_writing(out):
        records = CaseRecords(out, "score", run.identity)
        queue = _queue_of(run, request, records)
        controller = queue.controller
        quality_hash = run.identity.quality_hash
        assert quality_hash is not None
        if request.stream is not None:
            request.stream.require_usable(quality_hash, request.policy.audit_share)
        queue.require_own(files)
        withdraw_results(out)
        seen = seen_by_all(files, *request.given_folders())
        with at_work(workers, order, queue.maker, seen, records, progress) as crew:
            _assess(queue, files, crew, progress)
        for notice in notices("images", find_suspicious(list(queue.facts.values()))):
            _LOG.warning("%s", notice)
        maker = run if request.own else request.maker
        scorer = ScoredBy(
            controller.model,
            quality_hash,
            queue.made_by.get("weights"),
            None if maker is None else maker.identity.model_hash,
            controller.gate_hashes,
            request.policy,
            controller.reviewed,
        )
        reports = queue.reports.in_order(file.case_id for file in files if file.case_id in queue.reports)
        traces, place, simulated = queue.traces(files), None, are_simulated(files)
        if request.stream is None:
            batch = controller.settle(reports, packed)
        else:
            masks = {name: trace.mask_hash for name, trace in traces.items() if trace.mask_hash is not None}
            batch, place = settle_in_stream(
                request.stream, controller, reports, masks, quality_hash, run.promise, simulated
            )
        over_time = evidence_over_time(
            [file for file in files if file.case_id in queue.reports], queue.read_mask, controller.schema
        )
        scoring = Scoring(batch, queue.unassessed, traces, scorer, place, over_time)
        write_results(out, scoring, simulated)
        write_class_names(label_path(out, files[0].case_id).parent, controller.schema)
        records.log(audit_lines(scoring))
        if not reports:
            first = next(iter(queue.unassessed.values()))
            raise NothingAssessedError(
                f"no case could be assessed, {out / TABLE_FILE} says why of each; the first: {first.problem}",
                scoring.problems,
            )
        return scoring


def _queue_of(run: Judge, request: ScoreRequest, records: CaseRecords) -> ScoringQueue:
    """What assesses the masks of a request, here or in a worker.

    Raises:
        UserError: The quality model cannot be used for them, or the integers in the masks are not known.
    """
    controller = run.controller(request.own, request.gates, request.policy)
    controller.model.pixels.require_given(request.probabilities is not None)
    segmenter = controller.segmenter if request.own else None if request.maker is None else request.maker.segmenter
    if segmenter is not None and segmenter.schema.class_names != controller.schema.class_names:
        raise ModelError(
            f"the model segments {', '.join(segmenter.schema.structures)}, the quality model assesses "
            f"{', '.join(controller.schema.structures)}; they must be of one anatomy"
        )
    given = None
    if request.masks is not None:
        in_files = labels_in_masks(request.labels, request.masks, controller.schema)
        given = GivenMasks(request.masks, None, controller.schema, in_files, request.probabilities)
    quality_hash = run.identity.quality_hash
    assert quality_hash is not None
    return ScoringQueue(controller, {"quality": quality_hash, **controller.gate_hashes}, given, segmenter, records)


def _assess(queue: ScoringQueue, files: Sequence[CaseFile], crew: Crew | Nobody, progress: Progress) -> None:
    """Has all cases assessed, block by block."""
    blocks, done = blocks_of(files), 0
    crew.give(tuple(Piece(file.case_id, file, (file.case_id,)) for file in block) for block in blocks)
    for block in blocks:
        for file in block:
            queue.take(file, crew)
            done += 1
            progress("scoring", done, len(files))
        queue.assess_waiting()
