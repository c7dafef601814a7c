"""What contradicts what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.feedback_entries import CORRECTED, SHOWN, correction, ef, on, verdict

from medfm_rl.feedback import Feedback, FeedbackError, Grade, Measurement, Preference
from medfm_rl.feedback.standing import contradict


def grade(value: int, structure: str | None = None) -> Grade:
    return Grade(**on(), mask_sha256=SHOWN.sha256, grade=value, structure=structure)


def preference(turned: bool = False, structure: str | None = None) -> Preference:
    better, worse = (SHOWN, CORRECTED) if turned else (CORRECTED, SHOWN)
    return Preference(**on(), better_sha256=better.sha256, worse_sha256=worse.sha256, structure=structure)


def volume(name: str, value: float) -> Measurement:
    return Measurement(reviewer="r1", patient="p1", name=name, value=value, unit="ml")


def area(value: float, structure: str) -> Measurement:
    return Measurement(**on(), name="area", value=value, unit="mm2", structure=structure)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (correction(), correction(replaces_sha256=None, changed=())),
        (verdict("accept"), verdict("reject")),
        (verdict("accept", structure="LV"), verdict("reject", structure="LV")),
        (verdict("accept"), verdict("reject", structure="LV")),
        (verdict("accept"), correction()),
        (verdict("accept", structure="LV"), correction()),
        (grade(2), grade(3)),
        (preference(), preference(turned=True)),
        (ef(50), ef(51)),
        (ef(50), replace(ef(51), structure="LV")),
        (volume("EDV", 50), volume("ESV", 60)),
        (verdict("accept"), grade(0)),
        (verdict("accept"), grade(0, "LV")),
        (verdict("accept", structure="LV"), grade(0, "LV")),
    ],
)
def test_contradictions(one: Feedback, other: Feedback) -> None:
    assert contradict(one, other)
    assert contradict(other, one)
    assert not contradict(one, replace(other, reviewer="r2"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (verdict("reject"), verdict("accept", structure="LV")),
        (verdict("accept", structure="MYO"), correction()),
        (verdict("reject"), correction()),
        (verdict("accept"), verdict("reject", mask_sha256=CORRECTED.sha256)),
        (verdict("accept", mask_sha256=CORRECTED.sha256), correction()),
        (grade(2), grade(3, "LV")),
        (grade(0), verdict("reject")),
        (preference(structure="LV"), preference(turned=True, structure="MYO")),
        (ef(50), ef(51, "p2")),
        (ef(50), Measurement(reviewer="r1", patient="p1", name="EDV", value=120, unit="ml")),
        (area(10, "LV"), area(20, "LA")),
        (correction("p1_a"), correction("p1_b")),
        (ef(50), replace(ef(51), structure="RV")),
        (volume("EDV", 60), volume("ESV", 50)),
        (volume("EDV", 50), replace(volume("ESV", 60), structure="RV")),
        (verdict("accept"), grade(1)),
        (verdict("accept", structure="LV"), grade(0)),
        (verdict("accept", structure="LV"), grade(0, "MYO")),
        (verdict("accept", mask_sha256=CORRECTED.sha256), grade(0)),
    ],
)
def test_what_can_hold_together(one: Feedback, other: Feedback) -> None:
    assert not contradict(one, other)
    assert not contradict(other, one)


def test_an_entry_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(FeedbackError, match="case p1_a, grade of reviewer r1: the grade is 5; it must be 0 to 4"):
        grade(5)
    with pytest.raises(FeedbackError, match="both masks are the same"):
        Preference(**on(), better_sha256=SHOWN.sha256, worse_sha256=SHOWN.sha256)
    with pytest.raises(FeedbackError, match="is the mask that was shown"):
        correction(mask_sha256=SHOWN.sha256)
    with pytest.raises(FeedbackError, match="must be above 0, or left out"):
        ef(uncertainty=0)
