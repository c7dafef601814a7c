"""Mean Dice and failure rate of a month's masks, from a few reviewed ones and the predictions of all.

Prediction-powered inference (Angelopoulos et al., Science 382, 2023, arXiv 2301.09633) takes the mean of the
predictions of all masks and adds what the reviewed ones tell of their error; with power tuning (PPI++, arXiv
2311.01453) predictions that tell nothing get the weight 0, which leaves the mean of the reviewed ones alone.

The patient is the unit. A month's masks are counted alike, so the value of a patient is the mean of his masks times
their number over the mean number of masks of a patient: the mean of these values over patients is that of the masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from medfm_rl.errors import DataError

FEWEST_REVIEWED = 8
"""Reviewed patients below which a variance is a guess."""
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        value: The estimate.
        low: Lower end of the interval.
        high: Upper end.
        labelled_low: Lower end of the interval from the reviewed patients alone.
        labelled_high: Upper end of that.
        weight: Weight of the predictions, in [0, 1].
        reviewed: Patients who were reviewed.
        unreviewed: The others.
    """

    value: float
    low: float
    high: float
    labelled_low: float
    labelled_high: float
    weight: float
    reviewed: int
    unreviewed: int

    @property
    def width_ratio(self) -> float:
        """Width over that from the reviewed patients alone; 1 where that is 0."""
        alone = self.labelled_high - self.labelled_low
        return 1.0 if alone == 0 else (self.high - self.low) / alone


@dataclass(frozen=True)
class PowerTuned:
    """Prediction-powered mean of numbers that are independent of one another.

    Attributes:
        value: The estimate.
        error: Its standard error.
        weight: Weight of the predictions.
    """

    value: float
    error: float
    weight: float


@dataclass(frozen=True)
class MonthMask:
    """A mask of the month.

    Attributes:
        patient: Its patient.
        predicted: What is predicted of the value, such as Dice.
        value: The value; None where it was not reviewed.
    """

    patient: str
    predicted: float
    value: float | None = None


def power_tuned_mean(
    values: Array, predicted: Array, predicted_others: Array, weight: float | None = None
) -> PowerTuned:
    """The prediction-powered mean.

    With n reviewed pairs (y, f) and N further predictions f', the estimate is w mean(f') + mean(y - w f), its variance
    w^2 var(f') / N + var(y - w f) / n, which is least for w = cov(y, f) / ((1 + n / N) var(f)); var(f) is over all
    predictions, w is cut to [0, 1] (arXiv 2311.01453, section 6). Variances divide by the count, as there.

    Args:
        values: y, `(n,)`.
        predicted: f, `(n,)`.
        predicted_others: f', `(N,)`.
        weight: w; None for the best one. 1 is the estimate of the first paper, 0 leaves out the predictions.
    """
    count, others = len(values), len(predicted_others)
    if weight is None:
        spread = float(np.var(np.concatenate([predicted, predicted_others]), ddof=1)) if others else 0.0
        shared = float(np.mean((values - values.mean()) * (predicted - predicted.mean())))
        weight = 0.0 if spread == 0 else min(1.0, max(0.0, shared / ((1 + count / others) * spread)))
    if weight == 0:
        return PowerTuned(float(values.mean()), float(np.sqrt(values.var() / count)), 0.0)
    rest = values - weight * predicted
    value = weight * predicted_others.mean() + rest.mean()
    variance = weight**2 * predicted_others.var() / others + rest.var() / count
    return PowerTuned(float(value), float(np.sqrt(variance)), weight)


def month_mean(masks: Sequence[MonthMask], confidence: float = 0.95) -> Estimate:
    """The mean of a value over the masks of a month, with its interval.

    The interval takes Student's t with as many degrees of freedom as reviewed patients less two (mean and weight), for
    the normal distribution of the papers is too narrow for so few.

    Args:
        masks: Those of the month; of a reviewed patient all of them have a value.
        confidence: Of the interval.

    Raises:
        DataError: Fewer than `FEWEST_REVIEWED` patients were reviewed, or one of them in part.
    """
    values, predicted, others = _by_patient(masks)
    found = power_tuned_mean(values, predicted, others)
    alone = power_tuned_mean(values, predicted, others, weight=0.0)
    count = len(values)

    def ends(estimate: PowerTuned, used: int) -> tuple[float, float]:
        # Variances that divide by the count are too small for few.
        error = estimate.error * np.sqrt(count / (count - used))
        reach = float(stats.t.ppf((1 + confidence) / 2, count - used)) * error
        return max(0.0, estimate.value - reach), min(1.0, estimate.value + reach)

    low, high = ends(found, 2 if found.weight else 1)
    labelled_low, labelled_high = ends(alone, 1)
    return Estimate(found.value, low, high, labelled_low, labelled_high, found.weight, count, len(others))


