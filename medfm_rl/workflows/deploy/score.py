"""`medfm-rl score`: quality and verdict of every mask of a folder, whatever made the masks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.data.files import hash_file
from medfm_rl.data.images import image_stem, image_suffix
from medfm_rl.data.layouts import CaseFile, is_simulated
from medfm_rl.data.mask_labels import parse_mask_labels
from medfm_rl.errors import DataError, ModelError, UserError
from medfm_rl.networks import choose_device
from medfm_rl.progress import Progress
from medfm_rl.quality import QUALITY_FILE, QualityController
from medfm_rl.quality.biomedclip import BiomedCLIP
from medfm_rl.quality.views import ViewClassifier
from medfm_rl.runs.case_records import CaseRecords
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.identity import identify
from medfm_rl.runs.models import load_adapted, load_preprocessing
from medfm_rl.workflows.deploy.score_outputs import (
    TABLE_FILE,
    audit_lines,
    withdraw_results,
    write_scores_page,
    write_tables,
)
from medfm_rl.workflows.deploy.scoring_queue import Scoring, ScoringQueue

_LOG = logging.getLogger(__name__)
_MOST_NAMED = 10
"""Masks without an image that are named."""


@dataclass(frozen=True)
class Gates:
    """Networks that are not of the run and look at images before their masks are assessed; each is off where None.

    Attributes:
        echoprime: EchoPrime's `view_classifier.pt`: images that are no apical views are referred.
        biomedclip: BiomedCLIP's `open_clip_pytorch_model.bin`: images unlike those of the calibration are referred.
    """

    echoprime: Path | None = None
    biomedclip: Path | None = None

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the weights by name, for the record of what assessed a case."""
        files = {"views": self.echoprime, "biomedclip": self.biomedclip}
        return {name: hash_file(path) for name, path in files.items() if path is not None}


NO_GATES = Gates()


def load_controller(
    path: Path,
    device: str = "auto",
    gates: Gates = NO_GATES,
    segmenter: SegmenterAdapter | None = None,
    accept_untested: bool = False,
) -> QualityController:
    """Loads the quality model of a run with whatever segmenter it is for.

    Args:
        path: The run.
        device: Where the networks run.
        gates: Further networks to be asked.
        segmenter: That of the run, where it has been loaded to make masks; None for one that makes none.
        accept_untested: As in `QualityController`.

    Raises:
        ModelError: A part is missing, damaged, or does not belong to the others.
        ConfigError: The device is not there.
    """
    chosen = choose_device(device)
    views = None if gates.echoprime is None else ViewClassifier.load(gates.echoprime, chosen)
    biomedclip = None if gates.biomedclip is None else BiomedCLIP.load(gates.biomedclip, chosen)
    assessing = load_preprocessing(RunFolder(path)) if segmenter is None else segmenter
    return QualityController.load(path, lambda _: assessing, chosen, views, biomedclip, accept_untested)


def find_masks(folder: Path, files: Sequence[CaseFile]) -> dict[str, Path]:
    """Masks of a folder by the case whose name they have; a warning lists those of no case.

    Raises:
        DataError: The folder is missing, holds no mask of any case, or two of the same name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    named: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or image_suffix(path) is None:
            continue
        if image_stem(path) in named:
            raise DataError(f"{folder}: two masks have the name {image_stem(path)}; remove one of them")
        named[image_stem(path)] = path
    masks = {file.case_id: named[file.case_id] for file in files if file.case_id in named}
    if not masks:
        raise DataError(
            f"{folder}: no mask has the name of an image ({files[0].case_id} for one); masks and images share names"
        )
    orphans = sorted(named.keys() - masks.keys())
    if orphans:
        more = f" and {len(orphans) - _MOST_NAMED} more" if len(orphans) > _MOST_NAMED else ""
        shown = ", ".join(named[name].name for name in orphans[:_MOST_NAMED])
        _LOG.warning("%s: masks that have the name of no image are not looked at: %s%s", folder, shown, more)
    return masks


def score(
    run: Path,
    files: Sequence[CaseFile],
    masks: Mapping[str, Path] | None,
    segmenter: SegmenterAdapter | None,
    out: Path,
    device: str,
    progress: Progress,
    *,
    gates: Gates = NO_GATES,
    prompts: Path | None = None,
    accept_untested: bool = False,
    labels: str | None = None,
    made_by: str | None = None,
) -> Scoring:
    """Assesses masks and writes tables, reward maps, a page and the audit log.

    Cases that were assessed before, from the same files with the same networks, are not assessed again. A case that
    cannot be assessed is named and referred; the others are assessed.

    Args:
        run: Run folder with the quality model.
        files: The images.
        masks: Masks by case, or None where a segmenter makes them.
        segmenter: Makes the masks where none are given; None for that of the run.
        out: Folder for the results.
        device: Where the networks run.
        progress: Told how far it is.
        gates: As in `load_controller`.
        prompts: Where the segmenter of the run makes the masks: as in `load_model`.
        accept_untested: Whether masks may be accepted where the batch is too small to be tested.
        labels: The integers in the masks that are given, as in `parse_mask_labels`; None for those of the run.
        made_by: `model_hash` of the segmenter, where one is given, for the audit log.

    Raises:
        UserError: The quality model cannot be used, files of these cases lie in `out` that something else wrote, or not
            one case could be assessed.
    """
    folder = RunFolder(run)
    folder.require_model()
    own = load_adapted(folder, prompts) if masks is None and segmenter is None else None
    controller = load_controller(run, device, gates, own, accept_untested)
    segmenter = segmenter if own is None else controller.segmenter
    if segmenter is not None and segmenter.schema.names != controller.schema.names:
        raise ModelError(
            f"the model segments {', '.join(segmenter.schema.structures)}, the quality model assesses "
            f"{', '.join(controller.schema.structures)}; they must be of one anatomy"
        )
    networks = {"quality": hash_file(run / QUALITY_FILE), **gates.hashes()}
    in_masks = None if labels is None else parse_mask_labels(labels, controller.schema)
    identity = identify(run)
    queue = ScoringQueue(controller, networks, masks, in_masks, segmenter, CaseRecords(out, "score", identity))
    queue.require_own(files)
    withdraw_results(out)
    for done, file in enumerate(files, 1):
        try:
            queue.take(file)
        except UserError as error:
            queue.refuse(file.case_id, error)
        progress("scoring", done, len(files))
    queue.assess_waiting()
    reports = [queue.reports[file.case_id] for file in files if file.case_id in queue.reports]
    scoring = Scoring(controller.settle(reports), queue.unassessed)
    write_tables(out, files, scoring, controller, queue)
    simulated = any(is_simulated(path.parent) for file in files[:1] for path in file.image_paths)
    write_scores_page(out, scoring, controller, simulated)
    common = {**gates.hashes(), "made_by": made_by if own is None else identity.model_hash}
    queue.records.log(audit_lines(scoring, queue, common))
    if not reports:
        first = next(iter(queue.unassessed.values()))
        raise DataError(f"no case could be assessed, {out / TABLE_FILE} says why of each; the first: {first.problem}")
    return scoring
