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
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.models import Model
from medfm_rl.settings import RESEARCH, SitePolicy
from medfm_rl.workflows.deploy.score_outputs import TABLE_FILE, audit_lines, withdraw_results, write_results
from medfm_rl.workflows.deploy.scoring import Scorer, Scoring
from medfm_rl.workflows.deploy.scoring_queue import ScoringQueue

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreRequest:
    """Which masks are scored, and how.

    Attributes:
        masks: Masks by case, or None where a segmenter makes them.
        labels: The integers in these masks, as in `labels_in_masks`.
        maker: Makes the masks where none are given; None for the segmenter of the run.
        gates: Further networks to be asked.
        policy: Limits that masks have to keep, and what is done with what is not proven.
    """

    masks: Mapping[str, Path] | None = None
    labels: str | None = None
    maker: Model | None = None
    gates: Gates = NO_GATES
    policy: SitePolicy = RESEARCH

    def __post_init__(self) -> None:
        if self.masks is not None and self.maker is not None:
            raise ConfigError("give either masks or a segmenter that makes them, not both")


OWN_MASKS = ScoreRequest()
"""The masks that the segmenter of the run makes."""


def score(
    run: FinishedRun,
    files: Sequence[CaseFile],
    out: Path,
    request: ScoreRequest = OWN_MASKS,
    progress: Progress = silent,
) -> Scoring:
    """Assesses masks and writes tables, reward maps, a page and the audit log.

    Cases that were assessed before, from the same files with the same networks, are not assessed again. A case that
    cannot be assessed is named and referred; the others are assessed. A warning is logged of each thing in what is read
    that looks suspicious, as `medfm-rl check` finds it.

    Args:
        run: The run with the quality model.
        files: The images.
        out: Folder for the results.
        request: Which masks are scored, and how.
        progress: Told how far it is.

    Raises:
        UserError: The quality model cannot be used, files of these cases lie in `out` that something else wrote, or not
            one case could be assessed.
    """
    with alone_writing(out):
        own = request.masks is None and request.maker is None
        controller = run.controller(own, request.gates, request.policy)
        segmenter = controller.segmenter if own else None if request.maker is None else request.maker.segmenter
        if segmenter is not None and segmenter.schema.class_names != controller.schema.class_names:
            raise ModelError(
                f"the model segments {', '.join(segmenter.schema.structures)}, the quality model assesses "
                f"{', '.join(controller.schema.structures)}; they must be of one anatomy"
            )
        in_masks = None if request.masks is None else labels_in_masks(request.labels, request.masks, controller.schema)
        quality_hash = run.identity.quality_hash
        assert quality_hash is not None
        gates = request.gates.hashes()
        records = CaseRecords(out, "score", run.identity)
        queue = ScoringQueue(
            controller, {"quality": quality_hash, **gates}, request.masks, in_masks, segmenter, records
        )
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
        scoring = Scoring(controller.settle(reports), queue.unassessed, queue.traces(files), scorer)
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
