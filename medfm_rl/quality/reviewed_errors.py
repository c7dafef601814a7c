"""What few reviewed patients tell of predicted Dice: by how much it is off, and how far it still misses the truth.

A quality model that source cases fitted predicts too much, or too little, of a target that it has not seen, and its
intervals are too short there. The patients of an audit tell both, and none of them need be spent on fitting:

- Each structure's prediction is moved by what it was off by, the median over patients of their mean error, which a few
  bad masks do not drag along. Few patients move it less: as a normal prior about 0 has it (standard deviation .05),
  with the variance of a median, pi / 2 times that of a mean.
- How far it then misses is measured on each patient with what the others move it by, as the jackknife does (Barber,
  Candes, Ramdas and Tibshirani, Predictive inference with the jackknife+, Annals of Statistics 49(1), 2021), and the
  conformal quantile of these errors gives intervals for patients like them (`conformal.patient_quantile`).

The order of the masks stays what it was but for what reaches 0 or 1; a promise that was proven for predictions as they
were is about these still, which a moved report keeps (`QualityReport.unmoved`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy import stats

from medfm_rl.data.files import hash_file, write_versioned_json
from medfm_rl.data.json_models import read_model
from medfm_rl.errors import DataError
from medfm_rl.metrics.scores import MEAN
from medfm_rl.quality.conformal import fewest_for_intervals
from medfm_rl.quality.model import QUALITY_FILE, StructureModel
from medfm_rl.quality.reports import QualityReport, StructureScore
from medfm_rl.quality.verdicts import probability_below

REVIEWED_FILE: Final = "reviewed_errors.json"
_FORMAT: Final = 1
_ADVICE: Final = "make it by `medfm-rl calibrate RUN --feedback STORE`"
_PRIOR: Final = 0.05
"""Standard deviation of what predictions of a new domain are off by, before anybody has reviewed any."""
_LEAST_DEVIATION: Final = 1e-3
_LOG = logging.getLogger(__name__)
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReviewedPrediction:
    """A reviewed mask with what was predicted of it.

    Attributes:
        patient: Its patient.
        predicted: By structure, predicted Dice in [0, 1]; None where the mask lacks the structure.
        dice: By structure, true Dice in [0, 1].
    """

    patient: str
    predicted: Mapping[str, float | None]
    dice: Mapping[str, float]


class ReviewedErrors(BaseModel):
    """How predictions of one quality model missed what reviewers found in patients drawn at random.

    Attributes:
        quality_hash: SHA-256 of the `quality.json` that predicted.
        feedback: Name of the feedback store.
        feedback_hash: Hash of what was in force in it.
        created: UTC, ISO 8601.
        coverage: Share of masks whose Dice the intervals hold.
        patients: Number of the patient of each reviewed mask; no names are kept.
        shifts: By structure, what is added to its prediction.
        structures: By structure, and `mean`: the errors of moved predictions, one for each mask, and their quantile.
        error_before: Mean absolute error of the predicted mean Dice before it is moved.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    quality_hash: str
    feedback: str
    feedback_hash: str
    created: str
    coverage: float
    patients: tuple[int, ...]
    shifts: dict[str, float]
    structures: dict[str, StructureModel]
    error_before: float

    @property
    def count(self) -> int:
        """Reviewed patients."""
        return len(set(self.patients))

    @property
    def words(self) -> str:
        """How predictions are moved and what they miss by then, for a person."""
        moved = ", ".join(f"{name} {shift:+.3f}" for name, shift in self.shifts.items())
        error = self.structures[MEAN].error
        assert error is not None
        return (
            f"{self.count} reviewed patients move predicted Dice: {moved}. The mean Dice is then missed by "
            f"{error:.3f}, and was by {self.error_before:.3f}; intervals that hold {self.coverage:.0%} come from these "
            "errors"
        )

    def moved(self, report: QualityReport) -> QualityReport:
        """A report with moved predictions and with the intervals of these errors.

        Args:
            report: As the quality model made it, or moved before, which makes no difference.
        """
        before = report.unmoved or tuple(score.predicted_dice for score in report.scores)
        scores: list[StructureScore] = []
        for score, value in zip(report.scores, before, strict=True):
            if score.structure != MEAN:
                found = None if value is None else _moved(value, self.shifts[score.structure])
            else:
                known = [other.predicted_dice for other in scores if other.predicted_dice is not None]
                found = float(np.mean(known)) if len(known) == len(scores) else None
            low, high = (None, None) if found is None else self.structures[score.structure].interval(found)
            scores.append(replace(score, predicted_dice=found, low=low, high=high))
        return replace(report, scores=tuple(scores), unmoved=before)

    def risk(self, report: QualityReport, limits: Mapping[str, float]) -> float | None:
        """Probability that the Dice of a moved report's mask lies below one of the limits; as `verdicts.risk`."""
        return probability_below(report, self.structures, self.patients, limits)

    @classmethod
    def of_run(cls, path: Path) -> ReviewedErrors | None:
        """Those in the folder of a run or a judge; None where there are none, or none of its quality model.

        Of the latter a warning says so.

        Raises:
            ModelError: They are damaged, or of a newer version.
        """
        file = path / REVIEWED_FILE
        if not file.exists():
            return None
        found = cls.read(file)
        if found.quality_hash != hash_file(path / QUALITY_FILE):
            _LOG.warning(
                "%s: is of another %s than there is now, and moves nothing; calibrate with the feedback again, or "
                "remove the file",
                file,
                QUALITY_FILE,
            )
            return None
        return found

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        write_versioned_json(path, _FORMAT, self.model_dump())

    @classmethod
    def read(cls, path: Path) -> ReviewedErrors:
        """Reads what `write` wrote.

        Raises:
            ModelError: It is missing, damaged, or of a newer version.
        """
        return read_model(path, cls, _FORMAT, "the errors of reviewed patients", _ADVICE)


