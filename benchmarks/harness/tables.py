"""Pieces of the Markdown tables that several benchmarks write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MEANINGLESS = "**A trial with budgets cut to a few steps and patients: these numbers mean nothing.**"


def heading(title: str, trial: bool) -> list[str]:
    """The first lines of a table, which say where the figures mean nothing."""
    return [f"# {title}", "", *([MEANINGLESS, ""] if trial else [])]


def table_row(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def interval(difference: Mapping[str, float], digits: int = 3) -> str:
    """A mean difference with the ends of its interval, as `paired_bootstrap` gives them."""
    mean, low, high = (f"{difference[key]:+.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
