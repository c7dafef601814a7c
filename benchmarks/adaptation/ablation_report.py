"""From the cells of the ablation to its figures and its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.adaptation.cells import NONE, Scores, harm_rate, read_cell
from benchmarks.adaptation.cells import cell_file as adaptation_cell
from benchmarks.adaptation.variants import DEFAULT, GRADIENT, VARIANTS
from benchmarks.harness.recording import write_results
from benchmarks.harness.shifts import TITLES
from benchmarks.harness.tables import heading, interval, table_row
from medfm_rl.metrics.bootstrap import paired_bootstrap

START, LAST, CHOSEN = "start", "last", "chosen"
"""The three policies that are measured: PPO's start, its last checkpoint, and the choice of the selection."""


def cell_file(runs: Path, shift: str, variant: str, seed: int) -> Path:
    """Where the cell of a variant is kept."""
    return runs / "ablation" / shift / variant.replace(" ", "-") / f"seed-{seed}" / "cell.json"


def knowledge_file(runs: Path, shift: str, seed: int) -> Path:
    """Where the scores are kept that the reward of the default run gives."""
    return cell_file(runs, shift, DEFAULT, seed).with_name("knowledge.json")


def describe(shift: str, runs: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """By variant and policy: Dice, gain over no adaptation, harm; seeds averaged case by case."""
    results: dict[str, Any] = {}
    for variant in (*VARIANTS, GRADIENT):
        cells = {seed: path for seed in seeds if (path := cell_file(runs, shift, variant, seed)).exists()}
        if not cells:
            results[variant] = None
            continue
        before = [read_cell(adaptation_cell(runs, shift, NONE, seed)).held_out for seed in cells]
        read = [json.loads(path.read_text()) for path in cells.values()]
        results[variant] = {
            "seeds": sorted(cells),
            "commits": sorted({cell["environment"]["commit"] for cell in read}),
            "policies": {
                place: _compare(before, [Scores.from_json(cell["policies"][place]) for cell in read])
                for place in read[0]["policies"]
            },
        }
    return results


def _compare(before: Sequence[Scores], after: Sequence[Scores]) -> dict[str, Any]:
    means = [np.mean([scores.mean_dice for scores in group], axis=0) for group in (before, after)]
    return {
        "dice": float(means[1].mean()),
        "gain": asdict(paired_bootstrap(means[0], means[1], before[0].patient_ids)),
        "harm_rate": float(np.mean([harm_rate(*pair) for pair in zip(before, after, strict=True)])),
    }


def table(title: str, results: Mapping[str, Any], quick: bool) -> str:
    """Markdown, a row for each variant."""
    lines = [
        *heading(f"What the parts bring: {title}", quick),
        "Held-out target patients, gain in mean Dice over no adaptation [95 % interval, bootstrap over patients] and "
        "share of cases more than 1 Dice point below it. Start: what PPO starts from. Last: PPO's last checkpoint, its "
        "weights averaged with nothing. Chosen: what the selection returned.",
        "",
        "| variant | seeds | start | last | chosen |",
        "|---|---|---|---|---|",
    ]
    for name, row in results.items():
        if row is None:
            lines.append(f"| {name} | missing | | | |")
            continue
        figures = [_figure(row["policies"].get(place)) for place in (START, LAST, CHOSEN)]
        lines.append(table_row([name, str(len(row["seeds"])), *figures]))
    return "\n".join(lines) + "\n"


def _figure(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    return f"{interval(value['gain'], 4)}, {100 * value['harm_rate']:.0f} %"


def report(runs: Path, shift: str, seeds: Sequence[int], started_in: dict[str, Any], quick: bool, name: str) -> None:
    """Writes JSON and table of that name from the cells that there are."""
    results, knowledge = describe(shift, runs, seeds), describe_knowledge(shift, runs, seeds)
    summary = {
        variant: None if row is None else {place: value["gain"]["mean"] for place, value in row["policies"].items()}
        for variant, row in results.items()
    }
    text = table(TITLES[shift], results, quick) + knowledge_table(knowledge)
    write_results(name, started_in, list(seeds), {"variants": results, "knowledge": knowledge}, summary, text)


def describe_knowledge(shift: str, runs: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """By whose masks: mean Dice and scores, and how the scores move with the Dice from the masks of `START`.

    Seeds are averaged. The correlation is Spearman's over cases, of the differences to the masks of `START`.
    """
    paths = [path for seed in seeds if (path := knowledge_file(runs, shift, seed)).exists()]
    cells = [json.loads(path.read_text())["masks"] for path in paths]
    if not cells:
        return {}
    kinds = [kind for kind in cells[0]["experts"] if kind != "dice"]
    return {
        name: {kind: float(np.mean([cell[name][kind] for cell in cells])) for kind in ("dice", *kinds)}
        | {f"{kind}_follows": None if name == START else _follows(cells, name, kind) for kind in kinds}
        for name in cells[0]
    }


def _follows(cells: Sequence[Mapping[str, Mapping[str, Sequence[float]]]], name: str, kind: str) -> float:
    """Correlation of the change of a score with that of the Dice, from the masks of `START`."""
    correlations = []
    for cell in cells:
        better, higher = (np.subtract(cell[name][value], cell[START][value]) for value in ("dice", kind))
        correlations.append(spearmanr(better, higher).statistic)
    return float(np.mean(correlations))


def knowledge_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row for each origin of masks; empty where there is none."""
    if not rows:
        return ""
    kinds = [name for name in next(iter(rows.values())) if name != "dice" and not name.endswith("_follows")]
    lines = [
        "",
        "## What the reward knows",
        "",
        "Masks of held-out target images, on the network's grid. Scores of the held-out reward and of the ensemble; in "
        "brackets Spearman's correlation over cases between the change of the score and of the Dice from the masks of "
        "start.",
        "",
        f"| masks of | Dice | {' | '.join(kinds)} |",
        "|---|---|" + "---|" * len(kinds),
    ]
    for name, row in rows.items():
        figures = [
            f"{row[kind]:.4f}" + ("" if row[f"{kind}_follows"] is None else f" ({row[f'{kind}_follows']:+.2f})")
            for kind in kinds
        ]
        lines.append(f"| {name} | {row['dice']:.4f} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"
