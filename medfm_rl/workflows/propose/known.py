"""Patients who are known already: reviewed, as a feedback store says, or learned from, as the run says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medfm_rl.data.each_case import case_alone
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import UserError
from medfm_rl.feedback import Feedback, FeedbackStore, Measurement
from medfm_rl.progress import Progress
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.learned_feedback import LearnedFeedback


@dataclass(frozen=True)
class KnownPatients:
    """Patients who are not proposed, by name, with the reason.

    Attributes:
        left_out: Not proposed at all.
        taught: Not drawn for an audit: values of their reports taught the run.
        teachers: Of those left out, who was reviewed to be learned from: what they look like is nothing new.
        store: Name of the store without a password, and the hash of what is in force there; None without one.
    """

    left_out: Mapping[str, str] = field(default_factory=dict)
    taught: frozenset[str] = frozenset()
    teachers: frozenset[str] = frozenset()
    store: tuple[str, str] | None = None


def find_known(
    run: FinishedRun, files: Sequence[CaseFile], store: Path | str | None, progress: Progress
) -> KnownPatients:
    """Finds out which patients of some images have been reviewed, or have taught a run.

    A patient has been reviewed where the store has a mask, verdict, grade or preference of one of his images, by its
    content, or of an image that is not among these, by his name: all images of a patient are on one side. What a report
    says of a patient is no review; values that taught the run only keep him out of an audit draw.

    Args:
        run: Says from whom it learned.
        files: The images.
        store: The feedback store; None where there is none.
        progress: Told how many images were compared with those of the store.

    Raises:
        FeedbackError: The store cannot be read.
        DataError: The run's record of feedback cannot be read.
    """
    patients = {file.patient_id for file in files}
    learned = LearnedFeedback.read(run.folder.feedback) if run.folder.feedback.exists() else None
    left_out: dict[str, str] = {}
    taught: set[str] = set()
    teachers: set[str] = set()
    if learned is not None:
        left_out.update(
            dict.fromkeys(learned.taught_before, "taught the run that this one goes on from: reviewed already")
        )
        left_out.update(dict.fromkeys(learned.kept, "kept for promises when the run was adapted"))
        left_out.update(dict.fromkeys(learned.reviewed_patients, "the run learned from reviewed masks of this patient"))
        left_out.update(dict.fromkeys(learned.judged_patients, "the run learned from judged masks of this patient"))
        taught = {each.patient_id for each in learned.reported}
        teachers = {*learned.reviewed_patients, *learned.judged_patients, *learned.taught_before}
    if store is None:
        return KnownPatients(_of(patients, left_out), frozenset(taught & patients), frozenset(teachers & patients))
    with FeedbackStore.open(store) as opened:
        entries = [entry for entry in opened.entries() if not isinstance(entry, Measurement)]
        where = (opened.where, opened.state_hash())
    by_image = _reviewed_images(files, entries, progress)
    elsewhere = [entry for entry in entries if entry.image_sha256 not in by_image]
    left_out.update({entry.patient: f"reviewed in another image ({entry.case})" for entry in elsewhere})
    left_out.update(dict.fromkeys(by_image.values(), "reviewed"))
    teachers |= {by_image.get(entry.image_sha256 or "", entry.patient) for entry in entries if entry.drawn != "audit"}
    return KnownPatients(_of(patients, left_out), frozenset(taught & patients), frozenset(teachers & patients), where)


def _of(patients: set[str], reasons: Mapping[str, str]) -> dict[str, str]:
    return {patient: reason for patient, reason in sorted(reasons.items()) if patient in patients}


def _reviewed_images(files: Sequence[CaseFile], entries: Sequence[Feedback], progress: Progress) -> dict[str, str]:
    """By the hash of each image that the store speaks of: its patient, as these images name him."""
    wanted = {entry.image_sha256 for entry in entries}
    found: dict[str, str] = {}
    for done, file in enumerate(files, 1):
        try:
            with case_alone(file.case_id):
                sha256 = file.hash_images()
        except UserError:
            # Whoever reads it later says what is wrong with it, by name; nobody has reviewed what cannot be read.
            sha256 = ""
        if sha256 in wanted:
            found[sha256] = file.patient_id
        progress("comparing images with the feedback", done, len(files))
    return found
