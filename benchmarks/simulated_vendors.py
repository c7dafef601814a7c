"""The demo for several seeds: adaptation between two SIMULATED vendors, on drawn echo.

    python benchmarks/simulated_vendors.py [--seeds 0 1 2] [--runs benchmarks/runs/simulated_vendors]

It needs no data and no download. Of the first seed it also draws one held-out case, the one whose gain is the median,
into `results/simulated_vendors.png`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from recording import RESULTS, environment, quiet, write_results

from medfm_rl.adapters.loading import load_segmenter
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import find_cases
from medfm_rl.metrics.scores import MEAN
from medfm_rl.reports.adaptation import case_figure
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.models import load_model
from medfm_rl.settings import DataSettings, TorchSettings
from medfm_rl.workflows.adapt.final_report import show_case
from medfm_rl.workflows.demo import run_demo
from medfm_rl.workflows.evaluate.comparison import Comparison


def run_seed(seed: int, folder: Path, picture: Path | None) -> dict[str, object]:
    result_file = folder.with_name(f"{folder.name}.json")
    if result_file.exists():
        return dict(json.loads(result_file.read_text()))
    if folder.exists():
        raise SystemExit(f"{folder}: delete it; a demo that goes on would not time what was done before")
    start = time.perf_counter()
    comparison = run_demo(folder, seed, quiet)
    minutes = (time.perf_counter() - start) / 60
    if picture is not None:
        draw_median_case(folder, comparison, picture)
    result: dict[str, object] = {
        "before": [asdict(row) for row in comparison.before.summary],
        "after": [asdict(row) for row in comparison.after.summary],
        "gain": {name: asdict(value) for name, value in comparison.differences.items()},
        "minutes": minutes,
    }
    write_json(result_file, result)
    return result


def draw_median_case(folder: Path, comparison: Comparison, picture: Path) -> None:
    before, after = (
        np.array([score.dice for score in evaluation.of(MEAN)]) for evaluation in (comparison.before, comparison.after)
    )
    index = int(np.argsort(after - before)[len(after) // 2])
    file = find_cases(DataSettings(path=folder / "data" / "vendor-b-held-out"))[index]
    source, adapted = (
        load_segmenter(TorchSettings(folder=folder / "source-model")),
        load_model(RunFolder(folder / "run").path),
    )
    case = show_case(source, adapted, file, (before[index], after[index]))
    picture.parent.mkdir(exist_ok=True)
    case_figure(case, source.schema, simulated=True).savefig(picture, dpi=90, bbox_inches="tight", facecolor="white")


def summarise(results: list[dict[str, object]]) -> dict[str, object]:
    return {
        "source_dice": [result["before"][-1]["dice"] for result in results],  # type: ignore[index]
        "adapted_dice": [result["after"][-1]["dice"] for result in results],  # type: ignore[index]
        "gain_ci_low": [result["gain"][MEAN]["low"] for result in results],  # type: ignore[index]
        "minutes": [result["minutes"] for result in results],
    }


def table(seeds: list[int], results: list[dict[str, object]]) -> str:
    lines = [
        "# The demo: simulated cart -> simulated vintage (both vendors are simulated)",
        "",
        "Mean Dice over LV, MYO and LA on 25 held-out patients (100 frames); intervals: 95 %, bootstrap over patients.",
        "",
        "| seed | source | adapted | gain [interval] | 10th percentile before, after | valid before, after | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, result in zip(seeds, results, strict=True):
        before, after = result["before"][-1], result["after"][-1]  # type: ignore[index]
        gain = result["gain"][MEAN]  # type: ignore[index]
        lines.append(
            f"| {seed} | {before['dice']:.3f} | {after['dice']:.3f} "
            f"| {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] "
            f"| {before['dice_p10']:.3f}, {after['dice_p10']:.3f} "
            f"| {before['validity']:.2f}, {after['validity']:.2f} | {result['minutes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs" / "simulated_vendors")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    started_in = environment()
    results = []
    for seed in arguments.seeds:
        print(f"seed {seed}", flush=True)
        picture = RESULTS / "simulated_vendors.png" if seed == arguments.seeds[0] else None
        results.append(run_seed(seed, arguments.runs / f"seed-{seed}", picture))
    write_results(
        "simulated_vendors", started_in, arguments.seeds, results, summarise(results), table(arguments.seeds, results)
    )


if __name__ == "__main__":
    main()
