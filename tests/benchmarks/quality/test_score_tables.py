"""Replays, drift and inference from score tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.quality import drift, inference, replays
from benchmarks.quality.score_tables import Row, ScoreTable, find_tables, simulated, table_file


def rows(domain: str, patients: int, dice: float, distance: float = 1.0, predicted: float | None = 0.9) -> list[Row]:
    return [
        Row(domain, f"{domain}{n}", dice, predicted, "accept", True, distance + 0.001 * n, 0.9 + 0.0001 * n, 0)
        for n in range(patients)
    ]


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    table = simulated("few failures", 0, 0.05, 0.8, patients=10)
    table.write(table_file(tmp_path, table.shift, table.model, 0))
    assert find_tables(tmp_path) == [table]
    assert "SIMULATED" in table.name
    assert len(table.of("target")) == len(table.of("source")) == 10


def test_replays_of_good_masks_accept_all_of_them_once_enough_are_reviewed() -> None:
    table = ScoreTable("s", "m", 0, 0.8, True, tuple(rows("target", 40, 0.9)))
    found = replays.measure(table, 5)["replays"]
    assert {k: found[k]["accepted_share"] for k in ("0", "16", "24")} == {"0": 1.0, "16": 0.0, "24": 1.0}
    assert found["24"]["promise_broken_share"] == 0
    bad = ScoreTable("s", "m", 0, 0.8, True, tuple(rows("target", 40, 0.5)))
    found = replays.measure(bad, 5)["replays"]
    assert found["24"]["accepted_share"] == 0
    assert found["0"]["promise_broken_share"] == 1


def test_a_change_is_noticed_soon_and_none_is_seen_where_there_is_none() -> None:
    changed = ScoreTable("s", "m", 0, 0.8, True, (*rows("source", 30, 0.9), *rows("target", 30, 0.9, distance=5.0)))
    late, signal = drift.delay(changed, 60, False, 0)
    assert 0 < late <= 15
    assert signal == "appearance"
    same = replace(changed, rows=(*rows("source", 30, 0.9), *rows("target", 30, 0.9)))
    assert drift.delay(same, 60, False, 0) == (drift.MOST, None)


def test_intervals_of_a_month_hold_the_mean_and_are_narrower_with_good_predictions() -> None:
    table = simulated("few failures", 0, 0.1, 0.95, patients=60)
    found = inference.measure(table, 16, 60)
    assert found["mean_dice"]["coverage"] >= 0.85
    assert found["mean_dice"]["width_ratio"] < 0.8


@pytest.mark.parametrize("module", [replays, drift, inference])
def test_each_program_shows_simulated_tables_and_keeps_nothing(
    module: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {replays: "--replays", drift: "--streams", inference: "--draws"}[module]
    monkeypatch.setattr(drift, "QUIET", 30)
    monkeypatch.setattr("sys.argv", ["x", "--simulated", "--seeds", "0", few, "2"])
    module.main()  # type: ignore[attr-defined]
    assert "SIMULATED" in capsys.readouterr().out
