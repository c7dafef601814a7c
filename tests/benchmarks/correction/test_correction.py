from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.correction.report import ahead, draw, figures, summarise, table
from benchmarks.correction.run import METHODS, worst_decile
from medfm_rl.settings import CorrectionSettings


def row(patient: str, before: float, after: float, accepted: bool, verdict: str = "correct", worst: bool = True) -> Any:
    return {
        "case_id": f"{patient}_{verdict}_{before}",
        "patient_id": patient,
        "verdict": verdict,
        "worst_decile": worst,
        "accepted": accepted,
        "seconds": 2.0,
        "verifier_gain": 0.02,
        "before": {"dice": before, "hd95": 8.0, "valid": False},
        "after": {"dice": after, "hd95": None if after < 0.1 else 4.0, "valid": accepted},
    }


def cell(rows: list[Any], state: str = "holds") -> dict[str, Any]:
    return {"cases": 20, "state": state, "rows": rows}


@pytest.fixture
def mixed() -> dict[str, Any]:
    """Two accepted, of which one does harm; one refused that would have; one of a verdict that is left alone."""
    return cell(
        [
            row("a", 0.6, 0.7, True),
            row("b", 0.7, 0.68, True, worst=False),
            row("c", 0.5, 0.05, False),
            row("d", 0.9, 0.95, True, "refer"),
        ]
    )


def test_every_method_is_one_of_correct() -> None:
    names = {str(CorrectionSettings.model_validate(values).method) for values in METHODS.values()}
    assert names == {"views", "optimise", "none", "tta", "tent", "intent", "memo", "components", "shape-prior"}


def test_harm_is_counted_among_the_flagged_and_among_the_accepted(mixed: dict[str, Any]) -> None:
    found = figures(mixed)
    assert (found["flagged"], found["accepted"], found["accepted_harmed"], found["proposals_harmed"]) == (3, 2, 1, 2)
    assert found["accepted_valid"] == 2
    assert found["seconds_median"] == 2.0


def test_in_a_suspended_batch_the_masks_stay_and_what_the_verifier_accepts_is_counted(mixed: dict[str, Any]) -> None:
    found = figures({**mixed, "state": "suspended"})
    assert (found["accepted"], found["verifier_accepts"], found["verifier_accepts_harmed"]) == (0, 2, 1)
    assert found["worst_decile"]["gain"] == 0.0
    assert found["worst_decile_unverified"] == figures(mixed)["worst_decile_unverified"]


def test_what_is_refused_stays_as_it_was(mixed: dict[str, Any]) -> None:
    found = figures(mixed)
    # The worst decile is a, c and d: +.10, 0 and +.05.
    assert found["worst_decile"]["cases"] == 3
    assert found["worst_decile"]["gain"] == pytest.approx(0.05)
    assert found["worst_decile_unverified"]["gain"] == pytest.approx((0.1 - 0.45 + 0.05) / 3)
    # Flagged are a, b and c: +.10, -.02 and 0.
    assert found["flagged_change"]["gain"] == pytest.approx(0.08 / 3)
    assert found["flagged_change"]["valid_after"] == pytest.approx(2 / 3)
    # The distance of c is not known without the verifier: it is left out on both sides.
    assert (found["flagged_unverified"]["hd95_before"], found["flagged_unverified"]["hd95_after"]) == (8.0, 4.0)
    assert found["worst_decile"]["gain_low"] <= 0.05 <= found["worst_decile"]["gain_high"]


def test_a_cell_without_flagged_cases_has_rates_of_nothing() -> None:
    found = figures(cell([]))
    assert found["flagged"] == 0
    assert found["worst_decile"]["gain"] is None


def test_methods_are_compared_case_by_case(mixed: dict[str, Any]) -> None:
    other = cell([{**item, "accepted": False} for item in mixed["rows"]])
    found = ahead(mixed, other)
    assert found["ours_minus_this"] == pytest.approx(0.05)
    assert found["ours_minus_this_low"] >= 0
    with pytest.raises(ValueError, match="other cases"):
        ahead(mixed, cell(mixed["rows"][:1]))


def test_the_worst_decile_is_that_of_the_lowest_prediction() -> None:
    predicted = [0.9 - 0.01 * index for index in range(20)]
    assert [index for index, worst in enumerate(worst_decile(predicted)) if worst] == [18, 19]
    assert worst_decile([0.5, 0.4, 0.6]) == [False, True, False]


def test_the_summary_adds_cases_up_and_what_is_missing_shows(mixed: dict[str, Any]) -> None:
    found = figures(mixed)
    clean = figures(cell([row("a", 0.6, 0.7, True), row("b", 0.6, 0.8, True)]))
    results = {"lungs-hospital": {"none": {"views": {"0": found, "1": clean}}}}
    summary = summarise(results)
    assert summary["source"]["harm_rate_accepted"] == {"views": 1 / 4}
    assert summary["source"]["harm_rate_all"] == {"views": 1 / 5}
    assert summary["source"]["validity_accepted"] == {"views": 1.0}
    assert summary["source"]["worst_decile_gain"]["views"] == pytest.approx((0.05 + 0.15) / 2)
    assert summary["source"]["seconds_per_case_median"]["views"] == 2.0
    assert summary["adapted"]["worst_decile_gain"] == {}
    text = table(results, ["lungs-hospital", "camus-handheld"])
    assert "| Lungs Shenzhen to Montgomery | source | holds | views | 0 1 | 63.3 | +10.0 [" in text
    assert "| CAMUS to simulated handheld | missing |" in text


def test_the_picture_has_a_panel_for_each_model_and_shift_and_says_what_is_missing(
    mixed: dict[str, Any], tmp_path: Path
) -> None:
    results = {"lungs-hospital": {"none": {"views": {"0": figures(mixed)}}}}
    draw(results, False, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
