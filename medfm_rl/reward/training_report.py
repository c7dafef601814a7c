"""The report on the training of a reward network, and its file beside the network in the folder of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from medfm_rl.data.files import read_versioned_json, write_versioned_json
from medfm_rl.errors import DataError
from medfm_rl.metrics.calibration import ReliabilityCurve

_FORMAT: Final = 2
_ADVICE: Final = "put back what `adapt` wrote there"
_CURVES: Final = ("reliability_before", "reliability_after")


@dataclass(frozen=True)
class RewardTrainingReport:
    """How the training of a reward network went; all of it measured on patients it was not trained on.

    Attributes:
        losses: Training and validation loss at each validation.
        best_step: Step whose weights were kept.
        temperature: T of `sigmoid(z / T)`.
        ece_before: Expected calibration error at T = 1.
        ece_after: Expected calibration error at T.
        reliability_before: Reliability curve at T = 1.
        reliability_after: Reliability curve at T.
        training_patients: Who it was trained on.
        validation_patients: Who it was stopped and calibrated on.
    """

    losses: tuple[tuple[float, float], ...]
    best_step: int
    temperature: float
    ece_before: float
    ece_after: float
    reliability_before: ReliabilityCurve
    reliability_after: ReliabilityCurve
    training_patients: tuple[str, ...]
    validation_patients: tuple[str, ...]

    @property
    def patients(self) -> set[str]:
        """All patients that the network was trained, stopped or calibrated on."""
        return {*self.training_patients, *self.validation_patients}

    def write(self, path: Path) -> None:
        """Writes the report as JSON, whole or not at all."""
        curves = {name: _curve_to_json(getattr(self, name)) for name in _CURVES}
        write_versioned_json(path, _FORMAT, {**asdict(self), **curves})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `write` wrote, also where version 0.1 did.

        Raises:
            DataError: The file is missing, is no such report, or was written by a newer version.
        """
        content = read_versioned_json(path, _FORMAT, _ADVICE)
        del content["format"]
        try:
            curves = {name: _curve_from_json(content[name]) for name in _CURVES}
            losses = tuple((float(training), float(validation)) for training, validation in content["losses"])
            patients = {name: tuple(content[name]) for name in ("training_patients", "validation_patients")}
            return cls(**{**content, **curves, **patients, "losses": losses})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not the report of a reward network ({error!r}); {_ADVICE}") from error


def _curve_to_json(curve: ReliabilityCurve) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in vars(curve).items()}


def _curve_from_json(content: dict[str, Any]) -> ReliabilityCurve:
    return ReliabilityCurve(**{name: np.asarray(values) for name, values in content.items()})
