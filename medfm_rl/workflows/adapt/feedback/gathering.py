"""The feedback that a run learns from: gathered from the store once, and from then on the same."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from medfm_rl.data.files import read_versioned_json, write_versioned_json
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError
from medfm_rl.feedback import CorrectedMask, Feedback, FeedbackStore, Measurement, Verdict
from medfm_rl.feedback.agreement import expert_masks
from medfm_rl.progress import Progress
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import FeedbackSettings
from medfm_rl.workflows.adapt.feedback.judged import JudgedCase, PreferredCase, judged_cases, preferred_cases

_LOG = logging.getLogger(__name__)
_FORMAT: Final = 2
_ADVICE: Final = "put back what `adapt` wrote there, or start a new run in another folder"
_AUDIT: Final = "audit"
_CORRECTED_TRUST: Final = 1.0
_MASK_KINDS: Final = {"masks": CorrectedMask, "accepted": Verdict}
"""What `feedback.kinds` calls the entries that expert masks come from."""


@dataclass(frozen=True)
class ReviewedCase:
    """A target case whose mask reviewers drew or accepted.

    Attributes:
        case_id: As the run calls it.
        patient_id: Of the case.
        masks: Hashes of the masks in the store, one for each reviewer.
        trust: How often it is shown beside a mask that was corrected, in (0, 1].
    """

    case_id: str
    patient_id: str
    masks: tuple[str, ...]
    trust: float


@dataclass(frozen=True)
class Reported:
    """A value from a report.

    Attributes:
        patient_id: Whose it is.
        case_id: The case that was measured; None for the patient as a whole.
        name: Of the quantity, such as EF.
        structure: That was measured; None where the name says it.
        value: In the unit in which the store keeps that quantity.
        uncertainty: Standard deviation, in the same unit; None where it is not known.
    """

    patient_id: str
    case_id: str | None
    name: str
    structure: str | None
    value: float
    uncertainty: float | None


@dataclass(frozen=True)
class LearnedFeedback:
    """What a run learns from of a store.

    Attributes:
        store: Its name, without a password.
        state_hash: SHA-256 of what was in force when the run started.
        reviewed: Cases that teach.
        reported: Values that teach.
        kept: Patients with feedback who never teach: promises may rest on them.
        elsewhere: Cases with feedback whose image is not among those of the target.
        judged: Verdicts and grades that teach.
        preferred: Preferences that teach.
    """

    store: str
    state_hash: str
    reviewed: tuple[ReviewedCase, ...]
    reported: tuple[Reported, ...]
    kept: tuple[str, ...]
    elsewhere: int
    judged: tuple[JudgedCase, ...] = ()
    preferred: tuple[PreferredCase, ...] = ()

    @property
    def reviewed_patients(self) -> tuple[str, ...]:
        """Patients whose masks teach, sorted."""
        return tuple(sorted({each.patient_id for each in self.reviewed}))

    @property
    def judgements(self) -> tuple[JudgedCase | PreferredCase, ...]:
        """Verdicts and grades, then preferences."""
        return (*self.judged, *self.preferred)

    @property
    def judged_patients(self) -> tuple[str, ...]:
        """Patients of whom a verdict, grade or preference teaches, sorted."""
        return tuple(sorted({each.patient_id for each in self.judgements}))

    @property
    def teaching_patients(self) -> tuple[str, ...]:
        """Patients of whom anything teaches, sorted."""
        reported = {each.patient_id for each in self.reported}
        return tuple(sorted(reported.union(self.reviewed_patients, self.judged_patients)))

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        write_versioned_json(path, _FORMAT, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `write` wrote, also format 1, which knew no judgements.

        Raises:
            DataError: The file is missing, is no such record, or was written by a newer version.
        """
        content = read_versioned_json(path, _FORMAT, _ADVICE)
        try:
            return cls(
                content["store"],
                content["state_hash"],
                tuple(ReviewedCase(**{**each, "masks": tuple(each["masks"])}) for each in content["reviewed"]),
                tuple(Reported(**each) for each in content["reported"]),
                tuple(content["kept"]),
                int(content["elsewhere"]),
                tuple(JudgedCase(**each) for each in content.get("judged", [])),
                tuple(PreferredCase(**each) for each in content.get("preferred", [])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not a record of feedback ({error!r}); {_ADVICE}") from error


def gather(settings: FeedbackSettings, files: Sequence[CaseFile], seed: int, progress: Progress) -> LearnedFeedback:
    """Finds what a store says of the cases of a target.

    Args:
        settings: The store and what is learned from it.
        files: The cases of the target.
        seed: Of the run; it draws the patients who are kept.
        progress: Told how many images were compared with those of the store.

    Raises:
        FeedbackError: The store cannot be read.
        DataError: An image cannot be read, or nothing in the store is of the target.
    """
    with FeedbackStore.open(settings.store) as store:
        entries, state_hash, name = store.entries(), store.state_hash(), store.where
    case_of = _cases_by_image(files, {entry.image_sha256 for entry in entries if entry.image_sha256}, progress)
    patients = {file.patient_id for file in files}
    of_target = [
        entry
        for entry in entries
        if (entry.image_sha256 in case_of if entry.image_sha256 is not None else entry.patient in patients)
    ]
    if not of_target:
        raise DataError(
            f"feedback: {name} says nothing of the {len(files)} cases of the target, by the content of their "
            f"images; it has {len(entries)} entries. Give the images that were reviewed as target, or another store"
        )
    kept = _kept(of_target, case_of, settings, seed)
    reviewed = _reviewed(of_target, case_of, settings)
    reported = _reported(of_target, case_of) if "measurements" in settings.kinds else ()
    elsewhere = {entry.image_sha256 for entry in entries if entry.image_sha256} - case_of.keys()
    return LearnedFeedback(
        name,
        state_hash,
        tuple(each for each in reviewed if each.patient_id not in kept),
        tuple(each for each in reported if each.patient_id not in kept),
        tuple(sorted(kept)),
        len(elsewhere),
        tuple(each for each in judged_cases(of_target, case_of, settings) if each.patient_id not in kept),
        tuple(each for each in preferred_cases(of_target, case_of, settings) if each.patient_id not in kept),
    )


def _cases_by_image(files: Sequence[CaseFile], wanted: Iterable[str], progress: Progress) -> dict[str, CaseFile]:
    wanted, found = set(wanted), {}
    for done, file in enumerate(files, 1):
        sha256 = file.hash_images()
        if sha256 in wanted:
            found[sha256] = file
        progress("comparing images with the feedback", done, len(files))
    return found


def _kept(
    entries: Sequence[Feedback], case_of: Mapping[str, CaseFile], settings: FeedbackSettings, seed: int
) -> set[str]:
    """Patients who never teach: those of an audit draw, and a random share of the others."""
    audited = {_patient(entry, case_of) for entry in entries if entry.drawn == _AUDIT}
    others = sorted({_patient(entry, case_of) for entry in entries} - audited)
    drawn = np.random.default_rng(derive_seed(seed, "feedback kept")).permutation(len(others))
    also = {others[index] for index in drawn[: round(settings.calibration_share * len(others))]}
    return also if settings.learn_from_audit else audited | also


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
        trust = _CORRECTED_TRUST if drawn else settings.accepted_trust
        found.append(ReviewedCase(case_of[image].case_id, case_of[image].patient_id, masks, trust))
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
    }
