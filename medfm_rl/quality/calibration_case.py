"""A labelled case of a calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from medfm_rl.quality.evidence import Evidence


@dataclass(frozen=True, eq=False)
class CalibrationCase:
    """A mask with its evidence and the truth.

    Attributes:
        patient_id: Every split is made by it.
        evidence: What the networks and rules say.
        right: `(*S')` bool, whether each pixel of the action is right.
        dice: `(K - 1,)`, true Dice of each structure on the case's own grid.
        biomedclip: `(512,)`, what BiomedCLIP sees; None where it is not asked.
    """

    patient_id: str
    evidence: Evidence
    right: Tensor
    dice: npt.NDArray[np.float32]
    biomedclip: npt.NDArray[np.float64] | None = None
