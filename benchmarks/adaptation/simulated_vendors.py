"""The demo for several seeds: adaptation between two SIMULATED vendors, on drawn echo.

    python -m benchmarks.adaptation.simulated_vendors [--seeds 0 1 2] [--runs FOLDER]

It needs no data and no download. Of the first seed it also draws one held-out case, the one whose gain is the median,
into `results/simulated_vendors.png`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.command_line import add_runs, add_seeds, begin, plain_parser
from benchmarks.harness.laboratory import files_of
from benchmarks.harness.pictures import draw_median_case
from benchmarks.harness.recording import RESULTS, RUNS, once, quiet, write_results
from benchmarks.harness.tables import heading, interval, table_row
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.metrics.scores import MEAN
from medfm_rl.runs.finished import load_run
from medfm_rl.workflows.demo import run_demo


def run_seed(seed: int, folder: Path, picture: Path | None) -> dict[str, Any]:
    """Runs the demo and measures it; what was measured before is read again."""

    def measure() -> dict[str, Any]:
        if folder.exists():
            raise SystemExit(f"{folder}: delete it; a demo that goes on would not time what was done before")
        began = time.perf_counter()
        comparison = run_demo(folder, seed, quiet).comparison
        minutes = (time.perf_counter() - began) / 60
        if picture is not None:
            source = TorchModuleAdapter.load(folder / "source-model")
            files = files_of(folder / "data" / "vendor-b-held-out")
            draw_median_case(source, load_run(folder / "run", "cpu"), files, comparison, picture)
        return {
            "before": [asdict(row) for row in comparison.before.summary],
            "after": [asdict(row) for row in comparison.after.summary],
            "gain": {name: asdict(value) for name, value in comparison.differences.items()},
            "minutes": minutes,
        }

    return once(folder.with_name(f"{folder.name}.json"), measure)


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that others quote."""
    return {
        "source_dice": [result["before"][-1]["dice"] for result in results],
        "adapted_dice": [result["after"][-1]["dice"] for result in results],
        "gain_ci_low": [result["gain"][MEAN]["low"] for result in results],
        "minutes": [result["minutes"] for result in results],
    }


def table(seeds: Sequence[int], results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a row for each seed."""
    lines = [
        *heading("The demo: simulated cart -> simulated vintage (both vendors are simulated)", trial=False),
        "Mean Dice over LV, MYO and LA on 25 held-out patients (100 frames); intervals: 95 %, bootstrap over patients.",
        "",
        "| seed | source | adapted | gain [interval] | 10th percentile before, after | valid before, after | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, result in zip(seeds, results, strict=True):
        before, after = result["before"][-1], result["after"][-1]
        cells = [
            str(seed),
            f"{before['dice']:.3f}",
            f"{after['dice']:.3f}",
            interval(result["gain"][MEAN]),
            f"{before['dice_p10']:.3f}, {after['dice_p10']:.3f}",
            f"{before['validity']:.2f}, {after['validity']:.2f}",
            f"{result['minutes']:.1f}",
        ]
        lines.append(table_row(cells))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = plain_parser(__doc__)
    add_runs(parser)
    add_seeds(parser)
    arguments = parser.parse_args()
    started_in = begin(arguments)
    runs: Path = arguments.runs or RUNS / "simulated_vendors"
    results = []
    for seed in arguments.seeds:
        print(f"seed {seed}", flush=True)
        picture = RESULTS / "simulated_vendors.png" if seed == arguments.seeds[0] else None
        results.append(run_seed(seed, runs / f"seed-{seed}", picture))
    text = table(arguments.seeds, results)
    write_results("simulated_vendors", started_in, arguments.seeds, results, summarise(results), text)


if __name__ == "__main__":
    main()
