from __future__ import annotations

from benchmarks.harness.tables import MEANINGLESS, heading, interval, table_row


def test_an_interval_shows_signs_and_digits() -> None:
    difference = {"mean": 0.01234, "low": -0.0021, "high": 0.0304}
    assert interval(difference) == "+0.012 [-0.002, +0.030]"
    assert interval(difference, 4) == "+0.0123 [-0.0021, +0.0304]"


def test_a_heading_says_where_the_figures_mean_nothing() -> None:
    assert heading("Title", trial=False) == ["# Title", ""]
    assert heading("Title", trial=True) == ["# Title", "", MEANINGLESS, ""]


def test_a_row_has_a_bar_on_either_side_of_each_cell() -> None:
    assert table_row(["a", "", "c"]) == "| a |  | c |"
