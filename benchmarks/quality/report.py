"""From the cells of quality control to its figures, its table and its picture."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.feedback.cells import NONE, OURS
from benchmarks.harness.assessing import patient_bootstrap
from benchmarks.harness.recording import RESULTS, write_results
from benchmarks.harness.shifts import TITLES
from benchmarks.harness.tables import table_row
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.ultrasound.phantom import ECHO_SCHEMA, draw_heart, draw_phantom
from medfm_rl.metrics import failure_detection as detection

MODELS = (NONE, OURS)
COLOURS = {NONE: "tab:orange", OURS: "tab:blue"}
NAMES = {NONE: "masks of the source model", OURS: "masks of the adapted model"}
DRAWN = "ours"
"""The predicted Dice that is drawn: that of the run's own quality.json."""


@dataclass(frozen=True)
class Asked:
    """Which cells a report is of.

    Attributes:
        shifts: Their names.
        seeds: Of the models.
        reviewed: Patients whose masks the adapted models knew.
    """

    shifts: Sequence[str]
    seeds: Sequence[int]
    reviewed: int = 0


def cell_file(runs: Path, shift: str, model: str, seed: int, reviewed: int = 0) -> Path:
    return runs / "quality-cells" / f"{reviewed}-reviewed" / shift / model / f"seed-{seed}.json"


def table_name(model: str, reviewed: int) -> str:
    """Whose masks a score table is of, and which run assessed them."""
    return model if reviewed == 0 else f"{model}, {reviewed} reviewed"


