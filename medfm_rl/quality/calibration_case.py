"""A labelled case of a calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from medfm_rl.anatomy.profiles import RuleResult
from medfm_rl.quality.evidence import Evidence


@dataclass(frozen=True, eq=False)
class CalibrationCase:
    """A mask with its evidence and the truth.

    Attributes:
        patient_id: Every split is made by it.
        embedding: `(F,)`, what the networks saw.
        appearance: `(A,)`, what the image looks like.
        rules: What the anatomy rules measured.
        pixels: How many pixels the maps have.
        load: Gives the evidence, and `(*S')` bool, whether each pixel of the action is right. The maps of many cases do
            not fit into the memory: whoever asks lets go of one before the next.
        dice: `(K - 1,)`, true Dice of each structure on the case's own grid.
        biomedclip: `(512,)`, what BiomedCLIP sees; None where it is not asked.
    """

    patient_id: str
    embedding: npt.NDArray[np.float64]
    appearance: npt.NDArray[np.float64]
    rules: tuple[RuleResult, ...]
    pixels: int
    load: Callable[[], tuple[Evidence, Tensor]]
    dice: npt.NDArray[np.float32]
    biomedclip: npt.NDArray[np.float64] | None = None

    @classmethod
    def of(cls, patient_id: str, evidence: Evidence, right: Tensor, dice: npt.NDArray[np.float32]) -> Self:
        """A case whose maps are in memory."""
        return cls(
            patient_id,
            evidence.embedding,
            evidence.appearance,
            evidence.rules,
            right.numel(),
            lambda: (evidence, right),
            dice,
        )
