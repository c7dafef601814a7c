"""Figures of a month: coverage and width of prediction-powered intervals beside those from reviewed patients alone.

    python -m benchmarks.quality.inference [--tables FOLDER] [--seeds 0 1 2] [--draws 500]
    python -m benchmarks.quality.inference --simulated   # SIMULATED tables: shows the method, measures nothing

A month is as many target patients of a score table as it has, drawn with replacement, so that its intervals are asked
for the mean of the table: 8, 16, 24 or 32 of them are reviewed, mean Dice and failure rate are inferred
(`medfm_rl.quality.month`), and the 95 % intervals hold the table's own mean Dice and failure rate or do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.harness.command_line import add_results, add_runs, add_seeds, begin, plain_parser
from benchmarks.harness.tables import heading, table_row
from benchmarks.quality.score_tables import Row, ScoreTable, add_tables, publish, tables_of
from medfm_rl.quality.month import Estimate, MonthMask, failure_probability, month_mean, month_rate

REVIEWED = (8, 16, 24, 32)
Month = list[tuple[str, Sequence[Row], bool]]
"""Name of a patient, masks, and whether they are reviewed."""


def mean_of(table: ScoreTable, month: Month) -> Estimate:
    """The mean Dice of a month."""
    del table
    return month_mean(
        [
            MonthMask(patient, row.predicted or 0.0, row.dice if seen else None)
            for patient, rows, seen in month
            for row in rows
        ]
    )


def rate_of(table: ScoreTable, month: Month) -> Estimate:
    """Its failure rate."""
    known = [abs((row.predicted or 0.0) - row.dice) for row in table.rows]
    error = max(float(np.mean(known)), 1e-3)
    return month_rate(
        [
            MonthMask(
                patient,
                failure_probability(row.predicted or 0.0, table.limit, error),
                float(row.dice < table.limit) if seen else None,
            )
            for patient, rows, seen in month
            for row in rows
        ]
    )


def measure(table: ScoreTable, reviewed: int, draws: int) -> dict[str, Any]:
    """Coverage and width over months."""
    patients = list(table.of("target").values())
    rows = [row for own in patients for row in own]
    figures: dict[str, tuple[float, Callable[[ScoreTable, Month], Estimate]]] = {
        "mean_dice": (float(np.mean([row.dice for row in rows])), mean_of),
        "failure_rate": (float(np.mean([row.dice < table.limit for row in rows])), rate_of),
    }
    generator = np.random.default_rng([table.seed, reviewed])
    found: dict[str, Any] = {name: {"covered": 0, "labelled_covered": 0, "ratios": []} for name in figures}
    for _ in range(draws):
        drawn = generator.integers(len(patients), size=len(patients))
        month: Month = [(f"p{place}", patients[index], place < reviewed) for place, index in enumerate(drawn)]
        for name, (truth, infer) in figures.items():
            estimate = infer(table, month)
            found[name]["covered"] += estimate.low <= truth <= estimate.high
            found[name]["labelled_covered"] += estimate.labelled_low <= truth <= estimate.labelled_high
            found[name]["ratios"].append(estimate.width_ratio)
    return {
        name: {
            "coverage": values["covered"] / draws,
            "labelled_coverage": values["labelled_covered"] / draws,
            "width_ratio": float(np.mean(values["ratios"])),
        }
        for name, values in found.items()
    }


def main() -> None:
    parser = plain_parser(__doc__)
    add_runs(parser)
    add_seeds(parser)
    add_tables(parser)
    add_results(parser)
    parser.add_argument("--draws", type=int, default=500, help="months")
    arguments = parser.parse_args()
    started_in = begin(arguments)
    tables = tables_of(arguments)
    results = {
        table.name: {str(k): measure(table, k, arguments.draws) for k in REVIEWED if k < len(table.of("target"))}
        for table in tables
    }
    cells = [found["16"] for found in results.values() if "16" in found]
    summary = {
        key: {figure: float(np.mean([cell[figure][of] for cell in cells])) for figure in ("mean_dice", "failure_rate")}
        for key, of in (("ppi_width_ratio", "width_ratio"), ("ppi_coverage", "coverage"))
        if cells
    }
    lines = [
        *heading("Figures of a month", False),
        "| masks | reviewed | mean Dice: covered | labelled | width | failures: covered | labelled | width |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        for k, values in found.items():
            shown = [
                text
                for figure in values.values()
                for text in (
                    f"{figure['coverage']:.1%}",
                    f"{figure['labelled_coverage']:.1%}",
                    f"{figure['width_ratio']:.2f}",
                )
            ]
            lines.append(table_row([name, k, *shown]))
    publish(arguments, "quality_inference", started_in, results, summary, lines)


if __name__ == "__main__":
    main()
