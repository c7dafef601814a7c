"""Figures and table of the benchmark on drawn hearts in short axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness.tables import heading, interval, table_row
from medfm_rl.metrics.failure_detection import excess_aurc, failure_auroc
from medfm_rl.metrics.scores import MEAN

FAILED_BELOW = 0.7
"""Mean Dice below which a mask is a failure."""


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that others quote."""
    return {
        "source_dice": [result["summaries"]["source"][-1]["dice"] for result in results],
        "adapted_dice": [result["summaries"]["adapted"][-1]["dice"] for result in results],
        "upper_dice": [result["summaries"]["upper"][-1]["dice"] for result in results],
        "gain_ci_low": [result["gain"][MEAN]["low"] for result in results],
        "harm_rate": [result["harmed"] for result in results],
        "failure_auroc": [detection(result["assessed"])["failure_auroc"] for result in results],
        "excess_aurc": [detection(result["assessed"])["excess_aurc"] for result in results],
        "minutes": [result["minutes"] for result in results],
    }


def detection(assessed: Mapping[str, Any]) -> dict[str, float | None]:
    """How well the masks of both models are told apart, good from bad."""
    truth = np.concatenate([part["dice"] for part in assessed.values()])
    scores = np.concatenate([part["predicted"] for part in assessed.values()])
    return {
        "failure_auroc": failure_auroc(scores, truth < FAILED_BELOW),
        "excess_aurc": excess_aurc(scores, 1 - truth),
    }


def table(seeds: Sequence[int], results: Sequence[Mapping[str, Any]], patients: int) -> str:
    """Markdown: gains, then how well the masks were assessed; `patients` were held out."""
    lines = [
        *heading(
            "3-D: simulated bright-blood MR -> simulated faint-blood MR (both scanners are simulated)", trial=False
        ),
        f"Mean Dice over RV, MYO and LV on {patients} held-out patients ({2 * patients} volumes); intervals: "
        "95 %, bootstrap over patients. Harmed: share of volumes that lost more than a point. Minutes: the adaptation "
        "alone.",
        "",
        "| seed | source | adapted | gain [interval] | trained on target labels | 10th percentile before, after "
        "| HD95 before, after (mm) | valid before, after | harmed | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, result in zip(seeds, results, strict=True):
        rows = {name: summary[-1] for name, summary in result["summaries"].items()}
        before, after, gain = rows["source"], rows["adapted"], result["gain"][MEAN]
        cells = [
            str(seed),
            f"{before['dice']:.3f}",
            f"{after['dice']:.3f}",
            interval(gain),
            f"{rows['upper']['dice']:.3f}",
            f"{before['dice_p10']:.3f}, {after['dice_p10']:.3f}",
            f"{_number(before['hd95'])}, {_number(after['hd95'])}",
            f"{before['validity']:.2f}, {after['validity']:.2f}",
            f"{100 * result['harmed']:.0f} %",
            _number(result["minutes"]),
        ]
        lines.append(table_row(cells))
    lines += [
        "",
        f"Assessed without ground truth by the run's own `quality.json`, masks of both models; failures: Dice below "
        f"{FAILED_BELOW}.",
        "",
        "| seed | failure AUROC | excess AURC | batch: source, adapted | accepted: source, adapted "
        "| seconds per volume | memory of the process (MiB) |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, result in zip(seeds, results, strict=True):
        assessed, found = result["assessed"], detection(result["assessed"])
        auroc = found["failure_auroc"]
        accepted = [f"{part['verdicts'].count('accept')} of {len(part['verdicts'])}" for part in assessed.values()]
        lines.append(
            f"| {seed} | {'not defined' if auroc is None else f'{auroc:.3f}'} | {found['excess_aurc']:.4f} "
            f"| {', '.join(part['state'] for part in assessed.values())} | {', '.join(accepted)} "
            f"| {assessed['adapted']['seconds_per_case']:.2f} | {result['peak_memory_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1f}"
