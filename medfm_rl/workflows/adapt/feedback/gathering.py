"""The feedback that a run learns from: gathered from the store once, and from then on the same."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError
from medfm_rl.feedback import CorrectedMask, Feedback, FeedbackStore, Measurement, Verdict
from medfm_rl.feedback.agreement import expert_masks
from medfm_rl.feedback.standing import audited, standing, state_hash
from medfm_rl.progress import Progress
from medfm_rl.runs.learned_feedback import CORRECTED_TRUST, LearnedFeedback, Reported, ReviewedCase
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import FeedbackSettings
from medfm_rl.types import LabelSchema
from medfm_rl.workflows.adapt.feedback.fitting import require_fitting
from medfm_rl.workflows.adapt.feedback.judged import judged_cases, preferred_cases
from medfm_rl.workflows.adapt.feedback.reported import some_of

_LOG = logging.getLogger(__name__)
_KEPT: Final = "feedback kept"
_SEEDS: Final = 2**31
"""How many seeds there are: a seed over it is a number in [0, 1)."""
_MASK_KINDS: Final = {"masks": CorrectedMask, "accepted": Verdict}
"""What `feedback.kinds` calls the entries that expert masks come from."""


def gather(
    settings: FeedbackSettings,
    files: Sequence[CaseFile],
    seed: int,
    progress: Progress,
    taught_before: Collection[str] = (),
    schema: LabelSchema | None = None,
) -> LearnedFeedback:
    """Finds what a store says of the cases of a target.

    Args:
        settings: The store and what is learned from it.
        files: The cases of the target.
        seed: Of the run; it draws the patients who are kept.
        progress: Told how many images were compared with those of the store.
        taught_before: Patients who taught a run that this one goes on from: none of them is kept.
        schema: Structures of the segmenter that shall learn from it; None leaves open whether it can.

    Raises:
        FeedbackError: The store cannot be read.
        DataError: An image cannot be read, nothing in the store is of the target, or something cannot teach the
            segmenter.
    """
    with FeedbackStore.open(settings.store) as store:
        return _gather(store, settings, files, seed, progress, taught_before, schema)


def _gather(
    store: FeedbackStore,
    settings: FeedbackSettings,
    files: Sequence[CaseFile],
    seed: int,
    progress: Progress,
    taught_before: Collection[str],
    schema: LabelSchema | None,
) -> LearnedFeedback:
    history, name = store.history(), store.where
    entries = standing(history).in_force
    case_of = _cases_by_image(files, {entry.image_sha256 for entry in entries if entry.image_sha256}, progress)
    patients = {file.patient_id for file in files}
    of_target = _of_target(entries, case_of, patients)
    if not of_target:
        raise DataError(
            f"feedback: {name} says nothing of the {len(files)} cases of the target, by the content of their "
            f"images; it has {len(entries)} entries. Give the images that were reviewed as target, or another store"
        )
    audit = {_patient(entry, case_of) for entry in _of_target(audited(history), case_of, patients)}
    kept = _kept({_patient(entry, case_of) for entry in of_target}, audit, settings, seed, taught_before)
    reviewed = _reviewed(of_target, case_of, settings)
    reported = _reported(of_target, case_of) if "measurements" in settings.kinds else ()
    if schema is not None:
        teaching = [entry for entry in of_target if _patient(entry, case_of) not in kept]
        require_fitting(store, teaching, settings.kinds, reviewed, schema)
    if "measurements" in settings.kinds:
        _tell_strangers(entries, patients)
    elsewhere = {entry.image_sha256 for entry in entries if entry.image_sha256} - case_of.keys()
    return LearnedFeedback(
        name,
        state_hash(entries),
        tuple(each for each in reviewed if each.patient_id not in kept),
        tuple(each for each in reported if each.patient_id not in kept),
        tuple(sorted(kept)),
        len(elsewhere),
        tuple(each for each in judged_cases(of_target, case_of, settings) if each.patient_id not in kept),
        tuple(each for each in preferred_cases(of_target, case_of, settings) if each.patient_id not in kept),
        tuple(sorted(taught_before)),
    )


def _tell_strangers(entries: Iterable[Feedback], patients: Collection[str]) -> None:
    """Warns of values of patients who have no image in the target: names may be spelled in two ways."""
    strangers = [
        entry.patient
        for entry in entries
        if isinstance(entry, Measurement) and entry.image_sha256 is None and entry.patient not in patients
    ]
    if strangers:
        _LOG.warning(
            "feedback: %d values of reports are of patients of whom the target has no image, by name, and teach "
            "nothing: %s. Give their images as target too, or name patients alike (target.patient_pattern)",
            len(strangers),
            some_of(strangers),
        )


def _of_target(
    entries: Iterable[Feedback], case_of: Mapping[str, CaseFile], patients: Collection[str]
) -> list[Feedback]:
    return [
        entry
        for entry in entries
        if (entry.image_sha256 in case_of if entry.image_sha256 is not None else entry.patient in patients)
    ]


def _cases_by_image(files: Sequence[CaseFile], wanted: Iterable[str], progress: Progress) -> dict[str, CaseFile]:
    wanted, found = set(wanted), {}
    for done, file in enumerate(files, 1):
        sha256 = file.hash_images()
        if sha256 in wanted:
            found[sha256] = file
        progress("comparing images with the feedback", done, len(files))
    return found


def _kept(
    patients: Collection[str],
    audit: Collection[str],
    settings: FeedbackSettings,
    seed: int,
    taught_before: Collection[str],
) -> set[str]:
    """Patients who never teach: those of an audit draw, and a random share of the others.

    Each is drawn by himself, so that a store that grows changes nothing for those who are in it. Whoever has taught
    a run that this one goes on from is in its weights and in D_R, and cannot be kept any more.

    Args:
        patients: Those with feedback.
        audit: Those of an audit draw.
        settings: The share, and whether audit patients teach too.
        seed: Of the run.
        taught_before: Those who taught an earlier run.
    """
    also = {
        patient
        for patient in patients
        if patient not in audit and derive_seed(seed, _KEPT, patient) / _SEEDS < settings.calibration_share
    }
    wanted = also if settings.learn_from_audit else also.union(audit).intersection(patients)
    too_late = sorted(wanted.intersection(audit, taught_before))
    if too_late:
        _LOG.warning(
            "feedback: %d patients of an audit draw are not kept for promises, because they taught the run that this "
            "one goes on from, and go on teaching: %s. Draw audit patients among those who taught nothing "
            "(`medfm-rl propose` does)",
            len(too_late),
            ", ".join(too_late),
        )
    return wanted.difference(taught_before)


def _patient(entry: Feedback, case_of: Mapping[str, CaseFile]) -> str:
    """The patient as the run names him: by the layout of the target, not by what the store was told."""
    return entry.patient if entry.image_sha256 is None else case_of[entry.image_sha256].patient_id


def _reviewed(
    entries: Sequence[Feedback], case_of: Mapping[str, CaseFile], settings: FeedbackSettings
) -> tuple[ReviewedCase, ...]:
    """By case, the masks that were drawn, or else those that were accepted as a whole."""
    kinds = tuple(kind for name, kind in _MASK_KINDS.items() if name in settings.kinds)
    found = []
    for image, by_reviewer in expert_masks([entry for entry in entries if isinstance(entry, kinds)]).items():
        drawn = [mask for mask in by_reviewer.values() if mask.drawn]
        masks = tuple(dict.fromkeys(mask.sha256 for mask in drawn or by_reviewer.values()))
        trust = CORRECTED_TRUST if drawn else settings.accepted_trust
        found.append(ReviewedCase(case_of[image].case_id, case_of[image].patient_id, masks, trust, bool(drawn)))
    return tuple(sorted(found, key=lambda each: each.case_id))


def _reported(entries: Sequence[Feedback], case_of: Mapping[str, CaseFile]) -> tuple[Reported, ...]:
    found = [
        Reported(
            _patient(entry, case_of),
            None if entry.image_sha256 is None else case_of[entry.image_sha256].case_id,
            entry.name,
            entry.structure,
            entry.value,
            entry.uncertainty,
        )
        for entry in entries
        if isinstance(entry, Measurement)
    ]
    return tuple(sorted(found, key=lambda each: (each.patient_id, each.case_id or "", each.name, each.structure or "")))


def say_what_is_learned(learned: LearnedFeedback) -> None:
    """Logs, without names, what a run learns from."""
    _LOG.info(
        "feedback: masks of %d images of %d patients, %d verdicts and grades and %d preferences on masks of %d "
        "patients and %d values of reports teach; %d patients are kept for promises",
        len(learned.reviewed),
        len(learned.reviewed_patients),
        len(learned.judged),
        len(learned.preferred),
        len(learned.judged_patients),
        len(learned.reported),
        len(learned.kept),
    )
    if learned.elsewhere:
        _LOG.warning(
            "feedback: %d reviewed images are not among those of the target and teach nothing; give them as target too",
            learned.elsewhere,
        )


def as_record(learned: LearnedFeedback) -> dict[str, Any]:
    """What is recorded of it where names of cases and patients do not belong."""
    return {
        "feedback_hash": learned.state_hash,
        "feedback_images": len(learned.reviewed),
        "feedback_patients": len(learned.teaching_patients),
        "feedback_judgements": len(learned.judgements),
        "feedback_values": len(learned.reported),
        "feedback_kept_patients": len(learned.kept),
        "feedback_patients_before": len(learned.taught_before),
    }
