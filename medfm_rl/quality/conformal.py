"""Guarantees that hold for any distribution: intervals of predicted Dice, and a threshold for acceptance.

Both hold for cases that are exchangeable with the calibration cases, patient by patient. Weighted intervals hold for
cases whose images come in other shares, if the likelihood ratios are right.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_FLOOR = 0.05
_Number = TypeVar("_Number", float, npt.NDArray[np.float64])
_SHARES_REFUSED = (0.0, 0.1, 0.25, 0.4, 0.6)


def residuals(predicted: npt.NDArray[np.float64], observed: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """True less predicted Dice, over the width that the prediction gives its interval."""
    return np.asarray((observed - predicted) / spread_of(predicted))


def spread_of(predicted: _Number) -> _Number:
    """Relative width of an interval: the lower a Dice, the less it is known."""
    return 1 - predicted + _FLOOR


def patient_quantile(
    scores: npt.NDArray[np.float64], patients: Sequence[str] | Sequence[int], confidence: float
) -> float:
    """The conformal quantile of scores that come in groups, one group for each patient.

    Split-conformal prediction (Vovk et al., 2005; Lei et al., JASA 2018) with groups (Lee, Barber and Willett,
    arXiv 2306.06342): with P patients, each score weighs 1 / ((P + 1) n), where n is the number of the patient's
    scores, and the rest lies at infinity. A case of a new patient has a score above the quantile with a probability of
    at most `1 - confidence`. With one case for each patient it is split-conformal prediction.

    Args:
        scores: One for each case.
        patients: Patient of each case.
        confidence: In (0, 1).

    Returns:
        The quantile; infinite where there are fewer patients than `fewest_for_intervals`.
    """
    return weighted_quantile(scores, np.ones(len(scores)), patients, 1.0, confidence)


def weighted_quantile(
    scores: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    patients: Sequence[str] | Sequence[int],
    own: float,
    confidence: float,
) -> float:
    """The conformal quantile for a case from a domain in which the images come in other shares.

    Weighted conformal prediction (Tibshirani et al., NeurIPS 2019), with the mean weight of a patient's cases as the
    patient's. With equal weights it is `patient_quantile`.

    Args:
        scores: One for each calibration case.
        weights: Likelihood ratio of each, new domain to calibration; above 0.
        patients: Patient of each.
        own: Likelihood ratio of the new case.
        confidence: In (0, 1).

    Returns:
        The quantile; infinite where the weight of the new case leaves too little for the others.
    """
    _, index, counts = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    shares = weights / counts[index]
    order = np.argsort(scores, kind="stable")
    reached = np.flatnonzero(np.cumsum(shares[order]) / (shares.sum() + own) >= confidence - 1e-12)
    return float(scores[order[reached[0]]]) if len(reached) else math.inf


def predictive_probability(
    event: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float64],
    patients: Sequence[str] | Sequence[int],
    own: float,
) -> float:
    """Probability of an event for a new case, by how often it happened to the calibration cases.

    The conformal predictive distribution (Vovk et al., Machine Learning 108, 2019), with patients as groups and weights
    as in `weighted_quantile`, at its middle: the new case itself counts with half of its weight. Where k of P patients
    had the event, that is (k + 1/2) / (P + 1). It is an estimate and no bound, which would count the new case in full:
    few patients pull it towards a half.

    Args:
        event: Whether it happened, one for each calibration case.
        weights: Likelihood ratio of each, new domain to calibration; above 0.
        patients: Patient of each.
        own: Likelihood ratio of the new case.

    Returns:
        In (0, 1); a half without a calibration case.
    """
    if len(event) == 0:
        return 0.5
    _, index, counts = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    shares = weights / counts[index]
    return float((shares[event].sum() + own / 2) / (shares.sum() + own))


def effective_patients(
    weights: npt.NDArray[np.float64], patients: Sequence[str] | Sequence[int], own: npt.NDArray[np.float64]
) -> float:
    """How many patients of the new domain the weighted calibration patients are worth.

    The smaller of two numbers: how many equal weights vary as little (Kish, 1965), (sum w)^2 / sum w^2, and the sum of
    the weights over the median weight of the new cases. The first is small where a few patients have all the weight,
    the second where none is like the new cases.

    Args:
        weights: Likelihood ratio of each calibration case.
        patients: Patient of each.
        own: Likelihood ratios of the new cases.
    """
    _, index, counts = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    of_patient = np.bincount(index, weights / counts[index])
    equal = of_patient.sum() ** 2 / (of_patient**2).sum()
    return float(min(equal, of_patient.sum() / np.median(own)))


def fewest_for_intervals(confidence: float) -> int:
    """Patients that intervals of this confidence need at least."""
    return math.ceil(confidence / (1 - confidence) - 1e-9)


def interval(predicted: float, quantile: float) -> tuple[float, float]:
    """The interval of a predicted Dice, within [0, 1]."""
    reach = quantile * spread_of(predicted)
    return max(0.0, predicted - reach), min(1.0, predicted + reach)


def accept_threshold(
    predicted: npt.NDArray[np.float64],
    good: npt.NDArray[np.bool_],
    candidates: npt.NDArray[np.float64],
    alpha: float,
    confidence: float,
) -> float | None:
    """The lowest threshold above which at most `alpha` of the masks are bad, with this confidence.

    The share of bad masks among the accepted does not fall steadily with the threshold, so that conformal risk control
    (Angelopoulos et al., ICLR 2024), which bounds the expectation of a monotone loss, does not apply. Learn-then-test
    (Angelopoulos et al., arXiv 2110.01052) does: candidates are tested one by one, with Holm's correction.

    Args:
        predicted: Predicted Dice of independent cases, one for each patient.
        good: Whether the true Dice is high enough.
        candidates: Thresholds, chosen without these cases.
        alpha: Largest share of bad masks among the accepted.
        confidence: Confidence of the statement, over draws of the calibration cases.

    Returns:
        The threshold, or None where no candidate can be shown to keep the limit.
    """
    from mapie.risk_control import BinaryClassificationController

    thresholds = np.unique(np.clip(candidates, 0, 0.999))
    # MAPIE takes predictions of exactly 0 and 1 for decisions.
    predicted = np.clip(predicted, 1e-6, 1 - 1e-6)
    # A threshold that accepts no case cannot be shown to keep the limit.
    thresholds = thresholds[thresholds <= predicted.max(initial=-1)]
    if len(thresholds) == 0:
        return None
    controller = BinaryClassificationController(
        lambda values: np.stack([1 - values, values], axis=1),
        risk="precision",
        target_level=1 - alpha,
        confidence_level=confidence,
        best_predict_param_choice="recall",
        list_predict_params=thresholds,
        fwer_method="bonferroni_holm",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No predict parameters were found")
        warnings.filterwarnings("ignore", message="All provided predict_params control the risk")
        controller.calibrate(predicted, good.astype(int))
    valid = np.asarray(controller.valid_predict_params, dtype=np.float64)
    return float(valid.min()) if len(valid) else None


def threshold_candidates(predicted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Thresholds that refuse 0 to 60 % of cases like these."""
    return np.unique(np.quantile(predicted, _SHARES_REFUSED))


def fewest_for_threshold(alpha: float, confidence: float) -> int:
    """Patients that a threshold needs at least, if not one of their masks is bad."""
    return math.ceil(math.log((1 - confidence) / len(_SHARES_REFUSED)) / math.log(1 - alpha))