def month_rate(masks: Sequence[MonthMask], confidence: float = 0.95) -> Estimate:
    """The share of masks of a month of which something is so, such as failing; values are 0 or 1.

    Rates are near 0, where means plus and minus errors do not hold: with no failure among the reviewed, they would say
    that there is none. So the interval is that of Clopper and Pearson for as many independent patients as the estimate
    is worth (Korn and Graubard, Survey Methodology 24(2), 1998): n (1 - rate) rate / (n error^2), of the reviewed alone
    at most n, with the predictions at most n over the share of the variance that they leave.

    Args:
        masks: Those of the month; `predicted` is the probability that it is so.
        confidence: Of the interval.

    Raises:
        DataError: As in `month_mean`.
    """
    values, predicted, others = _by_patient(masks)
    found = power_tuned_mean(values, predicted, others)
    alone = power_tuned_mean(values, predicted, others, weight=0.0)
    count = len(values)
    patients_worth = _worth(alone, count)
    labelled_low, labelled_high = _exact(alone.value, min(patients_worth, count), confidence)
    gain = 1.0 if found.error == 0 else max(1.0, (alone.error / found.error) ** 2)
    value = min(1.0, max(0.0, found.value))
    low, high = _exact(value, gain * min(patients_worth, count), confidence)
    return Estimate(value, low, high, labelled_low, labelled_high, found.weight, count, len(others))


def failure_probability(predicted: float, dice: float, error: float) -> float:
    """Probability that a mask is below a Dice, were its prediction off by a normal error.

    The rate needs no calibrated one: power tuning weighs it, and the reviewed masks correct it.

    Args:
        predicted: Predicted Dice.
        dice: The limit.
        error: Mean absolute error of predictions; above 0. Of a normal error that is .798 standard deviations.
    """
    deviations = (dice - predicted) / (error * math.sqrt(math.pi / 2))
    return math.erfc(-deviations / math.sqrt(2)) / 2


def _worth(estimate: PowerTuned, count: int) -> float:
    """Independent patients that an estimated rate is worth; all of them where the reviewed do not differ."""
    if estimate.error == 0:
        return float(count)
    rate = min(1.0, max(0.0, estimate.value))
    # As if the variance divided by one less: exactly `count` for values that are 0 or 1.
    return float(rate * (1 - rate) / estimate.error**2)


def _exact(rate: float, count: float, confidence: float) -> tuple[float, float]:
    """Interval of Clopper and Pearson for a rate among so many, which need not be whole numbers."""
    hits, tail = rate * count, (1 - confidence) / 2
    low = 0.0 if hits <= 0 else float(stats.beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits >= count else float(stats.beta.ppf(1 - tail, hits + 1, count - hits))
    return low, high


def _by_patient(masks: Sequence[MonthMask]) -> tuple[Array, Array, Array]:
    """Values and predictions of reviewed patients, and predictions of the others."""
    of_patient: dict[str, list[MonthMask]] = {}
    for mask in masks:
        of_patient.setdefault(mask.patient, []).append(mask)
    reviewed: list[list[MonthMask]] = []
    others: list[list[MonthMask]] = []
    for patient, own in of_patient.items():
        known = sum(mask.value is not None for mask in own)
        if 0 < known < len(own):
            raise DataError(
                f"patient {patient}: {known} of {len(own)} masks were reviewed; review all masks of a patient, or "
                "leave him out: which were chosen may depend on how good they are"
            )
        (reviewed if known else others).append(own)
    if len(reviewed) < FEWEST_REVIEWED:
        raise DataError(
            f"{len(reviewed)} patients of the month were reviewed, and {FEWEST_REVIEWED} are needed at least for an "
            "interval; review more, drawn at random"
        )
    each = len(masks) / len(of_patient)
    values = [sum(mask.value for mask in own if mask.value is not None) / each for own in reviewed]
    return np.array(values), _sums(reviewed, each), _sums(others, each)


def _sums(patients: Sequence[Sequence[MonthMask]], each: float) -> Array:
    return np.array([sum(mask.predicted for mask in own) / each for own in patients], dtype=np.float64)


def as_json(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Estimates by name as JSON values."""
    return {name: {**vars(found), "width_ratio": found.width_ratio} for name, found in estimates.items()}
