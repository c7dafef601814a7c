"""Promises about accepted masks, from few reviewed patients: at most so many of them are bad, with a confidence.

The patient is the unit: masks of one patient are alike, so however many there are, they are one piece of evidence. A
patient's loss at a threshold is the share of bad masks among his accepted ones (`mean`), or 1 where any of them is bad
(`worst`); patients of whom nothing is accepted do not count. What is promised is that the mean loss of patients is at
most `alpha`, with a confidence over draws of the reviewed patients, for patients exchangeable with them.

Each threshold has one test:

- `mean`: losses lie in [0, 1], and a gambler who bets against the promise multiplies `1 + bet (alpha - loss)` over the
  patients (Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS-B 86(1), 2024). If
  the mean loss is above `alpha`, the product is at least `1 / (1 - confidence)` with a probability of at most
  `1 - confidence` (Markov). The bet depends on the number of patients alone (`bet_for`).
- `worst`: losses are 0 or 1, and the exact binomial test is sharper once a patient is bad.

Without a bad mask both need the same: (1 - alpha)^n <= 1 - confidence, 22 patients at .1 and .9. No threshold shares
its confidence with another (fixed-sequence testing: Angelopoulos et al., Learn then Test, arXiv 2110.01052): they are
tested from the strictest on, and the first that fails ends it. Which come first is decided by how many patients have
an accepted mask, and never by how good these are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from medfm_rl.choices import PromiseUnit
from medfm_rl.data.files import write_versioned_json
from medfm_rl.data.json_models import read_model
from medfm_rl.errors import ConfigError

PROMISE_FILE: Final = "promise.json"
_FORMAT: Final = 3
_STEPS: Final = 200
"""Thresholds are multiples of 1/200: a finer grid costs no confidence, and scores say no more."""
_ROUNDING: Final = 1e-9
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReviewedMask:
    """A mask that was assessed without its truth, and reviewed later.

    Attributes:
        case: Name of the case.
        patient: Patient of the case.
        predicted: Predicted mean Dice in [0, 1]; None where none could be predicted. Such a mask is never accepted.
        rules_met: Whether it meets every anatomy rule; else it is never accepted.
        dice: True mean Dice in [0, 1].
    """

    case: str
    patient: str
    predicted: float | None
    rules_met: bool
    dice: float


class PromiseTarget(BaseModel):
    """What is to be promised.

    Attributes:
        dice: Mean Dice below which a mask is bad.
        alpha: Largest share of bad masks among the accepted.
        confidence: Confidence of the statement.
        unit: A patient's loss: the share of bad masks among his accepted ones, or whether any of them is bad.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    dice: float = Field(0.8, gt=0, lt=1)
    alpha: float = Field(0.1, gt=0, lt=0.5)
    confidence: float = Field(0.9, gt=0.5, lt=1)
    unit: PromiseUnit = "mean"

    @property
    def words(self) -> str:
        """The promise."""
        if self.unit == "worst":
            who = f"of the patients with an accepted mask have one below Dice {self.dice:g}"
        else:
            who = f"of the accepted masks are below Dice {self.dice:g}, every patient counting alike"
        return f"at most {self.alpha:.0%} {who}, with {self.confidence:.0%} confidence"


