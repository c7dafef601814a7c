from __future__ import annotations

import pytest

from benchmarks.quality.report import draw, figures, summarise, table
from benchmarks.quality.run import _halves
from medfm_rl.data.layouts import CaseFile


def cell() -> dict[str, object]:
    """Six cases of three patients; the one method orders them as they are, the other the other way round."""
    dice = [0.95, 0.9, 0.85, 0.7, 0.6, 0.5]
    return {
        "patient_ids": ["a", "a", "b", "b", "c", "c"],
        "dice": dice,
        "limit": 0.8,
        "scores": {"ours": dice, "blind": dice[::-1], "half": [None, None, None, 0.8, 0.7, 0.4]},
        "milliseconds": {"ours": 10.0, "blind": 1.0, "half": 10.0},
        "forward_passes": {"ours": 2, "blind": 1, "half": 2},
        "segmenting_milliseconds": 40.0,
        "batches": {
            "ours": {
                "intervals": [[0.9, 1.0], [0.9, 1.0], [0.9, 1.0], [0.6, 0.8], [0.5, 0.7], None],
                "pixel_ece": 0.02,
                "shift_probability": 0.01,
                "guarantees": {"coverage": "suspended"},
                "verdicts": ["accept", "accept", "refer", "accept", "refer", "refer"],
            }
        },
    }


def test_a_perfect_order_has_no_excess_and_finds_every_failure() -> None:
    found = figures(cell(), "ours")
    assert found["excess_aurc"] == pytest.approx(0)
    assert (found["failures"], found["failure_auroc"], found["fpr_at_95_tpr"]) == (3, 1, 0)
    assert (found["mae"], found["bias"]) == (0, 0)
    assert found["interval_coverage"] == pytest.approx(4 / 5)
    assert found["overhead"] == pytest.approx(0.25)
    assert found["spearman"] == pytest.approx(1)
    assert (found["accepted"], found["accepted_failures"]) == (3, 1)


def test_the_reverse_order_finds_none_and_has_no_interval() -> None:
    found = figures(cell(), "blind")
    assert found["excess_aurc"] > 0.1
    assert (found["failure_auroc"], found["fpr_at_95_tpr"]) == (0, 1)
    assert found["spearman"] == pytest.approx(-1)
    assert "interval_coverage" not in found


def test_a_method_is_measured_on_the_cases_that_it_assessed() -> None:
    found = figures(cell(), "half")
    assert found["cases"] == 3
    # All three are failures: there is nothing to tell apart.
    assert found["failure_auroc"] is None


def test_halves_share_no_patient() -> None:
    files = [CaseFile(f"p{row // 2}_{row}", f"p{row // 2}", ()) for row in range(12)]
    fitted, measured = _halves(files, 0)
    assert sorted(fitted + measured) == list(range(12))
    assert {files[row].patient_id for row in fitted}.isdisjoint({files[row].patient_id for row in measured})


def test_the_summary_is_the_mean_over_cells_then_over_shifts_and_what_is_missing_shows() -> None:
    found = figures(cell(), "ours")
    other = {**found, "excess_aurc": 0.2}
    results = {
        "lungs-hospital": {"none": {"0": {"ours": found}, "1": {"ours": other}}},
        "camus-4ch-2ch": {"none": {"0": {"ours": other}}},
    }
    summary = summarise(results)["excess_aurc"]["ours"]
    assert summary["lungs-hospital"] == pytest.approx(0.1)
    assert summary["mean"] == pytest.approx(0.15)
    text = table(results, ["lungs-hospital", "camus-4ch-2ch", "no-shift"])
    assert "| Lungs Shenzhen to Montgomery | none | ours | 100.0 |" in text
    assert "| suspended | 6 of 12, 2 |" in text
    assert "| CAMUS to CAMUS (no shift) | missing |" in text


def test_every_assessed_mask_is_drawn_at_its_true_and_predicted_dice() -> None:
    figure = draw({"lungs-hospital": {"none": [cell()], "ours": [cell(), cell()]}, "camus-4ch-2ch": {"none": [cell()]}})
    first, second = figure.axes
    assert [len(points.get_offsets()) for points in first.collections] == [6, 12]
    assert first.collections[0].get_offsets()[3].tolist() == [0.7, 0.7]
    assert second.get_xlim()[1] == 1
