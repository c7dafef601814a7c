"""Which patients are the held-out reward network's, and on which a reward network is stopped and calibrated.

A network goes on from that of the iteration before, with more records each time. What is measured on a patient is
honest only if no iteration has learned from it, so a patient keeps, for a whole run, the place that it got when it was
first drawn. Those of the first iteration are dealt in exact shares, for they may be few; later ones each by a draw of
its own, which depends on nothing but the seed and the patient.
"""

from __future__ import annotations

from collections.abc import Sequence

from medfm_rl.reward.actions import ActionOrigin, patient_folds
from medfm_rl.reward.training import hold_out, patients_of
from medfm_rl.seeding import derive_seed

_LEAST = 2
"""Patients that a reward network needs: to learn from, and to be stopped and calibrated on."""


def held_out_reward_patients(origins: Sequence[ActionOrigin], first: Sequence[ActionOrigin], seed: int) -> set[str]:
    """A third of the patients for the held-out reward network; the ensemble learns from the others.

    Where there is ground truth, that network has at least two patients with it, and leaves two to the ensemble as far
    as there are four: a network without any would learn from nothing but the masks of the policy that it is to rate.

    Args:
        origins: Origins of all records of D_R so far.
        first: Origins of the records that the first iteration put into it.
        seed: Seed of the run.

    Raises:
        DataError: There are fewer than three patients in the first iteration.
    """
    folds = patient_folds(first, 3, derive_seed(seed, "judge"))
    usable = patients_of([origin for origin in first if origin.domain == "source"] or first)
    by_fold = [patient for fold in folds for patient in fold if patient in usable]
    dealt = len(usable.intersection(folds[0]))
    with_truth = by_fold[: max(_LEAST, min(dealt, len(by_fold) - _LEAST))]
    chosen = {*with_truth, *(patient for patient in folds[0] if patient not in usable)}
    return chosen | {patient for patient in _later(origins, first) if _draw(seed, "judge", patient) < 1 / 3}


def validation_patients_of(
    origins: Sequence[ActionOrigin], first: Sequence[ActionOrigin], fraction: float, seed: int
) -> set[str]:
    """Patients on which one reward network is stopped and calibrated.

    Args:
        origins: Origins of all records of its part of D_R so far.
        first: Origins of the records that the first iteration put into that part.
        fraction: Share of the patients to hold out, in (0, 1).
        seed: Seed of the network; the same in all iterations.

    Raises:
        DataError: The part has fewer than two patients of the first iteration.
    """
    later = {patient for patient in _later(origins, first) if _draw(seed, "held out", patient) < fraction}
    return hold_out(first, fraction, derive_seed(seed, "split")) | later


def _later(origins: Sequence[ActionOrigin], first: Sequence[ActionOrigin]) -> set[str]:
    return patients_of(origins) - patients_of(first)


def _draw(seed: int, name: str, patient: str) -> float:
    """In [0, 1)."""
    return derive_seed(seed, name, patient) / 2**31
