"""Panels with one row for each method, as the reports of several benchmarks draw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def dress(panel: Any, names: Sequence[str], title: str) -> None:
    """Gives a panel whose rows are methods its title, names and lines."""
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_title(title, fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(axis="x", labelsize=7)
    panel.grid(axis="x", color="#dddddd", linewidth=0.5)
    panel.set_axisbelow(True)


def mark_missing(panel: Any, place: int, text: str = "missing") -> None:
    """Says in a row that there is nothing to show, or why it is not drawn."""
    panel.annotate(text, (0.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=7)


def save(figure: Figure, label: str, trial: bool, path: Path) -> None:
    """Writes a figure with the label of its horizontal axes, and says where it means nothing."""
    figure.supxlabel(f"TRIAL, means nothing: {label}" if trial else label, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white")
