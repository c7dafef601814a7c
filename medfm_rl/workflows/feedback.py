"""`medfm-rl feedback add`: what came back from reviewers, with the run whose masks they saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medfm_rl.choices import Drawn
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.mask_files import find_masks
from medfm_rl.data.mask_labels import labels_in_masks
from medfm_rl.errors import ConfigError
from medfm_rl.feedback.reading.corrections import read_corrected
from medfm_rl.feedback.reading.judgements import read_preferences, read_verdicts
from medfm_rl.feedback.reading.measurements import read_measurements
from medfm_rl.feedback.reading.shown import Batch, Review, ShownCases
from medfm_rl.feedback.standing import require_consistent
from medfm_rl.feedback.store import Added, FeedbackStore
from medfm_rl.progress import Progress, silent
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.seen import require_seen, target_patients
from medfm_rl.types import LabelSchema


@dataclass(frozen=True)
class FeedbackRequest:
    """What came back, and what was shown.

    Attributes:
        reviewer: Opaque id of the reviewer, or of the source of the reports.
        files: The images that were shown; empty where only measurements of patients came.
        run: The run that made the masks; None where none did.
        schema: Structures of the masks, where no run says them.
        masks: Folder of the masks that were shown.
        corrected: Folder of corrected masks.
        verdicts: Table of verdicts and grades.
        preferences: Table of preferences.
        measurements: Table of measurements.
        labels: The integers in the masks, and in those of the preferences, as `--labels` says them.
        corrected_labels: The same of the corrected masks, where they have others.
        drawn: How the cases came to be reviewed.
        comment: Goes with every entry.
        unseen: Whether to take images that the run never saw.
    """

    reviewer: str
    files: Sequence[CaseFile] = ()
    run: FinishedRun | None = None
    schema: LabelSchema | None = None
    masks: Path | None = None
    corrected: Path | None = None
    verdicts: Path | None = None
    preferences: Path | None = None
    measurements: Path | None = None
    labels: str | None = None
    corrected_labels: str | None = None
    drawn: Drawn = "other"
    comment: str = ""
    unseen: bool = False


def add_feedback(where: Path | str, request: FeedbackRequest, progress: Progress = silent) -> Added:
    """Reads all that came back, checks it, and adds it to a store: everything, or nothing.

    Args:
        where: The store, as in `FeedbackStore.create`; it is made where there is none, after everything was read.
        request: What came back.
        progress: Told how far it is.

    Raises:
        UserError: Something cannot be used, or the store does not take it; the message names it.
    """
    _require_parts(request)
    run = request.run
    review = Review(request.reviewer, request.drawn, None if run is None else run.identity.model_hash, request.comment)
    shown = _shown(request)
    batch = Batch() if shown is None else _read_masks(request, shown, review, progress)
    if request.measurements is not None:
        schema = _schema(request)
        structures = () if schema is None else schema.structures
        batch += read_measurements(request.measurements, review, shown, _patients(request), progress, structures)
    if run is not None and shown is not None and not request.unseen:
        require_seen(run, shown.seen, request.masks)
    # Before a store is made that would stay empty.
    require_consistent(batch.entries)
    with FeedbackStore.create(where) as store:
        return store.add(batch.entries, batch.masks)


def _require_parts(request: FeedbackRequest) -> None:
    """Refuses a call in which something is missing.

    Raises:
        ConfigError: It is so.
    """
    of_masks = {
        "--corrected": request.corrected,
        "--verdicts": request.verdicts,
        "--preferences": request.preferences,
    }
    given = [name for name, place in of_masks.items() if place is not None]
    if not given and request.measurements is None:
        raise ConfigError(f"nothing to add; give one or more of {', '.join(of_masks)} and --measurements")
    if given and not request.files:
        raise ConfigError(f"{given[0]} speaks of images; give them (--images)")
    if given and request.run is None and request.schema is None:
        raise ConfigError(
            f"{given[0]} speaks of structures; give the run that made the masks (--run), or name them (--structures)"
        )
    if request.run is not None and request.schema is not None:
        raise ConfigError("--run says which structures there are; leave out --structures")
    if request.verdicts is not None and request.masks is None:
        raise ConfigError("--verdicts speak of masks; give the folder of those that were shown (--masks)")


def _schema(request: FeedbackRequest) -> LabelSchema | None:
    """The structures, as they were named or as the run says; None where nobody does."""
    return request.schema if request.run is None else request.run.preprocessing.schema


def _shown(request: FeedbackRequest) -> ShownCases | None:
    """The images and masks that were shown; None where no image was given.

    Raises:
        UserError: The masks cannot be found, or the run cannot be loaded.
    """
    if not request.files:
        return None
    schema = _schema(request)
    if request.masks is None or schema is None:
        return ShownCases(request.files, {}, schema)
    masks = find_masks(request.masks, request.files)
    return ShownCases(request.files, masks, schema, labels_in_masks(request.labels, masks, schema))


def _read_masks(request: FeedbackRequest, shown: ShownCases, review: Review, progress: Progress) -> Batch:
    batch = Batch()
    if request.corrected is not None:
        corrected = find_masks(request.corrected, request.files, every=True)
        own = request.corrected_labels
        text, option = (request.labels, "--labels") if own is None else (own, "--corrected-labels")
        in_files = labels_in_masks(text, corrected, shown.schema, option)
        batch += read_corrected(shown, corrected, review, in_files, progress)
    if request.verdicts is not None:
        batch += read_verdicts(shown, request.verdicts, review, progress)
    if request.preferences is not None:
        batch += read_preferences(shown, request.preferences, review, request.labels, progress)
    return batch


def _patients(request: FeedbackRequest) -> frozenset[str] | None:
    """The patients that can be meant; None where nobody knows."""
    of_run = None if request.run is None else target_patients(request.run)
    if not request.files:
        return of_run
    return frozenset(file.patient_id for file in request.files) | (of_run or frozenset())