class Grounds(BaseModel):
    """What a promise rests on, by hash.

    Attributes:
        quality_hash: SHA-256 of the `quality.json` that predicted.
        scores_hash: SHA-256 of the `scores.json`.
        feedback: Name of the feedback store.
        feedback_hash: Hash of what was in force in it.
        reviewers: Opaque ids of who reviewed.
        left_out: Reviewed cases that no promise may rest on, and why.
        looks: How many promises were sought from this store before, with this quality model.
        masks: Keys of the reviewed masks (`drift.mask_key`); none in a file that an older version wrote.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    quality_hash: str
    scores_hash: str
    feedback: str
    feedback_hash: str
    reviewers: tuple[str, ...]
    left_out: dict[str, str] = {}
    looks: int = 0
    masks: tuple[str, ...] = ()


class Promise(BaseModel):
    """A promise about masks whose predicted mean Dice is at or above a threshold and that meet every rule.

    Attributes:
        target: What was asked.
        threshold: From which on masks are accepted under the promise; None where nothing can be promised.
        patients: Reviewed patients.
        masks: Their masks.
        accepted_patients: Those with a mask at or above the threshold; 0 where there is none.
        accepted_masks: Masks at or above it.
        bad_masks: Those of them that are bad.
        p_value: Of the test at the threshold; where there is none, of the strictest that could have been proven, and
            1 where none could.
        reason: Why it holds, or why there is none.
        created: UTC, ISO 8601.
        evidence: What it rests on; None for one that was made in memory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    target: PromiseTarget
    threshold: float | None
    patients: int
    masks: int
    accepted_patients: int
    accepted_masks: int
    bad_masks: int
    p_value: float
    reason: str
    created: str = ""
    evidence: Grounds | None = None

    def accepts(self, predicted: float | None, rules_met: bool) -> bool:
        """Whether a mask is accepted by the rule that the promise was proven for.

        Args:
            predicted: Predicted mean Dice; None where none could be predicted.
            rules_met: Whether every anatomy rule is met.
        """
        return self.threshold is not None and rules_met and predicted is not None and predicted >= self.threshold

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        write_versioned_json(path, _FORMAT, self.model_dump())

    @classmethod
    def read(cls, path: Path) -> Promise:
        """Reads what `write` wrote.

        Raises:
            ModelError: It is missing, damaged, or of a newer version.
        """
        return read_model(path, cls, _FORMAT, "a promise", "make it by `medfm-rl calibrate RUN --feedback STORE`")


def fewest_for_promise(target: PromiseTarget) -> int:
    """Patients with an accepted mask that a promise needs at least, if none of these masks is bad."""
    return math.ceil(math.log(1 - target.confidence) / math.log(1 - target.alpha) - _ROUNDING)


def bet_for(patients: int, target: PromiseTarget) -> float:
    """The bet against the promise, as a factor of `alpha - loss`.

    The best one if the share of bad patients is q is (alpha - q) / (alpha (1 - alpha)) (Kelly), and it proves the
    promise where n KL(q, alpha) >= log(1 / (1 - confidence)). So q is the largest share k / n, k a whole number, that
    can be proven with that many patients: with 22 to 46 patients none, with 47 one.

    Args:
        patients: Those with an accepted mask.
        target: What is to be promised.
    """
    alpha, needed = target.alpha, -math.log(1 - target.confidence) - _ROUNDING
    bad = 0
    while (bad + 1) / patients < alpha and patients * _divergence((bad + 1) / patients, alpha) >= needed:
        bad += 1
    return (alpha - bad / patients) / (alpha * (1 - alpha))


def p_value(losses: Array, target: PromiseTarget) -> float:
    """p-value of the hypothesis that the mean loss of patients is above `alpha`.

    Args:
        losses: One for each patient, in [0, 1]; 0 or 1 where the unit is `worst`.
        target: What is to be promised.
    """
    if len(losses) == 0:
        return 1.0
    if target.unit == "worst":
        return float(stats.binom.cdf(round(float(losses.sum())), len(losses), target.alpha))
    factors = 1 + bet_for(len(losses), target) * (target.alpha - losses)
    # The bet of all that there is leaves exactly nothing after a loss of 1.
    wealth = float(np.prod(np.maximum(factors, 0)))
    return 1.0 if wealth <= 1 else 1 / wealth


def patient_losses(reviewed: Sequence[ReviewedMask], threshold: float, target: PromiseTarget) -> Array:
    """The loss of each patient who has an accepted mask at a threshold.

    Args:
        reviewed: Reviewed masks.
        threshold: Predicted mean Dice from which masks are accepted.
        target: Says which masks are bad, and what a patient's loss is.
    """
    of_patient: dict[str, list[bool]] = {}
    for mask in _accepted(reviewed, threshold):
        of_patient.setdefault(mask.patient, []).append(mask.dice < target.dice)
    if target.unit == "worst":
        return np.array([float(any(bad)) for bad in of_patient.values()], dtype=np.float64)
    return np.array([sum(bad) / len(bad) for bad in of_patient.values()], dtype=np.float64)


