"""Accept, correct or refer: what the evidence says of a mask, and its reasons in words.

The triage rests on one number, the probability that the Dice of the mask lies below a limit:

- *accept* where it is at most alpha,
- *refer* where it is at least 1 - alpha, or where nothing can be said of the mask: a structure is missing, the image is
  unlike those of the calibration, the view is no apical one,
- *correct* between.

The first limit is that of least expected cost (Chow, IEEE Transactions on Information Theory 16, 1970) where to use a
bad mask costs (1 - alpha) / alpha times as much as to have a good one corrected: nine times with alpha = .1. The second
is its mirror image: a mask that is as surely bad is not worth an attempt. Neither needs a batch: the probability comes
from predicted Dice and from how far predictions missed the truth of the calibration cases (`risk`), so that a single
mask has a verdict on the first day. What that verdict is worth is another question, which the guarantee answers
(`guarantees`).

A broken anatomy rule is evidence, and as such it is among the numbers that predicted Dice is made of. By itself it has
a mask corrected only if the rule is telling: on the calibration cases hardly any good mask breaks it
(`telling_rules`). Most good masks of some segmenters have a second part of a few pixels; a rule that counts
parts says nothing there, however right it is.

Where there is a threshold that a promise was tested for (in the calibration, or, for a stream, in the promise of its
reviewed patients), masks at or above it are accepted by that, and not by their probability: a promise holds for the
rule that it was tested for, and for no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medfm_rl.quality.conformal import predictive_probability, spread_of
from medfm_rl.quality.guarantees import Footing
from medfm_rl.quality.model import QualityModel, StructureModel
from medfm_rl.quality.reports import QualityReport, ReasonCode, ShiftSeenBy, Verdict
from medfm_rl.quality.terms import Terms

_CASE_LEVEL = 0.001
_UNLIKE: Mapping[ShiftSeenBy, str] = {
    "reward network": "image and mask together are unlike those of the calibration, to the reward network",
    "appearance": "the image looks unlike those of the calibration",
    "BiomedCLIP": "the image is unlike those of the calibration, to BiomedCLIP",
}


def risk(
    report: QualityReport,
    model: QualityModel,
    limits: Mapping[str, float],
    weights: npt.NDArray[np.float64] | None = None,
    own: float = 1.0,
) -> float | None:
    """Probability that the Dice of a mask lies below one of the limits.

    The errors of the calibration cases, relative to the width that their predictions gave them, are put on the
    predictions of this mask; the share of cases with which it would lie below a limit is the probability
    (`conformal.predictive_probability`). With several limits the errors of one case go together, since a mask is wrong
    in more than one structure at once. Errors whose sign a file of an older version does not know count as those that
    tell least: a mask predicted above its limit as if all predictions were too high, one below it as if all were too
    low, and never past a half.

    Args:
        report: With predicted Dice.
        model: With the errors.
        limits: By structure, and of the mean.
        weights: Likelihood ratios of the calibration cases, where these are weighted.
        own: That of this case.

    Returns:
        None where a structure that has a limit lacks a prediction.
    """
    return probability_below(report, model.structures, model.domain.patients, limits, weights, own)


def probability_below(
    report: QualityReport,
    structures: Mapping[str, StructureModel],
    patients: Sequence[int],
    limits: Mapping[str, float],
    weights: npt.NDArray[np.float64] | None = None,
    own: float = 1.0,
) -> float | None:
    """`risk` from errors, wherever they come from.

    Args:
        report: With predicted Dice.
        structures: With the errors of known cases, one for each; by structure, and of the mean.
        patients: Patient of each of those.
        limits: By structure, and of the mean.
        weights: Likelihood ratios of those, where they are weighted.
        own: That of this case.

    Returns:
        None where a structure that has a limit lacks a prediction.
    """
    predicted = {score.structure: score.predicted_dice for score in report.scores}
    signed, is_below = True, False
    cases = len(patients)
    below, known = np.zeros(cases, bool), np.ones(cases, bool)
    for name, limit in limits.items():
        value = predicted[name]
        if value is None:
            return None
        structure = structures[name]
        errors = np.array([np.nan if error is None else error for error in structure.residuals], dtype=np.float64)
        reach = (limit - value) / spread_of(value)
        is_below |= reach > 0
        if not structure.signed:
            signed, errors = False, np.abs(errors) if reach > 0 else -np.abs(errors)
        known &= np.isfinite(errors)
        below |= errors < reach
    ratios = np.ones(cases) if weights is None else weights
    found = predictive_probability(below[known], ratios[known], np.asarray(patients)[known].tolist(), own)
    if signed:
        return found
    return max(found, 0.5) if is_below else min(found, 0.5)


def decide(report: QualityReport, standing: Footing, terms: Terms) -> QualityReport:
    """The report with its verdict, with what that is worth in such a batch or stream, and with what the policy does.

    Args:
        report: Everything but these, and with the probability of lying below a limit.
        standing: What the test of the batch, or of the stream, found.
        terms: Limits, threshold and policy.
    """
    verdict, code, reasons = _verdict(report, standing, terms)
    guarantee, evidence = standing.worth(code, terms)
    action, why = terms.act(verdict, guarantee)
    return replace(
        report,
        verdict=verdict,
        reason_code=code,
        reasons=tuple(reasons),
        guarantee=guarantee,
        evidence=evidence,
        action=action,
        action_reason=why,
    )


def _verdict(report: QualityReport, standing: Footing, terms: Terms) -> tuple[Verdict, ReasonCode, list[str]]:
    unseen = _unseen(report)
    if unseen is not None:
        code, reasons = unseen
        return "refer", code, reasons
    mean = report.mean
    assert mean.predicted_dice is not None
    assert mean.low is not None
    assert mean.high is not None
    assert report.risk is not None
    found = f"mean Dice is predicted as {mean.predicted_dice:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
    telling = [
        f"{rule}, which hardly any good mask breaks"
        for place, rule in enumerate(report.rules)
        if not rule.passed and place in terms.model.telling_rules
    ]
    if report.shift_probability < _CASE_LEVEL:
        unlike = (
            f"{_UNLIKE[report.shift_seen_by]}: distance {report.shift_distance:.1f}, of which the probability is "
            f"{report.shift_probability:.1g}"
        )
        return "refer", "shift_case", [unlike, found, *telling]
    probable = f"the probability of {terms.failure} is {report.risk:.0%}"
    promised = standing.promised(report, bool(telling), terms)
    if promised is not None:
        code, why = promised
        return "accept", code, [f"{found}, {why}"]
    if report.risk >= 1 - terms.alpha:
        return "refer", "predicted_dice", [f"{found}; {probable}", *telling]
    if telling:
        return "correct", "rules", [*telling, f"{found}; {probable}"]
    if report.risk <= terms.alpha:
        return "accept", "predicted_dice", [f"{found}; {probable}, at most {terms.alpha:.0%} are allowed"]
    return "correct", "predicted_dice", [f"{found}; {probable}, more than the {terms.alpha:.0%} that are allowed"]


def _unseen(report: QualityReport) -> tuple[ReasonCode, list[str]] | None:
    """Why nothing can be said of a mask; None where something can."""
    if report.view is not None and not report.view.is_apical:
        seen = report.view
        words = (
            f"the view classifier sees {seen.view.replace('_', ' ')} (p = {seen.probability:.2f}), and the rules are "
            "for apical views"
        )
        return "view", [words]
    missing = [score.structure for score in report.scores[:-1] if score.predicted_dice is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        words = (
            f"{', '.join(missing)} {verb} missing from the mask, or too small for the grid of the networks: no quality "
            "can be predicted"
        )
        return "structure_missing", [words]
    return None
