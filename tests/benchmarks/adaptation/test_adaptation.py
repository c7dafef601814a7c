from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.adaptation.cells import (
    OURS,
    UPPER,
    Cell,
    Scores,
    difference,
    gap_recovered,
    harm_rate,
    measure,
    read_cells,
)
from benchmarks.adaptation.methods import Stopwatch
from benchmarks.adaptation.report import best_baseline, describe_shift, draw, read_shifts, summarise, table
from benchmarks.harness.recording import RESULTS
from benchmarks.harness.shifts import NO_SHIFT, SHIFTS
from medfm_rl.anatomy.discs import Discs
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.layouts import find_cases
from medfm_rl.settings import DataSettings
from medfm_rl.types import LabelSchema

PATIENTS = ("p1", "p1", "p2", "p3")
MakeCell = Callable[..., Cell]


def scores(dice: list[float], valid: bool = True) -> Scores:
    names = tuple(f"{patient}_{number}" for number, patient in enumerate(PATIENTS))
    values = {"lung": dice, "mean": dice}
    return Scores(names, PATIENTS, values, {"lung": [1.0] * 4, "mean": [1.0] * 4}, (valid,) * 4, ())


def cell(dice: list[float], harm: float = 0.0, regret: float | None = None, seconds: float = 60.0) -> Cell:
    selection = None if regret is None else {"chosen": "a", "regret": regret, "hindsight_dice": {"a": 0.5}}
    return Cell(scores(dice), scores(dice), harm, seconds, selection, "commit")


def test_seeds_are_averaged_case_by_case_before_patients_are_drawn() -> None:
    before = {0: cell([0.5, 0.5, 0.5, 0.5]), 1: cell([0.5, 0.5, 0.5, 0.5])}
    # Each case gains .1 on average over the seeds, whatever each seed does: no patient differs from another.
    after = {0: cell([0.9, 0.3, 0.6, 0.5]), 1: cell([0.3, 0.9, 0.6, 0.7])}
    found = difference(before, after)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    # The patients are counted once, not once for each seed.
    assert found.patients == 3


def test_only_the_seeds_that_both_have_are_compared() -> None:
    before = {0: cell([0.5] * 4), 1: cell([0.1] * 4)}
    found = difference(before, {0: cell([0.6] * 4), 2: cell([0.9] * 4)})
    assert found is not None
    assert found.mean == pytest.approx(0.1)
    assert difference(before, {2: cell([0.9] * 4)}) is None


def test_cells_of_other_cases_are_not_compared() -> None:
    other = cell([0.5] * 4)
    renamed = Scores(("a", "b", "c", "d"), PATIENTS, other.held_out.dice, other.held_out.hd95, other.held_out.valid, ())
    with pytest.raises(ValueError, match="other cases"):
        difference({0: other}, {0: Cell(renamed, renamed, 0.0, 0.0, None, "commit")})
    with pytest.raises(ValueError, match="other cases"):
        harm_rate(other.held_out, renamed)


def test_the_gap_is_a_share_of_what_the_upper_bound_gains() -> None:
    none, upper = {0: cell([0.8] * 4)}, {0: cell([0.9] * 4)}
    assert gap_recovered({0: cell([0.86] * 4)}, none, upper) == pytest.approx(0.6)
    assert gap_recovered({0: cell([0.78] * 4)}, none, upper) == pytest.approx(-0.2)


def test_the_gap_is_unknown_where_the_upper_bound_is_no_higher_or_missing() -> None:
    assert gap_recovered({0: cell([0.9] * 4)}, {0: cell([0.8] * 4)}, {0: cell([0.8] * 4)}) is None
    assert gap_recovered({0: cell([0.9] * 4)}, {0: cell([0.8] * 4)}, {}) is None


def test_harm_is_a_loss_of_more_than_one_point() -> None:
    before = scores([0.900, 0.900, 0.900, 0.900])
    assert harm_rate(before, scores([0.895, 0.880, 0.950, 0.100])) == 0.5


def test_the_best_baseline_is_the_one_that_ours_is_least_ahead_of() -> None:
    methods = {
        "none": {0: cell([0.5] * 4)},
        "weak": {0: cell([0.4] * 4)},
        "strong": {0: cell([0.7] * 4)},
        "absent": {},
        OURS: {0: cell([0.65] * 4)},
        UPPER: {0: cell([0.9] * 4)},
    }
    found = best_baseline(methods)
    assert found is not None
    assert (found["baseline"], found["baselines_compared"]) == ("strong", 3)
    assert found["mean"] == pytest.approx(-0.05)
    assert best_baseline({"none": {}, OURS: {}}) is None


@pytest.fixture
def results() -> dict[str, dict[str, Any]]:
    """Everything of two shifts but `rl4seg`, and one seed less of ours on the second."""
    cells: dict[str, dict[str, dict[int, Cell]]] = {}
    for shift in ("camus-handheld", NO_SHIFT):
        cells[shift] = {
            "none": {seed: cell([0.8, 0.8, 0.8, 0.8]) for seed in (0, 1)},
            "rl4seg": {},
            OURS: {seed: cell([0.85, 0.87, 0.86, 0.85], 0.25, 0.002, 600 + 60 * seed) for seed in (0, 1)},
            UPPER: {seed: cell([0.9] * 4) for seed in (0, 1)},
        }
    del cells[NO_SHIFT][OURS][1]
    return {shift: describe_shift(shift, of_shift, (0, 1), None, {}) for shift, of_shift in cells.items()}