def figures(cell: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The measurements of one method in one cell, on the cases that it assessed."""
    kept = [row for row, value in enumerate(cell["scores"][method]) if value is not None]
    score = np.array([cell["scores"][method][row] for row in kept])
    truth = np.array([cell["dice"][row] for row in kept])
    patients = [cell["patient_ids"][row] for row in kept]
    failed = truth < cell["limit"]
    low, high = patient_bootstrap(lambda rows: detection.excess_aurc(score[rows], 1 - truth[rows]), patients)
    found: dict[str, Any] = {
        "cases": len(kept),
        "failures": int(failed.sum()),
        "aurc": detection.aurc(score, 1 - truth),
        "excess_aurc": detection.excess_aurc(score, 1 - truth),
        "excess_aurc_low": low,
        "excess_aurc_high": high,
        "augrc": detection.augrc(score, 1 - truth),
        "pearson": _correlation(score, truth),
        "spearman": _correlation(score.argsort().argsort(), truth.argsort().argsort()),
        "failure_auroc": detection.failure_auroc(score, failed),
        "fpr_at_95_tpr": detection.false_positive_rate(score, failed),
        "ms_per_case": cell["milliseconds"][method],
        "forward_passes": cell["forward_passes"][method],
        "overhead": cell["milliseconds"][method] / cell["segmenting_milliseconds"],
    }
    batch = cell["batches"].get(method)
    if batch is not None:
        intervals = [(row, ends) for row, ends in enumerate(batch["intervals"]) if ends is not None]
        found |= {
            "mae": float(np.abs(score - truth).mean()),
            "bias": float((score - truth).mean()),
            "pixel_ece": batch["pixel_ece"],
            "shift_probability": batch["shift_probability"],
            "guarantees": batch["guarantees"],
            "accepted": batch["verdicts"].count("accept"),
            "accepted_failures": sum(
                verdict == "accept" and bool(bad) for verdict, bad in zip(batch["verdicts"], failed, strict=True)
            ),
        }
        if intervals:
            ends = np.array([pair for _, pair in intervals])
            covered = detection.interval_coverage(
                ends[:, 0], ends[:, 1], np.array([cell["dice"][row] for row, _ in intervals])
            )
            found |= {"interval_coverage": covered.share, "interval_width": covered.width}
    return found


def _correlation(one: Any, two: Any) -> float | None:
    return None if np.ptp(one) == 0 or np.ptp(two) == 0 else float(np.corrcoef(one, two)[0, 1])


def rules_milliseconds() -> dict[str, float]:
    """Time of all rules of `echo_apical` on a drawn heart and on noise of 256 x 256, best of ten."""
    anatomy = load_anatomy("echo_apical", ECHO_SCHEMA)
    generator = np.random.default_rng(0)
    _, heart, _ = draw_phantom(draw_heart(generator), "4CH", "ED", (256, 256), generator)

    def best(mask: Any) -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            anatomy.check(mask, (0.5, 0.5))
            times.append(time.perf_counter() - start)
        return 1000 * min(times)

    noise = generator.integers(0, 4, (256, 256), dtype=np.uint8)
    return {"rules_ms_256": best(heart), "rules_ms_256_noise": best(noise)}


def report(runs: Path, asked: Asked, started_in: dict[str, Any], name: str) -> None:
    """Writes results and table from the cells that there are."""
    results: dict[str, Any] = {}
    cells: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for shift in asked.shifts:
        for model in MODELS:
            for seed in asked.seeds:
                path = cell_file(runs, shift, model, seed, asked.reviewed)
                if path.exists():
                    cell = json.loads(path.read_text())
                    found = {method: figures(cell, method) for method in cell["scores"]}
                    results.setdefault(shift, {}).setdefault(model, {})[str(seed)] = found
                    cells.setdefault(shift, {}).setdefault(model, []).append(cell)
    summary = {**summarise(results), **rules_milliseconds()}
    write_results(name, started_in, list(asked.seeds), results, summary, table(results, asked.shifts))
    if cells:
        draw(cells).savefig(RESULTS / f"{name}.png", dpi=110)


def draw(cells: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Figure:
    """Predicted against true mean Dice of every mask, a panel for each shift; quadrants at the limit of a failure."""
    figure = Figure(figsize=(3.4 * len(cells), 3.9), layout="constrained")
    for column, (shift, models) in enumerate(cells.items(), 1):
        axes = figure.add_subplot(1, len(cells), column)
        lowest = 1.0
        for model, of_seeds in models.items():
            pairs = [
                (truth, score)
                for cell in of_seeds
                for truth, score in zip(cell["dice"], cell["scores"].get(DRAWN, []), strict=False)
                if score is not None
            ]
            if not pairs:
                continue
            true, predicted = np.array(pairs).T
            axes.scatter(true, predicted, s=9, alpha=0.5, color=COLOURS[model], label=NAMES[model], linewidths=0)
            lowest = min(lowest, float(np.quantile(true, 0.01)), float(np.quantile(predicted, 0.01)))
        limit = next(iter(models.values()))[0]["limit"]
        ends = (max(0.0, lowest - 0.02), 1.0)
        axes.plot(ends, ends, color="grey", linewidth=0.8)
        axes.axvline(limit, color="grey", linewidth=0.8, linestyle=":")
        axes.axhline(limit, color="grey", linewidth=0.8, linestyle=":")
        axes.set(xlim=ends, ylim=ends, xlabel="true mean Dice", aspect="equal")
        axes.set_title(TITLES[shift], fontsize=9)
        if column == 1:
            axes.set_ylabel("predicted mean Dice")
            axes.legend(fontsize=7, loc="lower right")
    return figure


def summarise(results: Mapping[str, Any]) -> dict[str, Any]:
    """Means over seeds and models by shift, and their mean over shifts, of each figure and method."""
    keys = ["excess_aurc", "augrc", "failure_auroc", "fpr_at_95_tpr", "mae", "pixel_ece", "interval_coverage"]
    summary: dict[str, Any] = {}
    for key in [*keys, "ms_per_case", "overhead"]:
        by_method: dict[str, dict[str, float]] = {}
        for shift, models in results.items():
            values: dict[str, list[float]] = {}
            for seeds in models.values():
                for methods in seeds.values():
                    for method, found in methods.items():
                        if found.get(key) is not None:
                            values.setdefault(method, []).append(found[key])
            for method, numbers in values.items():
                by_method.setdefault(method, {})[shift] = float(np.mean(numbers))
        summary[key] = {method: {**of, "mean": float(np.mean(list(of.values())))} for method, of in by_method.items()}
    return summary


def table(results: Mapping[str, Any], shifts: Sequence[str]) -> str:
    """Markdown: one row for each shift, model and method, means over the seeds."""
    lines = [
        "# Quality control\n",
        "| shift | masks of | assessed by | excess AURC x 1000 | failure AUROC | FPR at 95 % TPR | MAE | coverage "
        "| promise | accepted, of them failures | ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shift in shifts:
        for model, seeds in results.get(shift, {}).items():
            methods = dict.fromkeys(method for found in seeds.values() for method in found)
            for method in methods:
                rows = [found[method] for found in seeds.values() if method in found]
                cells = [
                    _mean(rows, "excess_aurc", 1000, 1),
                    _mean(rows, "failure_auroc"),
                    _mean(rows, "fpr_at_95_tpr"),
                ]
                cells += [_mean(rows, "mae"), _mean(rows, "interval_coverage"), _promises(rows), _accepted(rows)]
                cells.append(_mean(rows, "ms_per_case", 1, 0))
                lines.append(table_row([TITLES[shift], model, method, *cells]))
        if shift not in results:
            lines.append(f"| {TITLES[shift]} | missing | | | | | | | | | |")
    return "\n".join(lines) + "\n"


def _mean(rows: Sequence[Mapping[str, Any]], key: str, factor: float = 1, digits: int = 3) -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    return f"{factor * float(np.mean(values)):.{digits}f}" if values else ""


def _promises(rows: Sequence[Mapping[str, Any]]) -> str:
    """The state of the promise of the intervals, seed by seed."""
    return ", ".join(dict.fromkeys(next(iter(row["guarantees"].values())) for row in rows if "guarantees" in row))


def _accepted(rows: Sequence[Mapping[str, Any]]) -> str:
    """Accepted masks of all, over the seeds, and how many of them are failures."""
    assessed = [row for row in rows if "accepted" in row]
    if not assessed:
        return ""
    accepted, cases, failures = (
        sum(row[key] for row in assessed) for key in ("accepted", "cases", "accepted_failures")
    )
    return f"{accepted} of {cases}, {failures}"
