"""Who teaches the reward networks of a judge, who calibrates it, and on whom it is tried at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from medfm_rl.data.layouts import CaseFile, name_patients
from medfm_rl.errors import DataError
from medfm_rl.quality.calibration import FEWEST_PATIENTS
from medfm_rl.seeding import derive_seed

_TO_CALIBRATE: Final = 0.35
_TO_TRY: Final = 0.2
_FEWEST_TO_LEARN: Final = 4
_FEWEST_TO_TRY: Final = 2
FEWEST: Final = FEWEST_PATIENTS + _FEWEST_TO_LEARN + _FEWEST_TO_TRY
"""Labelled patients that a judge needs."""


@dataclass(frozen=True)
class Deal:
    """Cases by what they are for; no patient is in two parts.

    Attributes:
        learning: They teach the reward networks.
        calibrating: They say what the networks are worth.
        trying: They show in the end how good the judge is, and teach nothing.
    """

    learning: tuple[CaseFile, ...]
    calibrating: tuple[CaseFile, ...]
    trying: tuple[CaseFile, ...]


def deal(files: Sequence[CaseFile], seed: int) -> Deal:
    """Deals the patients at random: 35 % to calibrate, 20 % to try, the others to learn from.

    Raises:
        DataError: There are too few.
    """
    patients = sorted({file.patient_id for file in files})
    if len(patients) < FEWEST:
        raise DataError(
            f"a judge needs {FEWEST} labelled patients at least ({_FEWEST_TO_LEARN} to learn from, {FEWEST_PATIENTS} "
            f"to calibrate on, {_FEWEST_TO_TRY} to be tried on), and some 100 to promise much; "
            f"{name_patients([file.patient_id for file in files])}"
        )
    order = np.random.default_rng(derive_seed(seed, "judge patients")).permutation(len(patients))
    tried = max(_FEWEST_TO_TRY, round(_TO_TRY * len(patients)))
    calibrated = max(FEWEST_PATIENTS, round(_TO_CALIBRATE * len(patients)))
    parts = np.split(order, [tried, tried + calibrated])
    trying, calibrating, learning = ({patients[index] for index in part} for part in parts)
    return Deal(*(tuple(file for file in files if file.patient_id in own) for own in (learning, calibrating, trying)))
