"""`medfm-rl calibrate --feedback`: a promise, and a month's figures, from the reviewed audit patients of a store."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from medfm_rl.data.files import alone_writing, hash_file, write_versioned_json
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.mask_labels import labels_in_masks
from medfm_rl.errors import DataError, ModelError, UserError
from medfm_rl.feedback import Feedback, FeedbackStore
from medfm_rl.feedback.agreement import ExpertMask, consensus, expert_masks
from medfm_rl.feedback.standing import audited, standing, state_hash
from medfm_rl.metrics.overlap import dice
from medfm_rl.metrics.scores import MEAN
from medfm_rl.progress import Progress, silent
from medfm_rl.quality.drift import mask_key
from medfm_rl.quality.month import Estimate, MonthMask, as_json, failure_probability, month_mean, month_rate
from medfm_rl.quality.promises import Grounds, Promise, PromiseTarget, ReviewedMask, prove
from medfm_rl.quality.reviewed_errors import Origin, ReviewedErrors, ReviewedPrediction, fit_reviewed_errors
from medfm_rl.runs.judging import Judge
from medfm_rl.runs.leakage import count_known
from medfm_rl.runs.learned_feedback import LearnedFeedback
from medfm_rl.runs.scores import AssessedMask, Scores
from medfm_rl.types import LabelMap, LabelSchema
from medfm_rl.workflows.calibrate.cases import keep_previous
from medfm_rl.workflows.deploy.given_masks import GivenMasks

MONTH_FILE: Final = "month.json"
_MONTH_FORMAT: Final = 2
_GUESSED_ERROR: Final = 0.05
"""Error of predicted Dice where the calibration does not know it; it only weighs predictions."""
_MOST_NAMED: Final = 5
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditRequest:
    """Scored masks, and what reviewers said of some of them.

    Attributes:
        store: The feedback store.
        files: The images that were scored.
        scores: Their `scores.json`.
        masks: Masks by case, where they are not where they were scored.
        labels: The integers in the masks, as in `labels_in_masks`.
        target: What is to be promised.
    """

    store: Path | str
    files: Sequence[CaseFile]
    scores: Path
    masks: Mapping[str, Path] | None = None
    labels: str | None = None
    target: PromiseTarget = field(default_factory=PromiseTarget)


@dataclass(frozen=True)
class ReviewedAudit:
    """Reviewed masks that promises may rest on.

    Attributes:
        masks: The masks.
        predictions: The same, with what was predicted and what is true of each structure.
        reviewers: Opaque ids of who reviewed.
        left_out: Reviewed cases that no promise may rest on, and why.
        state_hash: Of what was in force in the store.
        store: Its name, without a password.
    """

    masks: tuple[ReviewedMask, ...]
    predictions: tuple[ReviewedPrediction, ...]
    reviewers: tuple[str, ...]
    left_out: Mapping[str, str]
    state_hash: str
    store: str


@dataclass(frozen=True)
class AuditResult:
    """What came of it.

    Attributes:
        promise: Written to `promise.json` in the run.
        month: Mean Dice and failure rate of all that was scored, written beside the scores; empty where they cannot be
            inferred.
        no_month: Why not.
        errors: What the reviewed patients tell of predicted Dice, written to `reviewed_errors.json` in the run; None
            where they are too few.
        no_errors: Why there are none.
    """

    promise: Promise
    month: Mapping[str, Estimate]
    no_month: str | None
    errors: ReviewedErrors | None
    no_errors: str | None


def calibrate_on_audit(run: Judge, request: AuditRequest, progress: Progress = silent) -> AuditResult:
    """Proves what can be promised of accepted masks, finds how predictions miss, and infers the figures of the month.

    For the promise nothing is fitted: the quality model of the run predicted, and the reviewed patients only judge it.
    So all of them count, and from the same patients come the errors by which later predictions are moved.

    Args:
        run: The run, or the judge, with the quality model that scored.
        request: What was scored and reviewed.
        progress: Told how far it is.

    Raises:
        UserError: The scores are not of this run, or nothing that was drawn at random has been reviewed.
    """
    with alone_writing(run.path):
        scores = Scores.read(request.scores)
        scores.require_quality(run.folder.quality)
        audit = gather_audit(run, request, progress)
        found, reviewed = prove(audit.masks, request.target), {mask.case for mask in audit.masks}
        evidence = Grounds(
            quality_hash=scores.quality,
            scores_hash=hash_file(request.scores),
            feedback=audit.store,
            feedback_hash=audit.state_hash,
            reviewers=audit.reviewers,
            left_out=dict(audit.left_out),
            looks=_looks(run.folder.promise, scores.quality, audit.store),
            masks=tuple(mask_key(name, case.mask) for name, case in scores.cases.items() if name in reviewed),
        )
        created = datetime.now(UTC).isoformat(timespec="seconds")
        promise = found.model_copy(update={"created": created, "evidence": evidence})
        errors, no_errors = _errors(run, audit, Origin(scores.quality, audit.store, audit.state_hash, created))
        for place in (run.folder.promise, run.folder.reviewed_errors):
            keep_previous(place)
        promise.write(run.folder.promise)
        if errors is None:
            run.folder.reviewed_errors.unlink(missing_ok=True)
        else:
            errors.write(run.folder.reviewed_errors)
    for line in caveats(evidence):
        _LOG.warning("%s", line)
    month, why = _month(run, list(scores.cases.values()), audit, request.target.dice)
    if month:
        place = request.scores.with_name(MONTH_FILE)
        write_versioned_json(place, _MONTH_FORMAT, {"dice_limit": request.target.dice, **as_json(month)})
    return AuditResult(promise, month, why, errors, no_errors)


def _errors(run: Judge, audit: ReviewedAudit, origin: Origin) -> tuple[ReviewedErrors | None, str | None]:
    """How predictions miss, or why that is not known."""
    try:
        return fit_reviewed_errors(audit.predictions, run.quality.targets.coverage, origin), None
    except DataError as problem:
        return None, str(problem)


def caveats(evidence: Grounds) -> list[str]:
    """What has to be said along with a promise, one line each."""
    lines = [f"no promise rests on case {case}: {why}" for case, why in evidence.left_out.items()]
    if len(lines) > _MOST_NAMED:
        lines = [
            *lines[:_MOST_NAMED],
            f"and on {len(lines) - _MOST_NAMED} others, for such reasons; promise.json has all",
        ]
    if len(evidence.reviewers) == 1:
        lines.append(
            f"all was reviewed by {evidence.reviewers[0]}: what is promised is what this reviewer would say; have "
            "another review some of the same cases"
        )
    if evidence.looks:
        times = "once" if evidence.looks == 1 else f"{evidence.looks} times"
        lines.append(
            f"a promise was sought from this store {times} before: the confidence is that of one look, and the more "
            "often one looks, the more often a promise is found by luck"
        )
    return lines


def taught_patients(path: Path) -> frozenset[str]:
    """Patients of whom anything taught a run or one that it goes on from, by its `feedback.json`; else none.

    Raises:
        DataError: The file cannot be read.
    """
    return frozenset(LearnedFeedback.read(path).ever_taught) if path.exists() else frozenset()


def gather_audit(run: Judge, request: AuditRequest, progress: Progress = silent) -> ReviewedAudit:
    """Finds the scored cases that were drawn at random and reviewed, with their true mean Dice.

    Raises:
        DataError: There is none; one was reviewed without saying what is right; or a mask is not the one that was
            scored.
        FeedbackError: The store cannot be read.
    """
    scores = Scores.read(request.scores)
    file_of = _by_image([file for file in request.files if file.case_id in scores.cases], progress)
    taught = taught_patients(run.folder.feedback)
    schema = run.grid.schema
    paths = scores.mask_files if request.masks is None else request.masks
    given = GivenMasks(paths, scores, schema, labels_in_masks(request.labels, paths, schema))
    with FeedbackStore.open(request.store) as store:
        history = store.history()
        in_force = standing(history).in_force
        entries = [entry for entry in in_force if entry.image_sha256 in file_of]
        experts = expert_masks(entries)
        left_out = _left_out(entries, {entry.image_sha256 for entry in audited(history)}, file_of, taught)
        audit = {image for image in _images(entries) if file_of[image].case_id not in left_out}
        if not audit:
            raise DataError(_no_audit(request, store.where, len(scores.cases), file_of, left_out))
        _require_truth(audit, experts, file_of, store.where)
        count_known(run.folder, [file_of[image] for image in sorted(audit)], allow_overlap=True)
        masks: list[ReviewedMask] = []
        predictions: list[ReviewedPrediction] = []
        for done, image in enumerate(sorted(audit), 1):
            file = file_of[image]
            found = [store.mask(sha256) for sha256 in dict.fromkeys(mask.sha256 for mask in experts[image].values())]
            truth = (found[0] if len(found) == 1 else consensus(found)).labels_for(schema)
            mask = given.read(file.read())
            reviewed, prediction = _reviewed(mask, truth, scores.cases[file.case_id], file, schema)
            masks.append(reviewed)
            predictions.append(prediction)
            progress("reading reviewed masks", done, len(audit))
        reviewers = sorted({reviewer for image in audit for reviewer in experts[image]})
        return ReviewedAudit(
            tuple(masks), tuple(predictions), tuple(reviewers), left_out, state_hash(in_force), store.where
        )


def _by_image(files: Sequence[CaseFile], progress: Progress) -> dict[str, CaseFile]:
    found = {}
    for done, file in enumerate(files, 1):
        found[file.hash_images()] = file
        progress("comparing images with the feedback", done, len(files))
    return found


def _images(entries: Sequence[Feedback]) -> list[str]:
    return list(dict.fromkeys(entry.image_sha256 for entry in entries if entry.image_sha256 is not None))


def _left_out(
    entries: Sequence[Feedback], audit: Collection[str | None], file_of: Mapping[str, CaseFile], taught: frozenset[str]
) -> dict[str, str]:
    """By case, why no promise may rest on it; `audit` are the images that were ever drawn for audit."""
    drawn: dict[str, set[str]] = {}
    for entry in entries:
        if entry.image_sha256 is not None:
            drawn.setdefault(entry.image_sha256, set()).add(entry.drawn)
    found = {}
    for image, ways in drawn.items():
        file = file_of[image]
        if file.patient_id in taught:
            found[file.case_id] = f"patient {file.patient_id} taught the run"
        elif image not in audit:
            found[file.case_id] = f"it was not drawn at random (drawn: {', '.join(sorted(ways))})"
    return found


def _no_audit(
    request: AuditRequest, store: str, assessed: int, file_of: Mapping[str, CaseFile], left_out: Mapping[str, str]
) -> str:
    """Why there is nothing that a promise may rest on."""
    if not file_of:
        return (
            f"{request.scores}: none of the {len(request.files)} images given is of one of its {assessed} cases; give "
            "the folder of the images that were scored (--images)"
        )
    return (
        f"{store}: none of the {assessed} cases of {request.scores} was drawn for audit and reviewed{_named(left_out)}"
        "; draw cases at random, have them reviewed, and add them by `medfm-rl feedback add --drawn audit`"
    )


def _require_truth(
    audit: set[str], experts: Mapping[str, Mapping[str, ExpertMask]], file_of: Mapping[str, CaseFile], store: str
) -> None:
    """Refuses an audit from which those cases are missing that nobody wanted to correct."""
    without = sorted(file_of[image].case_id for image in audit if image not in experts)
    if without:
        raise DataError(
            f"{store}: {len(without)} cases that were drawn for audit have neither a corrected mask nor an accepted "
            f"one: {', '.join(without[:_MOST_NAMED])}. Without them, which may be the worst, a promise would be too "
            "good: add their corrected masks"
        )


def _reviewed(
    mask: LabelMap, truth: LabelMap, case: AssessedMask, file: CaseFile, schema: LabelSchema
) -> tuple[ReviewedMask, ReviewedPrediction]:
    if mask.shape != truth.shape:
        raise DataError(
            f"case {case.case_id}: the reviewed mask has size {truth.shape} and the scored one {mask.shape}; remove "
            "that entry (`medfm-rl feedback remove`) or correct it"
        )
    overlap = dice(mask, truth, schema.classes)
    of_structures = dict(zip(schema.structures, overlap.tolist(), strict=True))
    predicted = case.as_calibrated
    mean = predicted.pop(MEAN)
    return (
        ReviewedMask(case.case_id, file.patient_id, mean, not case.broken_rules, float(overlap.mean())),
        ReviewedPrediction(file.patient_id, predicted, of_structures),
    )


def _looks(path: Path, quality: str, store: str) -> int:
    """How often a promise was sought before with this model and store."""
    if not path.exists():
        return 0
    try:
        before = Promise.read(path).evidence
    except ModelError:
        # It is damaged and kept under another name, and tells nothing.
        return 0
    same = before is not None and (before.quality_hash, before.feedback) == (quality, store)
    return before.looks + 1 if same and before is not None else 0


def _month(
    run: Judge, cases: Sequence[AssessedMask], audit: ReviewedAudit, limit: float
) -> tuple[dict[str, Estimate], str | None]:
    """The figures of all masks but those of patients who taught the run."""
    taught = taught_patients(run.folder.feedback)
    true = {mask.case: mask.dice for mask in audit.masks}
    error = run.quality.structures[MEAN].error or _GUESSED_ERROR
    shown = [(case, case.as_calibrated[MEAN] or 0.0) for case in cases if case.patient_id not in taught]
    means = [MonthMask(case.patient_id, predicted, true.get(case.case_id)) for case, predicted in shown]
    failing = [
        MonthMask(
            case.patient_id,
            failure_probability(predicted, limit, error),
            float(true[case.case_id] < limit) if case.case_id in true else None,
        )
        for case, predicted in shown
    ]
    try:
        return {"mean_dice": month_mean(means), "failure_rate": month_rate(failing)}, None
    except UserError as problem:
        return {}, str(problem)


def _named(left_out: Mapping[str, str]) -> str:
    if not left_out:
        return ""
    first = list(left_out.items())[:_MOST_NAMED]
    return f" ({len(left_out)} reviewed cases do not count: {'; '.join(f'{case}: {why}' for case, why in first)})"
