"""What verdicts are worth, in words: the guarantee of each, and what is left of promises after the test for shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from medfm_rl.data.layouts import name_patients
from medfm_rl.metrics.scores import MEAN
from medfm_rl.quality.conformal import fewest_for_intervals
from medfm_rl.quality.reports import BatchReport, Guarantee, PromiseStatus, QualityReport, ReasonCode, State, Status
from medfm_rl.quality.shift import FEWEST_IN_BATCH
from medfm_rl.quality.terms import Terms

RESTS_ON_PREDICTION: tuple[ReasonCode, ...] = ("promise", "threshold", "predicted_dice", "rules")
"""Grounds of verdicts that stand on the calibration of predicted Dice."""
NEEDS_NO_PROMISE = "it needs no promise: nothing that was learned of predicted Dice was used"


class Footing(Protocol):
    """What verdicts stand on: the test of a batch, or of a stream."""

    def promised(self, report: QualityReport, telling: bool, terms: Terms) -> tuple[ReasonCode, str] | None:
        """The promise under which a mask is accepted, and why in words; None where it falls under none.

        Args:
            report: Of a mask that has a predicted mean Dice.
            telling: Whether it breaks a telling rule.
            terms: What is asked, with model and threshold.
        """

    def worth(self, code: ReasonCode, terms: Terms) -> tuple[Guarantee, str]:
        """The guarantee of a verdict with this ground, and on what it rests."""


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
        """As in `Footing`."""
        # What is promised of the accepted masks was tested for those above the threshold that break no telling rule,
        # and for no others.
        threshold = terms.threshold if self.threshold_counts and not telling else None
        predicted = report.mean.predicted_dice
        if threshold is None or predicted is None or predicted < threshold:
            return None
        return "threshold", f"at or above the threshold {threshold:.3f}"

    def worth(self, code: ReasonCode, terms: Terms) -> tuple[Guarantee, str]:
        """As in `Footing`.

        Proven is what was accepted by the threshold that a promise was tested for, on labelled cases of this domain, in
        a batch that a test found no difference in; nothing else is.
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

    def summary(self, reports: Sequence[QualityReport], terms: Terms) -> BatchReport:
        """The masks of a batch with what holds for them together.

        Args:
            reports: With their verdicts.
            terms: With the model that the batch was compared with.
        """
        code: ReasonCode = "threshold" if terms.threshold is not None and self.threshold_counts else "predicted_dice"
        return BatchReport(
            reports,
            self.state,
            self.patients,
            self._meaning(reports, terms),
            *self.worth(code, terms),
            self.probability,
            self._promises(terms),
        )

    def _meaning(self, cases: Sequence[QualityReport], terms: Terms) -> str:
        """The meaning of the state for the verdicts, in words."""
        who = f"the batch is of {self.patients} {'patient' if self.patients == 1 else 'patients'}"
        if terms.reviewed:
            return (
                f"{who}; predicted Dice, intervals and verdicts go by {terms.known_patients}. Whether the batch is "
                "like them was not tested, so no verdict is proven"
            )
        match self.state:
            case "untested":
                known = len(set(terms.model.domain.patients))
                named = name_patients([case.patient_id for case in cases], [case.case_id for case in cases])
                return (
                    f"{who} and the calibration keeps {known} to compare with; {FEWEST_IN_BATCH} of each are needed to "
                    "test whether they are alike, so verdicts are what the calibration leads to expect, and none is "
                    f"proven; {named}"
                )
            case "holds":
                return (
                    f"{who}, and no difference from the calibration cases was found, which is no proof that there is "
                    "none"
                )
            case "weighted":
                return (
                    f"{who}, and they differ from the calibration cases: intervals and verdicts count those more that "
                    "are like these, and no verdict is proven"
                )
            case "suspended":
                return (
                    f"{who}, and they differ from the calibration cases: nothing is promised. Predicted Dice, "
                    "intervals and verdicts still tell which masks to look at first, but they are guesses"
                )

    def _promises(self, terms: Terms) -> tuple[PromiseStatus, ...]:
        """What is promised of intervals and of accepted masks."""
        model, state = terms.model, self.state
        accepted, _, why = model.accept_reason.partition(": ")
        differs = f"the batch differs from the calibration cases ({model.origin}): {self.found}"
        counted = (
            f"counted by how alike their images are to these, the {model.conformal_patients} calibration patients tell "
            f"as much as {self.effective:.1f} patients would"
        )
        advice = "calibrate on labelled cases of this domain"
        if terms.reviewed:
            reason = f"they come from {terms.known_patients}; whether the batch is like them was not tested"
            return promise_of_intervals(terms, "untested", reason), PromiseStatus(accepted, "none", terms.no_threshold)
        match state:
            case "untested":
                reason = (
                    f"the two-sample test needs at least {FEWEST_IN_BATCH} patients in the batch and in the "
                    "calibration; whether they are alike is for you to say"
                )
            case "holds":
                reason = f"no difference from the calibration cases ({model.origin}) was found: {self.found}"
            case "weighted":
                reason = (
                    f"{differs}; {counted}, which is enough. The intervals are weighted by that, and hold if only the "
                    f"images differ and not how good masks of such images are; to be sure, {advice}"
                )
            case "suspended":
                least = fewest_for_intervals(model.targets.coverage)
                reason = f"{differs}; {counted}, and at least {least} are needed for a promise; {advice}"
        intervals = promise_of_intervals(terms, state, reason)
        if model.accept_threshold is None:
            return intervals, PromiseStatus(accepted, "none", why)
        # Weights say nothing of a threshold.
        return intervals, PromiseStatus(accepted, "suspended" if state == "weighted" else state, reason)


def promise_of_intervals(terms: Terms, status: Status, reason: str) -> PromiseStatus:
    """The promise of the intervals, with its status and why; none where there were too few patients for any."""
    model = terms.model
    words = f"{model.targets.coverage:.0%} of the intervals of predicted Dice hold the true Dice"
    if not terms.reviewed and model.structures[MEAN].quantile is None:
        status = "none"
        reason = f"{model.conformal_patients} calibration patients are too few for intervals of this coverage"
    return PromiseStatus(words, status, reason)


def _unproven(terms: Terms) -> str:
    """Why a verdict of a batch in which no difference was found is not proven."""
    if terms.threshold is None:
        return f"no promise was tested that it would fall under: {terms.no_threshold}"
    if not terms.model.target_domain:
        return f"they are no labelled cases of this domain: {terms.model.origin}"
    return f"the promise is of masks accepted at or above the threshold {terms.threshold:.3f}, and of no others"
