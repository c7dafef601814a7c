"""Ejection fractions of the patients of CAMUS against the published ones; how: `medfm_rl.anatomy.discs`.

Masks are compared with the published table by one length for both phases, which it follows, and `own` is given beside
it. No prediction of any method took part in this choice.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medfm_rl.anatomy.discs import Discs, Length, ejection_fraction


def patient_fractions(
    case_ids: Sequence[str], discs: Sequence[Discs | None], length: Length = "common"
) -> dict[str, float | None]:
    """Ejection fraction of each patient from all views that there are; None where a frame has no ventricle.

    Args:
        case_ids: `PATIENT_VIEW_PHASE`, with the phases ED and ES.
        discs: One per case.
        length: As in `ejection_fraction`.

    Raises:
        ValueError: A view has one phase only.
    """
    frames: dict[str, dict[str, dict[str, Discs | None]]] = {}
    for case_id, found in zip(case_ids, discs, strict=True):
        patient, view, phase = case_id.split("_")
        frames.setdefault(patient, {}).setdefault(view, {})[phase] = found
    fractions: dict[str, float | None] = {}
    for patient, views in frames.items():
        if any(set(phases) != {"ED", "ES"} for phases in views.values()):
            raise ValueError(f"{patient}: an ejection fraction needs ED and ES of each view")
        ed, es = ([views[view][phase] for view in sorted(views)] for phase in ("ED", "ES"))
        known_ed, known_es = [item for item in ed if item], [item for item in es if item]
        complete = len(known_ed) == len(known_es) == len(views)
        fractions[patient] = ejection_fraction(known_ed, known_es, length) if complete else None
    return fractions


def published_fractions(table: Path) -> dict[str, float]:
    """Ejection fractions in percent by patient, from `camus_patients_info.csv`."""
    with table.open(newline="") as file:
        return {row["Patient"]: float(row["EF"]) for row in csv.DictReader(file)}


@dataclass(frozen=True)
class Agreement:
    """Measured against published ejection fractions, in percentage points.

    Attributes:
        mae: Mean absolute difference, NaN where no patient could be measured.
        bias: Mean of measured - published, NaN likewise.
        measured: Patients.
        not_measured: Patients left out because a frame has no ventricle.
    """

    mae: float
    bias: float
    measured: int
    not_measured: int


def agreement(fractions: Mapping[str, float | None], published: Mapping[str, float]) -> Agreement:
    """Compares ejection fractions patient by patient.

    Raises:
        KeyError: A patient has no published value.
    """
    differences = np.array([value - published[patient] for patient, value in fractions.items() if value is not None])
    missing = len(fractions) - len(differences)
    if len(differences) == 0:
        return Agreement(float("nan"), float("nan"), 0, missing)
    return Agreement(float(np.abs(differences).mean()), float(differences.mean()), len(differences), missing)
