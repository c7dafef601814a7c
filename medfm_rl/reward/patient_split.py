"""Which patients are the held-out reward network's, and on which a reward network is stopped and calibrated.

A network goes on from that of the iteration before, with more records each time. What is measured on a patient is
honest only if no iteration has learned from it, so a patient keeps, for a whole run, the place that it got when it was
first drawn. Those of the first iteration are dealt in exact shares, for they may be few; later ones each by a draw of
its own, which depends on nothing but the seed and the patient.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from medfm_rl.data.layouts import split_by_patient
from medfm_rl.errors import DataError
from medfm_rl.reward.actions import Records
from medfm_rl.reward.origins import ActionOrigin, patients_of, patients_with_ground_truth
from medfm_rl.seeding import derive_seed

_LEAST = 2
"""Patients that a reward network needs: to learn from, and to be stopped and calibrated on."""


@dataclass(frozen=True, eq=False)
class SplitRecords:
    """What one reward network learns from, and what it is stopped and calibrated on: other patients.

    Attributes:
        training: Records to learn from.
        validation: Records of the patients held out.
    """

    training: Records
    validation: Records

    @classmethod
    def hold_out(cls, records: Records, patients: Collection[str]) -> Self:
        """Holds out the records of some patients.

        A network that goes on from another must be given patients that the other has not learned from.
        """
        others = patients_of(records.origins) - set(patients)
        return cls(records.of_patients(others), records.of_patients(patients))


def held_out_reward_patients(
    origins: Sequence[ActionOrigin], first: Sequence[ActionOrigin], seed: int, judged: Collection[str] = ()
) -> set[str]:
    """A third of the patients for the held-out reward network; the ensemble learns from the others.

    Where there is ground truth, that network has at least two patients with it, and leaves two to the ensemble as far
    as there are four: a network without any would learn from nothing but the masks of the policy that it is to rate.

    Args:
        origins: Origins of all records of D_R so far.
        first: Origins of the records that the first iteration put into it.
        seed: Seed of the run.
        judged: Patients of whom reviewers have judged masks; those that D_R does not have from the first iteration on
            are dealt as later ones.

    Raises:
        DataError: There are fewer than three patients in the first iteration.
    """
    folds = patient_folds(first, 3, derive_seed(seed, "judge"))
    usable = patients_with_ground_truth(first) or patients_of(first)
    by_fold = [patient for fold in folds for patient in fold if patient in usable]
    dealt = len(usable.intersection(folds[0]))
    with_truth = by_fold[: max(_LEAST, min(dealt, len(by_fold) - _LEAST))]
    chosen = {*with_truth, *(patient for patient in folds[0] if patient not in usable)}
    return chosen | {patient for patient in _later(origins, first, judged) if _draw(seed, "judge", patient) < 1 / 3}


def validation_patients_of(
    origins: Sequence[ActionOrigin],
    first: Sequence[ActionOrigin],
    fraction: float,
    seed: int,
    judged: Collection[str] = (),
) -> set[str]:
    """Patients on which one reward network is stopped and calibrated.

    Args:
        origins: Origins of all records of its part of D_R so far.
        first: Origins of the records that the first iteration put into that part.
        fraction: Share of the patients to hold out, in (0, 1).
        seed: Seed of the network; the same in all iterations.
        judged: Patients of whom reviewers have judged masks, of those that the network may learn from.

    Raises:
        DataError: The part has fewer than two patients of the first iteration.
    """
    later = {patient for patient in _later(origins, first, judged) if _draw(seed, "held out", patient) < fraction}
    return hold_out(first, fraction, derive_seed(seed, "split")) | later


def hold_out(origins: Sequence[ActionOrigin], fraction: float, seed: int) -> set[str]:
    """Picks patients with and patients without ground truth, so that some is on both sides where there is any.

    Args:
        origins: Origins of the records of D_R, or of a part of it.
        fraction: Share of the patients, in (0, 1).
        seed: Seed of the choice.

    Returns:
        Patients to hold out; at least one is, and at least one is not.

    Raises:
        DataError: There are fewer than two patients.
    """
    patients = patients_of(origins)
    if len(patients) < _LEAST:
        raise DataError(f"a reward network needs images of at least {_LEAST} patients, there are {len(patients)}")
    held_out: set[str] = set()
    with_truth = patients_with_ground_truth(origins)
    for group in (with_truth, patients - with_truth):
        if len(group) > 1:
            of_group = [origin for origin in origins if origin.patient_id in group]
            held_out |= patients_of(split_by_patient(of_group, fraction, seed)[1])
    # Where there is one patient with ground truth and one without: the first to learn from, the other to hold out.
    return held_out or patients - with_truth


def patient_folds(origins: Iterable[ActionOrigin], folds: int, seed: int) -> list[list[str]]:
    """Deals the patients that records come from into folds of nearly equal size.

    Raises:
        DataError: There are fewer patients than folds.
    """
    patients = sorted(patients_of(origins))
    if len(patients) < folds:
        raise DataError(f"{len(patients)} patients cannot be split into {folds} parts; give more patients")
    order = np.random.default_rng(seed).permutation(len(patients))
    return [[patients[index] for index in order[fold::folds]] for fold in range(folds)]


def _later(origins: Sequence[ActionOrigin], first: Sequence[ActionOrigin], judged: Collection[str]) -> set[str]:
    return patients_of(origins).union(judged) - patients_of(first)


def _draw(seed: int, name: str, patient: str) -> float:
    """In [0, 1)."""
    return derive_seed(seed, name, patient) / 2**31