def prove(reviewed: Sequence[ReviewedMask], target: PromiseTarget) -> Promise:
    """Finds the lowest threshold from which on the promise is proven, just above which a reviewed mask lies.

    It is never below what reviewers have seen: without a bad mask the promise would hold of all masks as they come, of
    the worst ones among them too, which nobody would want accepted.

    Args:
        reviewed: Masks of patients drawn at random, whose predictions knew nothing of their truth.
        target: What is to be promised.

    Raises:
        ConfigError: A Dice is no number in [0, 1].
    """
    for mask in reviewed:
        if not all(0 <= value <= 1 for value in (mask.dice, mask.predicted or 0)):
            raise ConfigError(f"case {mask.case}: Dice {mask.dice} and its prediction must lie in [0, 1]")
    least, level = fewest_for_promise(target), 1 - target.confidence + _ROUNDING
    proven: float | None = None
    tested: list[tuple[float, float]] = []
    count, losses = 0, np.zeros(0)
    for step in range(_STEPS, -1, -1):
        threshold = step / _STEPS
        accepted = _accepted(reviewed, threshold)
        if len(accepted) == count:
            # Nothing is known of masks between this threshold and the one above: the proof stays at that.
            continue
        count, losses = len(accepted), patient_losses(accepted, threshold, target)
        if len(losses) < least:
            continue
        tested.append((threshold, p_value(losses, target)))
        if tested[-1][1] > level:
            break
        proven = threshold
    patients = len({mask.patient for mask in reviewed})
    accepted = [] if proven is None else _accepted(reviewed, proven)
    bad = sum(mask.dice < target.dice for mask in accepted)
    known = {mask.patient for mask in accepted}
    values = dict(tested)
    if proven is not None:
        reason = (
            f"of {len(accepted)} reviewed masks of {len(known)} patients predicted at {proven:.3f} or above, {bad} "
            f"{'is' if bad == 1 else 'are'} bad (p = {values[proven]:.3g})"
        )
    else:
        reason = _why_not(reviewed, target, tested, least)
    return Promise(
        target=target,
        threshold=proven,
        patients=patients,
        masks=len(reviewed),
        accepted_patients=len(known),
        accepted_masks=len(accepted),
        bad_masks=bad,
        p_value=values[proven] if proven is not None else tested[0][1] if tested else 1.0,
        reason=reason,
    )


def _why_not(
    reviewed: Sequence[ReviewedMask], target: PromiseTarget, tested: Sequence[tuple[float, float]], least: int
) -> str:
    if not tested:
        able = len(patient_losses(reviewed, 0, target))
        return (
            f"{able} reviewed {'patient has' if able == 1 else 'patients have'} a mask that could be accepted, and "
            f"{least} without a bad one are needed at least; review {least - able} more, drawn at random"
        )
    threshold, found = tested[0]
    masks = _accepted(reviewed, threshold)
    bad = sum(mask.dice < target.dice for mask in masks)
    count = len(patient_losses(reviewed, threshold, target))
    return (
        f"even of the {len(masks)} masks of {count} patients predicted highest (at {threshold:.3f} or above) {bad} "
        f"{'is' if bad == 1 else 'are'} bad (p = {found:.3g}, and at most {1 - target.confidence:.3g} is needed); "
        "review more patients, drawn at random, or ask for less"
    )


def _accepted(reviewed: Sequence[ReviewedMask], threshold: float) -> list[ReviewedMask]:
    return [mask for mask in reviewed if mask.rules_met and mask.predicted is not None and mask.predicted >= threshold]


def _divergence(one: float, other: float) -> float:
    """Kullback-Leibler divergence of two Bernoulli distributions, in nats; `one` is above 0."""
    return one * math.log(one / other) + (1 - one) * math.log((1 - one) / (1 - other))
