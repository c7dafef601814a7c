"""Accept, correct or refer: the verdict on a mask, and its reasons in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from medfm_rl.quality.model import QualityModel
from medfm_rl.quality.reports import QualityReport, ReasonCode, ShiftSeenBy, State, Verdict
from medfm_rl.quality.shift import FEWEST_IN_BATCH

_CASE_LEVEL = 0.001
_UNLIKE: Mapping[ShiftSeenBy, str] = {
    "reward network": "image and mask together are unlike those of the calibration, to the reward network",
    "appearance": "the image looks unlike those of the calibration",
    "BiomedCLIP": "the image is unlike those of the calibration, to BiomedCLIP",
}


def decide(report: QualityReport, state: State, model: QualityModel, accept_untested: bool) -> QualityReport:
    """The report with the verdict that holds in that state of its batch.

    Args:
        report: Everything but verdict, reason code and reasons.
        state: What the test of the batch found.
        model: Limit and threshold.
        accept_untested: Whether masks of a batch that could not be tested may be accepted.
    """
    verdict, code, reasons = _verdict(report, state, model, accept_untested)
    return replace(report, verdict=verdict, reason_code=code, reasons=tuple(reasons))


def _verdict(
    report: QualityReport, state: State, model: QualityModel, accept_untested: bool
) -> tuple[Verdict, ReasonCode, list[str]]:
    limit = model.targets.dice
    if report.view is not None and not report.view.is_apical:
        seen = report.view
        return (
            "refer",
            "view",
            [
                f"the view classifier sees {seen.view.replace('_', ' ')} (p = {seen.probability:.2f}), and the "
                "rules are for apical views"
            ],
        )
    missing = [score.structure for score in report.scores[:-1] if score.predicted_dice is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        reason = (
            f"{', '.join(missing)} {verb} missing from the mask, or too small for the grid of the networks: no quality "
            "can be predicted"
        )
        return "refer", "structure_missing", [reason]
    mean = report.mean
    assert mean.predicted_dice is not None
    assert mean.low is not None
    assert mean.high is not None
    found = f"mean Dice is predicted as {mean.predicted_dice:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
    broken = [str(rule) for rule in report.rules if not rule.passed]
    if report.shift_probability < _CASE_LEVEL:
        unlike = (
            f"{_UNLIKE[report.shift_seen_by]}: distance {report.shift_distance:.1f}, of which the probability is "
            f"{report.shift_probability:.1g}"
        )
        return "refer", "shift_case", [unlike, found, *broken]
    if mean.high < limit:
        return "refer", "predicted_dice", [f"{found}, all below {limit:g}", *broken]
    if broken:
        return "correct", "rules", [*broken, found]
    shifted = state in ("weighted", "suspended")
    threshold = None if shifted else model.accept_threshold
    if threshold is not None:
        # What is promised of the accepted masks was tested for those above the threshold, and for no others.
        if mean.predicted_dice >= threshold:
            return _acceptable(
                state, accept_untested, "threshold", f"{found}, at or above the threshold {threshold:.3f}"
            )
        rare = f"below the threshold {threshold:.3f}, from which on masks below {limit:g} are promised to be rare"
        return "correct", "predicted_dice", [f"{found}, {rare}"]
    if mean.low >= limit:
        if state == "suspended":
            reason = (
                f"{found}, at or above {limit:g}, but the batch differs from the calibration cases, and no "
                "interval can be promised; every anatomy rule is met"
            )
            return "refer", "batch_suspended", [reason]
        return _acceptable(state, accept_untested, "interval", f"{found}, all at or above {limit:g}")
    why = "there is no threshold with a guarantee"
    if model.accept_threshold is not None:
        why = "the batch differs from the calibration cases, so that the threshold does not count"
    return "correct", "predicted_dice", [f"{found}, which may be below {limit:g}; {why}"]


def _acceptable(
    state: State, accept_untested: bool, code: ReasonCode, found: str
) -> tuple[Verdict, ReasonCode, list[str]]:
    """The verdict on a mask with nothing against it but, perhaps, that its batch was not tested."""
    if state != "untested":
        return "accept", code, [f"{found}; every anatomy rule is met"]
    few = (
        f"there are too few patients to test whether the batch is like the calibration cases ({FEWEST_IN_BATCH} in "
        "each are needed)"
    )
    if accept_untested:
        return (
            "accept",
            code,
            [f"{found}; every anatomy rule is met; {few}, and untested masks were to be accepted"],
        )
    return "refer", "batch_untested", [f"{found}, but {few}, and nothing is promised; every anatomy rule is met"]