@dataclass(frozen=True)
class Origin:
    """What reviewed errors rest on; as in `ReviewedErrors`."""

    quality_hash: str
    feedback: str
    feedback_hash: str
    created: str


def fit_reviewed_errors(masks: Sequence[ReviewedPrediction], coverage: float, origin: Origin) -> ReviewedErrors:
    """Finds by how much predictions are off, and how far moved ones miss.

    Args:
        masks: Of patients drawn at random, whose predictions knew nothing of their truth.
        coverage: Share of masks whose Dice the intervals hold.
        origin: What they rest on.

    Raises:
        DataError: A structure has a prediction in fewer patients than an interval needs.
    """
    names = tuple(masks[0].dice) if masks else ()
    owners = np.unique(np.asarray([mask.patient for mask in masks]), return_inverse=True)[1]
    predicted = np.array([[_number(mask.predicted[name]) for name in names] for mask in masks], dtype=np.float64)
    truth = np.array([[mask.dice[name] for name in names] for mask in masks], dtype=np.float64)
    _require_patients(predicted, owners, names, coverage)
    shifts = _shifts(predicted, truth, owners)
    kept = [owners != owner for owner in range(owners.max() + 1)]
    others = np.stack([_shifts(predicted[rows], truth[rows], owners[rows]) for rows in kept])
    # NaN of a structure that the mask lacks, and of the mean then.
    held_out = _moved(predicted, others[owners])
    columns = [(name, held_out[:, index], truth[:, index]) for index, name in enumerate(names)]
    columns.append((MEAN, held_out.mean(axis=1), truth.mean(axis=1)))
    before = np.abs(predicted.mean(axis=1) - truth.mean(axis=1))
    return ReviewedErrors(
        **vars(origin),
        coverage=coverage,
        patients=tuple(owners.tolist()),
        shifts=dict(zip(names, shifts.tolist(), strict=True)),
        structures={
            name: StructureModel.of_errors(found, right, owners.tolist(), coverage) for name, found, right in columns
        },
        error_before=float(np.nanmean(before)),
    )


def _require_patients(predicted: Array, owners: npt.NDArray[np.intp], names: Sequence[str], coverage: float) -> None:
    least = fewest_for_intervals(coverage)
    whole = np.isfinite(predicted).all(axis=1) if len(predicted) else np.zeros(0, bool)
    count = len(set(owners[whole].tolist()))
    if count < least:
        raise DataError(
            f"{count} reviewed patients have a mask with a prediction of {', '.join(names) or 'any structure'}, and "
            f"intervals of {coverage:.0%} need {least}; review more, drawn at random"
        )


def _shifts(predicted: Array, truth: Array, owners: npt.NDArray[np.intp]) -> Array:
    """What is added to the predictions `(N, K)` of each structure, `(K,)`."""
    found = []
    for column in (truth - predicted).T:
        known = np.isfinite(column)
        of_patients = [column[known & (owners == owner)].mean() for owner in np.unique(owners[known])]
        middle = float(np.median(of_patients))
        deviation = max(float(stats.median_abs_deviation(of_patients, scale="normal")), _LEAST_DEVIATION)
        variance = np.pi / 2 * deviation**2 / len(of_patients)
        found.append(middle * _PRIOR**2 / (_PRIOR**2 + variance))
    return np.array(found)


def _moved(predicted: Any, shift: Any) -> Any:
    """Predictions moved by a shift, in [0, 1]."""
    return np.clip(predicted + shift, 0.0, 1.0)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
