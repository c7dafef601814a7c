"""What verdicts are worth, in words: the guarantee of each, and what is left of promises after the test for shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medfm_rl.data.layouts import name_patients
from medfm_rl.quality.conformal import fewest_patients
from medfm_rl.quality.model import MEAN
from medfm_rl.quality.reports import Guarantee, Promise, QualityReport, ReasonCode, State
from medfm_rl.quality.shift import FEWEST_IN_BATCH
from medfm_rl.quality.terms import Terms

RESTS_ON_PREDICTION: tuple[ReasonCode, ...] = ("promise", "threshold", "predicted_dice", "rules")
"""Grounds of verdicts that stand on the calibration of predicted Dice."""
NEEDS_NO_PROMISE = "it needs no promise: nothing that was learned of predicted Dice was used"


@dataclass(frozen=True)
class BatchStanding:
    """The finding of the test of a batch.

    Attributes:
        state: What it and the weights of the calibration patients lead to.
        patients: How many the batch is of.
        probability: p-value of the two-sample test; None where the batch or the calibration is too small for it.
        effective: How many calibration patients the weighted ones are worth, where there are weights.
    """

    state: State
    patients: int
    probability: float | None = None
    effective: float = 0.0

    @property
    def threshold_counts(self) -> bool:
        """Whether masks are accepted by the threshold: weights say nothing of it, and a test may speak against it."""
        return self.state in ("holds", "untested")

    @property
    def found(self) -> str:
        """The test in words."""
        return "" if self.probability is None else f"two-sample test, p = {self.probability:.3g}"

    def promised(self, report: QualityReport, telling: bool, terms: Terms) -> tuple[ReasonCode, str] | None:
        """The promise under which a mask is accepted, and why in words; None where it falls under none.

        Args:
            report: Of a mask that has a predicted mean Dice.
            telling: Whether it breaks a telling rule.
            terms: With the threshold.
        """
        # What is promised of the accepted masks was tested for those above the threshold that break no telling rule,
        # and for no others.
        threshold = terms.threshold if self.threshold_counts and not telling else None
        predicted = report.mean.predicted_dice
        if threshold is None or predicted is None or predicted < threshold:
            return None
        return "threshold", f"at or above the threshold {threshold:.3f}"

    def worth(self, code: ReasonCode, terms: Terms) -> tuple[Guarantee, str]:
        """The guarantee of a verdict, and on what it rests.

        Proven is what was accepted by the threshold that a promise was tested for, on labelled cases of this domain, in
        a batch that a test found no difference in; nothing else is.

        Args:
            code: The ground of the verdict.
            terms: With the model and its threshold.
        """
        if code not in RESTS_ON_PREDICTION:
            return "expected", NEEDS_NO_PROMISE
        if self.state == "suspended":
            return "suspended", (
                f"the batch differs from the calibration cases ({self.found}), so that what was learned of those need "
                "not hold here: a guess"
            )
        model = terms.model
        rests = f"rests on the errors of {terms.known_patients}"
        if terms.reviewed:
            return "expected", f"it {rests}; whether this batch is like them was not tested"
        if self.state == "weighted":
            return "expected", (
                f"the batch differs from the calibration cases ({self.found}); it {rests}, counted by how alike their "
                "images are to these"
            )
        if self.state == "untested":
            return "expected", (
                f"it {rests}; whether this batch is like them was not tested, which takes {FEWEST_IN_BATCH} patients "
                "in each"
            )
        if code == "threshold" and model.target_domain:
            return "proven", f"{model.accept_reason}; no difference from them was found in this batch ({self.found})"
        no_difference = f"it {rests}, and no difference from them was found in this batch ({self.found})"
        return "expected", f"{no_difference}, but {_unproven(terms)}"


def _unproven(terms: Terms) -> str:
    """Why a verdict of a batch in which no difference was found is not proven."""
    if terms.threshold is None:
        return f"no promise was tested that it would fall under: {terms.no_threshold}"
    if not terms.model.target_domain:
        return f"they are no labelled cases of this domain: {terms.model.origin}"
    return f"the promise is of masks accepted at or above the threshold {terms.threshold:.3f}, and of no others"


def of_batch(standing: BatchStanding, terms: Terms) -> tuple[Guarantee, str]:
    """The most that a verdict `accept` of the batch is worth, and on what that rests."""
    code: ReasonCode = "threshold" if terms.threshold is not None and standing.threshold_counts else "predicted_dice"
    return standing.worth(code, terms)


def meaning(standing: BatchStanding, cases: Sequence[QualityReport], terms: Terms) -> str:
    """The meaning of the state of a batch for the verdicts, in words.

    Args:
        standing: The test of the batch.
        cases: The batch.
        terms: With the model that it was compared with.
    """
    named, patients, model = [case.patient_id for case in cases], standing.patients, terms.model
    who = f"the batch is of {patients} {'patient' if patients == 1 else 'patients'}"
    if terms.reviewed:
        return (
            f"{who}; predicted Dice, intervals and verdicts go by {terms.known_patients}. Whether the batch is like "
            "them was not tested, so no verdict is proven"
        )
    match standing.state:
        case "untested":
            known = len(set(model.domain.patients))
            return (
                f"{who} and the calibration keeps {known} to compare with; {FEWEST_IN_BATCH} of each are needed to "
                "test whether they are alike, so verdicts are what the calibration leads to expect, and none is "
                "proven; " + name_patients(named, [case.case_id for case in cases])
            )
        case "holds":
            return (
                f"{who}, and no difference from the calibration cases was found, which is no proof that there is none"
            )
        case "weighted":
            return (
                f"{who}, and they differ from the calibration cases: intervals and verdicts count those more that are "
                "like these, and no verdict is proven"
            )
        case "suspended":
            return (
                f"{who}, and they differ from the calibration cases: nothing is promised. Predicted Dice, intervals "
                "and verdicts still tell which masks to look at first, but they are guesses"
            )


def promises(terms: Terms, standing: BatchStanding) -> tuple[Promise, ...]:
    """The promises of intervals and threshold for such a batch.

    Args:
        terms: With the model that was calibrated.
        standing: The test of the batch.
    """
    model = terms.model
    targets, state, found = model.targets, standing.state, standing.found
    promise = f"{targets.coverage:.0%} of the intervals of predicted Dice hold the true Dice"
    differs = f"the batch differs from the calibration cases ({model.origin}): {found}"
    counted = (
        f"counted by how alike their images are to these, the {model.conformal_patients} calibration patients tell as "
        f"much as {standing.effective:.1f} patients would"
    )
    advice = "calibrate on labelled cases of this domain"
    if terms.reviewed:
        unlike = "whether the batch is like them was not tested"
        reviewed = Promise(promise, "untested", f"they come from {terms.known_patients}; {unlike}")
        return reviewed, Promise(model.accept_reason.partition(": ")[0], "none", terms.no_threshold)
    match state:
        case "untested":
            reason = (
                f"the two-sample test needs at least {FEWEST_IN_BATCH} patients in the batch and in the "
                "calibration; whether they are alike is for you to say"
            )
        case "holds":
            reason = f"no difference from the calibration cases ({model.origin}) was found: {found}"
        case "weighted":
            reason = (
                f"{differs}; {counted}, which is enough. The intervals are weighted by that, and hold if only the "
                f"images differ and not how good masks of such images are; to be sure, {advice}"
            )
        case "suspended":
            least = fewest_patients(targets.coverage)
            reason = f"{differs}; {counted}, and at least {least} are needed for a promise; {advice}"
    intervals = Promise(promise, state, reason)
    if model.structures[MEAN].quantile is None:
        few = f"{model.conformal_patients} calibration patients are too few for intervals of this coverage"
        intervals = Promise(promise, "none", few)
    promise, _, why = model.accept_reason.partition(": ")
    if model.accept_threshold is None:
        return intervals, Promise(promise, "none", why)
    # Weights say nothing of a threshold.
    return intervals, Promise(promise, "suspended" if state == "weighted" else state, reason)
