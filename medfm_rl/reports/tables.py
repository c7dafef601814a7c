"""Tables that the command line prints, and the result in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.markup import escape
from rich.table import Table

from medfm_rl.metrics.bootstrap import PairedDifference
from medfm_rl.metrics.scores import StructureSummary
from medfm_rl.quality.model import QualityModel


@dataclass(frozen=True)
class TableRow:
    """One structure in the comparison of source and adapted model.

    Attributes:
        structure: Name, or "mean".
        before: Mean Dice of the source model.
        after: Mean Dice of the adapted model.
        difference: Paired, with its interval.
        hd95_before: Mean HD95 of the source model, with its unit.
        hd95_after: Mean HD95 of the adapted model, with its unit.
    """

    structure: str
    before: float
    after: float
    difference: PairedDifference
    hd95_before: str
    hd95_after: str


def verdict(rows: Sequence[TableRow]) -> str:
    """The result in one sentence; it says so where there is no gain."""
    if not rows:
        return "No ground truth was given: nothing is known about the gain."
    mean = rows[-1]
    change = mean.difference
    span = (
        f"{100 * change.mean:+.1f} Dice points (95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f}, "
        f"{change.patients} patients)"
    )
    scores = f"from {mean.before:.3f} to {mean.after:.3f}"
    if change.low > 0:
        return f"The adapted model is better than the source model: {scores}, {span}."
    if change.high < 0:
        return f"The adapted model is worse than the source model: {scores}, {span}."
    return f"No difference could be shown between the adapted and the source model: {scores}, {span}."


def comparison_table(rows: Sequence[TableRow], title: str, names: tuple[str, str] = ("source", "adapted")) -> Table:
    """The comparison for the terminal; `names` are those of the two models."""
    table = Table(title=escape(title))
    first, second = names
    for name in ("structure", first, second, "difference [95 % interval]", f"HD95 {first}", f"HD95 {second}"):
        table.add_column(escape(name), overflow="fold", justify="left" if name == "structure" else "right")
    for row in rows:
        change = row.difference
        table.add_row(
            escape(row.structure),
            f"{row.before:.3f}",
            f"{row.after:.3f}",
            f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]",
            row.hd95_before,
            row.hd95_after,
        )
    return table


def summary_table(summaries: Sequence[StructureSummary], title: str) -> Table:
    """The scores of one model for the terminal."""
    table = Table(title=escape(title))
    for name in ("structure", "cases", "Dice", "10th percentile", "HD95", "ASSD", "no distance", "valid"):
        table.add_column(name, justify="left" if name == "structure" else "right")
    for row in summaries:
        distances = ("-", "-") if np.isnan(row.hd95) else (f"{row.hd95:.2f} {row.unit}", f"{row.assd:.2f} {row.unit}")
        table.add_row(
            escape(row.structure),
            str(row.cases),
            f"{row.dice:.3f}",
            f"{row.dice_p10:.3f}",
            *distances,
            str(row.undefined),
            f"{100 * row.validity:.0f} %",
        )
    return table


def calibration_table(model: QualityModel) -> Table:
    """The finding of a calibration, for the terminal: the errors are on patients that it was not fitted on."""
    table = Table(title=escape(f"Quality model: {model.origin}, {model.patients} patients"))
    for name in ("structure", "prediction", "mean error", "bias", "interval at Dice 0.9"):
        table.add_column(name, justify="left" if name in ("structure", "prediction") else "right")
    for name, item in model.structures.items():
        low, high = item.interval(0.9)
        kind = "mean of the structures" if item.predictor is None else item.predictor.kind
        error = "unknown" if item.error is None else f"{item.error:.3f}"
        bias = "unknown" if item.bias is None else f"{item.bias:+.3f}"
        table.add_row(escape(name), kind, error, bias, f"{low:.2f} to {high:.2f}")
    return table