def test_the_summary_has_the_figures_by_shift(results: dict[str, dict[str, Any]]) -> None:
    summary = summarise(results)
    assert set(summary) == {
        "gap_recovered",
        "gap_recovered_mean",
        "ahead_of_all",
        "harm_rate",
        "selection_regret",
        "no_shift_change",
        "minutes_shift1",
    }
    # (.8575 - .8) / (.9 - .8)
    assert summary["gap_recovered"] == {"camus-handheld": pytest.approx(0.575)}
    assert summary["gap_recovered_mean"] == pytest.approx(0.575)
    assert summary["ahead_of_all"]["camus-handheld"]["baseline"] == "none"
    assert summary["harm_rate"] == {"camus-handheld": 0.25}
    assert summary["selection_regret"] == {"camus-handheld": pytest.approx(0.002)}
    assert summary["no_shift_change"] == pytest.approx(0.0575)
    assert summary["minutes_shift1"] == pytest.approx(10.5)
    json.dumps(summary, allow_nan=False)


def test_a_mean_over_shifts_is_not_given_while_one_is_missing(results: dict[str, dict[str, Any]]) -> None:
    nothing: dict[str, dict[int, Cell]] = {name: {} for name in results[NO_SHIFT]["methods"]}
    results["lungs-hospital"] = describe_shift("lungs-hospital", nothing, (0, 1), None, {})
    summary = summarise(results)
    assert summary["gap_recovered"]["lungs-hospital"] is None
    assert summary["gap_recovered_mean"] is None
    assert summary["ahead_of_all"]["lungs-hospital"] is None


def test_missing_cells_are_shown_and_rows_have_the_columns_of_their_header(results: dict[str, dict[str, Any]]) -> None:
    text = table(results, quick=False)
    assert "| rl4seg | missing |" in text
    assert "(missing: 1)" in text
    assert "SIMULATED" in text
    for block in text.split("## ")[1:]:
        assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) == 1


def test_a_trial_says_that_it_is_one(results: dict[str, dict[str, Any]]) -> None:
    assert "mean nothing" in table(results, quick=True)
    assert "mean nothing" not in table(results, quick=False)


def test_the_figure_is_drawn_with_methods_missing(results: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    draw(results, False, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_shifts_of_an_earlier_report_are_read_as_they_were_written(
    results: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    assert read_shifts(tmp_path / "adaptation.json") == {}
    written = json.dumps({"results": {"shifts": results}})
    (tmp_path / "adaptation.json").write_text(written)
    again = read_shifts(tmp_path / "adaptation.json")
    assert table(again, quick=False) == table(results, quick=False)
    assert summarise(again) == summarise(results)


def test_a_report_goes_on_from_the_record_that_is_kept_under_the_names_of_before() -> None:
    path = RESULTS / "adaptation.json"
    recorded = json.loads(path.read_text())["results"]["shifts"]
    shifts = read_shifts(path)
    assert shifts.keys() == recorded.keys()
    for name, found in shifts.items():
        before, now = recorded[name]["ahead_of_all"], found["ahead_of_all"]
        assert (now["baseline"], now["baselines_compared"]) == (before["rival"], before["rivals_compared"])
        assert now["mean"] == before["mean"]
    assert summarise(shifts)["gap_recovered"]["lungs-hospital"] == pytest.approx(0.63, abs=0.005)


def test_scores_survive_their_file() -> None:
    disks = (Discs(3.0, (1.0, 2.0)), None, Discs(1.5, (0.5,)), None)
    before = Scores(
        ("a", "b", "c", "d"),
        PATIENTS,
        {"mean": [0.1, 0.2, 0.3, 0.4]},
        {"mean": [1.0, 2.0, 3.0, 4.0]},
        (True,) * 4,
        disks,
    )
    after = Scores.from_json(json.loads(json.dumps(before.to_json(), allow_nan=False)))
    assert after == before
    unknown = Scores(("a",), ("p",), {"mean": [0.1]}, {"mean": [float("nan")]}, (False,), ())
    assert np.isnan(Scores.from_json(json.loads(json.dumps(unknown.to_json(), allow_nan=False))).hd95["mean"][0])


def test_experts_masks_score_one_and_have_their_ventricle_measured(simulated_echo: Path) -> None:
    schema = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})
    files = find_cases(DataSettings(path=simulated_echo / "a"))
    masks = {file.case_id: file.read_labelled(schema).ground_truth for file in files}
    found = measure(lambda case: masks[case.case_id], files, load_anatomy("generic", schema), True)
    assert (found.mean_dice == 1).all()
    assert np.array_equal(found.hd95["mean"], np.zeros(len(files)))
    assert len(found.disks) == len(files)
    assert all(item is not None for item in found.disks)
    assert list(found.dice) == ["LV", "MYO", "LA", "mean"]


def test_only_complete_cells_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "cells" / "no-shift" / OURS / "seed-0"
    (folder / "run").mkdir(parents=True)
    assert read_cells(tmp_path, list(SHIFTS), [OURS], [0, 1])["no-shift"] == {OURS: {}}


def test_a_stopwatch_goes_on_from_what_was_spent(tmp_path: Path) -> None:
    path = tmp_path / "elapsed.json"
    path.write_text('{"seconds": 100.0}')
    assert 100.0 <= Stopwatch(path).seconds < 110.0
    assert Stopwatch(tmp_path / "other.json").seconds < 10.0
