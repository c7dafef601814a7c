"""`medfm-rl score`: quality and verdict of every mask of a folder, whatever made the masks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfm_rl.data.checks import find_suspicious, notices
from medfm_rl.data.files import alone_writing
from medfm_rl.data.layouts import CaseFile, is_simulated
from medfm_rl.data.mask_labels import labels_in_masks, write_class_names
from medfm_rl.errors import ConfigError, DataError, ModelError
from medfm_rl.progress import Progress, silent
from medfm_rl.quality.gates import NO_GATES, Gates
from medfm_rl.runs.case_records import CaseRecords, label_path
from medfm_rl.runs.judging import Judge
from medfm_rl.runs.models import Model
from medfm_rl.settings import RESEARCH, SitePolicy
from medfm_rl.workflows.deploy.clip_evidence import evidence_over_time
from medfm_rl.workflows.deploy.score_outputs import TABLE_FILE, audit_lines, withdraw_results, write_results
from medfm_rl.workflows.deploy.scoring import Scorer, Scoring
from medfm_rl.workflows.deploy.scoring_queue import MasksToScore, ScoringQueue
from medfm_rl.workflows.deploy.stream_scoring import StreamRequest, settle_in_stream

_LOG = logging.getLogger(__name__)


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


OWN_MASKS = ScoreRequest()
"""The masks that the segmenter of the run makes."""


def score(
    run: Judge,
    files: Sequence[CaseFile],
    out: Path,
    request: ScoreRequest = OWN_MASKS,
    progress: Progress = silent,
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

    Raises:
        UserError: The quality model or the stream cannot be used, files of these cases lie in `out` that something else
            wrote, or not one case could be assessed.
    """
    with alone_writing(out):
        own = request.masks is None and request.maker is None
        controller = run.controller(own, request.gates, request.policy)
        controller.model.pixels.require_given(request.probabilities is not None)
        segmenter = controller.segmenter if own else None if request.maker is None else request.maker.segmenter
        if segmenter is not None and segmenter.schema.class_names != controller.schema.class_names:
            raise ModelError(
                f"the model segments {', '.join(segmenter.schema.structures)}, the quality model assesses "
                f"{', '.join(controller.schema.structures)}; they must be of one anatomy"
            )
        given = None
        if request.masks is not None:
            in_masks = labels_in_masks(request.labels, request.masks, controller.schema)
            given = MasksToScore(request.masks, in_masks, request.probabilities)
        quality_hash = run.identity.quality_hash
        assert quality_hash is not None
        if request.stream is not None:
            request.stream.require_usable(quality_hash, request.policy.audit_share)
        gates = request.gates.hashes()
        records = CaseRecords(out, "score", run.identity)
        queue = ScoringQueue(controller, {"quality": quality_hash, **gates}, given, segmenter, records)
        queue.require_own(files)
        withdraw_results(out)
        for done, file in enumerate(files, 1):
            queue.take(file)
            progress("scoring", done, len(files))
        queue.assess_waiting()
        for notice in notices("images", find_suspicious(list(queue.facts.values()))):
            _LOG.warning("%s", notice)
        maker = run if own else request.maker
        scorer = Scorer(
            controller.model,
            quality_hash,
            queue.maker.get("weights"),
            None if maker is None else maker.identity.model_hash,
            gates,
            request.policy,
        )
        reports = [queue.reports[file.case_id] for file in files if file.case_id in queue.reports]
        traces, place = queue.traces(files), None
        if request.stream is None:
            batch = controller.settle(reports)
        else:
            masks = {name: trace.mask_hash for name, trace in traces.items() if trace.mask_hash is not None}
            batch, place = settle_in_stream(request.stream, controller, reports, masks, quality_hash, run.promise)
        over_time = evidence_over_time(
            [file for file in files if file.case_id in queue.reports], queue.read_mask, controller.schema
        )
        scoring = Scoring(batch, queue.unassessed, traces, scorer, place, over_time)
        simulated = any(is_simulated(path.parent) for file in files[:1] for path in file.image_paths)
        write_results(out, scoring, simulated)
        write_class_names(label_path(out, files[0].case_id).parent, controller.schema)
        records.log(audit_lines(scoring))
        if not reports:
            first = next(iter(queue.unassessed.values()))
            raise DataError(
                f"no case could be assessed, {out / TABLE_FILE} says why of each; the first: {first.problem}"
            )
        return scoring
