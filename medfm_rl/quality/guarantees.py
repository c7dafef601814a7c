"""The promises about a batch of masks, in words: what is left of intervals and threshold after the test for shift."""

from __future__ import annotations

from collections.abc import Sequence

from medfm_rl.data.layouts import name_patients
from medfm_rl.quality.conformal import fewest_patients
from medfm_rl.quality.model import MEAN, QualityModel
from medfm_rl.quality.reports import Guarantee, QualityReport, State
from medfm_rl.quality.shift import FEWEST_IN_BATCH


def meaning(state: State, cases: Sequence[QualityReport], model: QualityModel, accept_untested: bool) -> str:
    """The meaning of a state of the batch for the verdicts, in words.

    Args:
        state: State of the batch.
        cases: The batch.
        model: What it was compared with.
        accept_untested: Whether masks of a batch that could not be tested may be accepted.
    """
    named = [case.patient_id for case in cases]
    patients = len(set(named))
    who = f"the batch is of {patients} {'patient' if patients == 1 else 'patients'}"
    match state:
        case "untested":
            known = len(set(model.domain.patients))
            outcome = "masks are accepted all the same, as was asked" if accept_untested else "none is accepted"
            return (
                f"{who} and the calibration keeps {known} to compare with; {FEWEST_IN_BATCH} of each are needed to "
                f"test whether they are alike, so what is promised may not hold, and {outcome}; "
                + name_patients(named, [case.case_id for case in cases])
            )
        case "holds":
            return (
                f"{who}, and no difference from the calibration cases was found, which is no proof that there is none"
            )
        case "weighted":
            return (
                f"{who}, and they differ from the calibration cases: intervals are weighted, and a mask is "
                "accepted by its interval only"
            )
        case "suspended":
            return (
                f"{who}, and they differ from the calibration cases: nothing is promised, predicted Dice and "
                "intervals are guesses, and no mask is accepted"
            )


def guarantees(model: QualityModel, state: State, probability: float | None, effective: float) -> tuple[Guarantee, ...]:
    """The promises of intervals and threshold in this state of the batch.

    Args:
        model: What was calibrated.
        state: What the test and the weights of the calibration patients lead to.
        probability: Of the two-sample test.
        effective: How many calibration patients the weighted ones are worth, where there are weights.
    """
    targets = model.targets
    promise = f"{targets.coverage:.0%} of the intervals of predicted Dice hold the true Dice"
    found = "" if probability is None else f"two-sample test, p = {probability:.3g}"
    differs = f"the batch differs from the calibration cases ({model.origin}): {found}"
    worth = (
        f"counted by how alike their images are to these, the {model.conformal_patients} calibration patients tell as "
        f"much as {effective:.1f} patients would"
    )
    advice = "calibrate on labelled cases of this domain"
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
                f"{differs}; {worth}, which is enough. The intervals are weighted by that, and hold if only the images "
                f"differ and not how good masks of such images are; to be sure, {advice}"
            )
        case "suspended":
            least = fewest_patients(targets.coverage)
            reason = f"{differs}; {worth}, and at least {least} are needed for a promise; {advice}"
    intervals = Guarantee(promise, state, reason)
    if model.structures[MEAN].quantile is None:
        few = f"{model.conformal_patients} calibration patients are too few for intervals of this coverage"
        intervals = Guarantee(promise, "none", few)
    promise, _, why = model.accept_reason.partition(": ")
    if model.accept_threshold is None:
        return intervals, Guarantee(promise, "none", why)
    # Weights say nothing of a threshold.
    return intervals, Guarantee(promise, "suspended" if state == "weighted" else state, reason)
