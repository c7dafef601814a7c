"""Predicted Dice: the Dice to be expected by the reward map, or a regression on it where that predicts better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from medfm_rl.quality.evidence import FEATURES, OWN_ESTIMATE

Kind = Literal["expected", "line", "plane", "ridge"]
_PENALTIES = tuple(10.0**power for power in range(-2, 4))
_FEWEST_PATIENTS = 8
_FOLDS = 5


class DicePredictor(BaseModel):
    """Predicts the Dice of one structure.

    Attributes:
        kind: expected (the expected Dice as it is), line (a line through it), plane (through it and the segmenter's own
            estimate) or ridge (a ridge regression on all).
        features: Names of the inputs.
        centre: Mean of each input.
        scale: Standard deviation of each input.
        weights: Weights of the standardised inputs.
        intercept: Mean Dice.
        errors: Absolute error of each kind in cross-validation, mean over patients; empty where there were too few.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    kind: Kind
    features: tuple[str, ...] = ()
    centre: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    intercept: float = 0.0
    errors: dict[str, float] = {}

    def predict(self, numbers: Mapping[str, float]) -> float:
        """Predicted Dice in [0, 1] from the numbers of `Evidence.features`."""
        if self.kind == "expected":
            return numbers["expected_dice"]
        terms = zip(self.features, self.centre, self.scale, self.weights, strict=True)
        value = self.intercept + sum(weight * (numbers[name] - centre) / scale for name, centre, scale, weight in terms)
        return min(1.0, max(0.0, value))


def fit_predictor(
    numbers: Sequence[Mapping[str, float]], dice: npt.NDArray[np.float64], patients: Sequence[str]
) -> DicePredictor:
    """Fits the simplest kind whose error in cross-validation over patients is next to the least.

    Next to it means no further than one standard error of the difference over patients (the one-standard-error rule of
    Breiman et al., Classification and Regression Trees, 1984): under a shift the simple kinds keep more of what they
    promise. With fewer than eight patients there is nothing to be validated on, and the expected Dice stays as it is.

    Args:
        numbers: Those of `Evidence.features`, for each case.
        dice: True Dice of each case.
        patients: Patient of each case.
    """
    from sklearn.model_selection import GroupKFold

    if len(set(patients)) < _FEWEST_PATIENTS:
        return DicePredictor(kind="expected")
    names, owners = np.unique(np.asarray(patients), return_inverse=True)
    of_patients: dict[Kind, npt.NDArray[np.float64]] = {}
    inputs = _inputs(OWN_ESTIMATE in numbers[0])
    for kind, features in inputs.items():
        residuals = np.zeros(len(dice))
        for fitted, left_out in GroupKFold(_FOLDS).split(dice, groups=patients):
            predictor = _fit(kind, features, [numbers[row] for row in fitted], dice[fitted])
            residuals[left_out] = [predictor.predict(numbers[row]) - dice[row] for row in left_out]
        of_patients[kind] = np.bincount(owners, np.abs(residuals)) / np.bincount(owners)
    chosen = _simplest(of_patients, len(names))
    errors: dict[str, float] = {kind: float(values.mean()) for kind, values in of_patients.items()}
    return _fit(chosen, inputs[chosen], numbers, dice).model_copy(update={"errors": errors})


def _inputs(own_estimate: bool) -> dict[Kind, tuple[str, ...]]:
    """The inputs of each kind, the simplest first."""
    inputs: dict[Kind, tuple[str, ...]] = {"expected": (), "line": ("expected_dice",)}
    if own_estimate:
        return {**inputs, "plane": ("expected_dice", OWN_ESTIMATE), "ridge": (*FEATURES, OWN_ESTIMATE)}
    return {**inputs, "ridge": FEATURES}


def _simplest(errors: Mapping[Kind, npt.NDArray[np.float64]], patients: int) -> Kind:
    """The first kind that is no more than one standard error of the difference behind the best."""
    least = min(errors.values(), key=lambda values: float(values.mean()))
    for kind, values in errors.items():
        behind = values - least
        if behind.mean() <= behind.std(ddof=1) / np.sqrt(patients):
            return kind
    raise AssertionError("the best kind is not behind itself")


def _fit(
    kind: Kind, names: tuple[str, ...], numbers: Sequence[Mapping[str, float]], dice: npt.NDArray[np.float64]
) -> DicePredictor:
    from sklearn.linear_model import RidgeCV

    if not names:
        return DicePredictor(kind=kind)
    inputs = np.array([[row[name] for name in names] for row in numbers])
    centre, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    model = RidgeCV(alphas=_PENALTIES).fit((inputs - centre) / scale, dice)
    return DicePredictor(
        kind=kind,
        features=names,
        centre=tuple(centre.tolist()),
        scale=tuple(scale.tolist()),
        weights=tuple(np.atleast_1d(model.coef_).tolist()),
        intercept=float(model.intercept_),
    )
