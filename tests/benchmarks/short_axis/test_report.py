from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet)")
from benchmarks.harness.tables import MEANINGLESS
from benchmarks.short_axis.report import detection, draw, gap_recovered, summarise, table
from benchmarks.short_axis.sizes import FULL

pytestmark = pytest.mark.nnunet


def rows(dice: float) -> list[dict[str, Any]]:
    return [{"structure": "mean", "dice": dice, "dice_p10": dice - 0.1, "validity": 0.5}]


def adapted(after: float, chosen: str = "ppo-006") -> dict[str, Any]:
    """Of a source model of .80, on four volumes."""
    return {
        "chosen": chosen,
        "minutes": 20.0,
        "before": rows(0.80),
        "after": rows(after),
        "dice": {"before": [0.7, 0.8, 0.8, 0.9], "after": [0.7, 0.9, 0.9, after]},
        "gain": {"mean": {"mean": after - 0.80, "low": 0.01, "high": 0.1}},
        "against_upper": {"mean": {"mean": after - 0.88, "low": -0.05, "high": 0.01}},
        "harmed": 0.25,
        "assessed": {
            "source": {"state": "usual", "verdicts": ["accept", "refer"], "predicted": [0.9, 0.6], "dice": [0.9, 0.7]},
            "adapted": {"state": "usual", "verdicts": ["accept"] * 2, "predicted": [0.95, 0.5], "dice": [0.9, 0.6]},
        },
        "assessing": {"overhead": 0.2, "segmenting_seconds": 1.5, "failure_auroc": 1.0, "failures": 1},
    }


def result(upper: float = 0.88) -> dict[str, Any]:
    return {
        "source": {"summary": rows(0.91)},
        "upper": {"summary": rows(upper), "dice": [upper] * 4},
        "adapted": {"0": adapted(0.84), "4": adapted(0.86)},
    }


def test_the_gap_is_measured_where_there_is_one() -> None:
    assert gap_recovered(0.80, 0.84, 0.88) == pytest.approx(0.5)
    assert gap_recovered(0.80, 0.78, 0.88) == pytest.approx(-0.25)
    assert gap_recovered(0.80, 0.84, 0.804) is None


def test_failures_are_those_of_the_masks_of_both_models() -> None:
    assert detection(adapted(0.84)["assessed"]) == 1.0
    assert detection({"source": {}, "adapted": {}}) is None


def test_the_figures_that_are_quoted() -> None:
    summary = summarise([result(), result(upper=0.80)])
    reviewed = summary.pop("reviewed")
    assert summary == {
        "dice_before": [0.80, 0.80],
        "dice_after": [0.84, 0.84],
        "upper": [0.88, 0.80],
        "gain_ci_low": [0.01, 0.01],
        "gap_recovered": [pytest.approx(0.5), None],
        "harm_rate": [0.25, 0.25],
        "failure_auroc": [1.0, 1.0],
        "judging_overhead": [0.2, 0.2],
        "minutes": [20.0, 20.0],
        "source_held_out": [0.91, 0.91],
    }
    assert set(reviewed) == {"4"}
    assert reviewed["4"]["gap_recovered"] == [pytest.approx(0.75), None]


def test_the_table_holds_what_was_found() -> None:
    text = table([0, 1], [result(), result(upper=0.80)], FULL, trial=False)
    gains = "| 0 | 0.910 | 4 | 0.800 | 0.860 | +0.060 [+0.010, +0.100] | 0.880 | -0.020 [-0.050, +0.010] | 75 % |"
    assert gains in text
    assert "| +0.040 [+0.010, +0.100] | 0.800 | -0.040 [-0.050, +0.010] | none |" in text
    assert "| 0 | 0 | 1.000 | 1, 1 | usual, usual | 1 of 2, 2 of 2 | 20 % | 1.50 |" in text
    assert MEANINGLESS not in text
    assert MEANINGLESS in table([0], [result()], FULL, trial=True)


def test_a_run_that_could_not_be_calibrated_says_so() -> None:
    found = result()
    for each in found["adapted"].values():
        each["assessed"] = {"source": {}, "adapted": {}}
        each["assessing"] = {"overhead": None, "segmenting_seconds": None, "failure_auroc": None, "failures": None}
    assert summarise([found])["failure_auroc"] == [None]
    assert "not assessed" in table([0], [found], FULL, trial=True)


def test_the_picture_shows_numbers(tmp_path: Path) -> None:
    draw([result()], False, tmp_path / "short_axis.png")
    assert (tmp_path / "short_axis.png").stat().st_size > 1000
