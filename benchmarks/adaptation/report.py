"""From the cells of the adaptation benchmark to its figures, its table and its picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.adaptation.cells import (
    NONE,
    OURS,
    SOURCE_FREE,
    UPPER,
    Cell,
    Scores,
    difference,
    gap_recovered,
    read_cells,
    read_experts,
)
from benchmarks.adaptation.ejection_fraction import (
    Agreement,
    agreement,
    patient_fractions,
    published_fractions,
)
from benchmarks.baselines import BASELINES
from benchmarks.harness.packs import data_folder
from benchmarks.harness.panels import dress, mark_missing, save
from benchmarks.harness.recording import RESULTS, write_results
from benchmarks.harness.shifts import HANDHELD, NO_SHIFT, TITLES, is_simulated
from benchmarks.harness.tables import heading, interval, table_row
from medfm_rl.anatomy.discs import Length
from medfm_rl.metrics.scores import MEAN

_FORMER_KEYS = {"rival": "baseline", "rivals_compared": "baselines_compared"}
"""Former names of keys of `ahead_of_all`: a report goes on from results that were written with them."""


def describe(cells: Mapping[int, Cell], of_shift: Mapping[str, Mapping[int, Cell]]) -> dict[str, Any] | None:
    """The figures of one method on one shift over the seeds that there are; None where there is none."""
    if not cells:
        return None
    all_scores = [cell.held_out for _, cell in sorted(cells.items())]
    structures = list(all_scores[0].dice)
    distances = {name: np.concatenate([scores.hd95[name] for scores in all_scores]) for name in structures}
    gain, behind_ours = difference(of_shift[NONE], cells), difference(cells, of_shift[OURS])
    regrets = {seed: cell.selection["regret"] for seed, cell in cells.items() if cell.selection}
    return {
        "seeds": sorted(cells),
        "dice": {name: float(np.mean([scores.dice[name] for scores in all_scores])) for name in structures},
        "dice_by_seed": {seed: float(cell.held_out.mean_dice.mean()) for seed, cell in sorted(cells.items())},
        "dice_p10": float(np.mean([np.quantile(scores.mean_dice, 0.1) for scores in all_scores])),
        "hd95_px": {
            name: float(np.nanmean(values)) if np.isfinite(values).any() else None for name, values in distances.items()
        },
        "hd95_undefined": int((~np.isfinite(distances[MEAN])).sum()),
        "validity": float(np.mean([scores.valid for scores in all_scores])),
        "gain": gain and asdict(gain),
        "gap_recovered": gap_recovered(cells, of_shift[NONE], of_shift[UPPER]),
        "ours_minus_this": behind_ours and asdict(behind_ours),
        "harm_rate": float(np.mean([cell.harm_rate for cell in cells.values()])),
        "source_dice": float(np.mean([cell.source_held_out.mean_dice.mean() for cell in cells.values()])),
        "source_validity": float(np.mean([cell.source_held_out.valid for cell in cells.values()])),
        "wall_minutes": float(np.median([cell.wall_seconds for cell in cells.values()])) / 60,
        "selection": {
            "regret": float(np.mean(list(regrets.values()))),
            "regret_by_seed": regrets,
            "chosen": {seed: cell.selection["chosen"] for seed, cell in cells.items() if cell.selection},
            "hindsight_dice": {
                seed: cell.selection["hindsight_dice"] for seed, cell in cells.items() if cell.selection
            },
        }
        if regrets
        else None,
    }


def ejection_fractions(
    methods: Mapping[str, Mapping[int, Cell]], expert: Scores | None, published: Mapping[str, float]
) -> dict[str, Any]:
    """Ejection fraction of every method, and of the experts' masks, against the published one, in percentage points."""
    results: dict[str, Any] = {}
    lengths: tuple[Length, ...] = ("common", "own")
    for length in lengths:
        rows: dict[str, list[Agreement]] = {"experts' masks": [_agreement(expert, published, length)] if expert else []}
        rows |= {
            name: [_agreement(cell.held_out, published, length) for _, cell in sorted(cells.items())]
            for name, cells in methods.items()
        }
        results[length] = {
            name: {
                "mae": _mean_or_none([value.mae for value in values]),
                "bias": _mean_or_none([value.bias for value in values]),
                "measured": [value.measured for value in values],
                "not_measured": [value.not_measured for value in values],
            }
            for name, values in rows.items()
            if values
        }
    return results


def _agreement(scores: Scores, published: Mapping[str, float], length: Length) -> Agreement:
    return agreement(patient_fractions(scores.case_ids, scores.disks, length), published)


def _mean_or_none(values: Sequence[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def best_baseline(methods: Mapping[str, Mapping[int, Cell]]) -> dict[str, Any] | None:
    """Ours minus the label-free method (no adaptation included) with the highest Dice on the seeds that both have."""
    differences = {
        name: found
        for name, cells in methods.items()
        if name not in (OURS, SOURCE_FREE, UPPER) and (found := difference(cells, methods[OURS])) is not None
    }
    if not differences:
        return None
    best = min(differences, key=lambda name: differences[name].mean)
    return {"baseline": best, "baselines_compared": len(differences), **asdict(differences[best])}


def summarise(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that others quote; None stands for what is missing."""

    def of_ours(figure: Callable[[Mapping[str, Any]], Any], shift: str) -> Any:
        row = results[shift]["methods"][OURS]
        return None if row is None else figure(row)

    shifts = [shift for shift in results if shift != NO_SHIFT]
    gaps = {shift: of_ours(lambda row: row["gap_recovered"], shift) for shift in shifts}
    known = [gap for gap in gaps.values() if gap is not None]
    return {
        "gap_recovered": gaps,
        "gap_recovered_mean": float(np.mean(known)) if known and len(known) == len(gaps) else None,
        "ahead_of_all": {shift: results[shift]["ahead_of_all"] for shift in shifts},
        "harm_rate": {shift: of_ours(lambda row: row["harm_rate"], shift) for shift in shifts},
        "selection_regret": {
            shift: of_ours(lambda row: row["selection"] and row["selection"]["regret"], shift) for shift in shifts
        },
        "no_shift_change": of_ours(lambda row: row["gain"]["mean"], NO_SHIFT) if NO_SHIFT in results else None,
        "minutes_shift1": of_ours(lambda row: row["wall_minutes"], HANDHELD) if HANDHELD in results else None,
    }


def table(results: Mapping[str, Mapping[str, Any]], quick: bool) -> str:
    lines = [
        *heading("Adaptation without target labels", quick),
        "Held-out target patients. Dice: mean over the structures. Gap: share of the gap to the upper bound "
        "(trained on the labelled target) that is recovered. Harmed: share of cases more than 1 Dice point below no "
        "adaptation. HD95: mean over the cases that have every structure (number of those that do not). Valid on "
        "source: the same model on held-out source images. Intervals: 95 %, bootstrap over patients, seeds "
        "averaged. Minutes: of the adaptation (upper bound: of its training), median over seeds.",
    ]
    for result in results.values():
        structures = list(next((row["dice"] for row in result["methods"].values() if row), {MEAN: 0}))[:-1]
        lines += [
            "",
            f"## {result['title']}{' (the target is SIMULATED)' if result['simulated'] else ''}",
            "",
            f"| method | seeds | Dice | {''.join(f'{name} | ' for name in structures if len(structures) > 1)}"
            "gain [interval] | gap | ours minus this [interval] | 10th percentile | HD95 (px) | valid % "
            "| valid % on source | harmed % | minutes |",
            "|---" * (12 + (len(structures) if len(structures) > 1 else 0)) + "|",
        ]
        lines += [_method_row(name, row, structures, result["seeds"]) for name, row in result["methods"].items()]
        if result["ejection_fraction"]:
            lines += ["", *_fraction_lines(result["ejection_fraction"])]
    return "\n".join(lines) + "\n"


def _method_row(name: str, row: Mapping[str, Any] | None, structures: Sequence[str], seeds: Sequence[int]) -> str:
    columns = len(structures) if len(structures) > 1 else 0
    if row is None:
        return f"| {name} | missing |" + " |" * (10 + columns)
    missing = sorted(set(seeds) - set(row["seeds"]))
    cells = [
        name,
        f"{len(row['seeds'])}" + (f" (missing: {', '.join(map(str, missing))})" if missing else ""),
        f"{row['dice'][MEAN]:.3f}",
        *(f"{row['dice'][structure]:.3f}" for structure in structures if columns),
        _interval(row["gain"]) if name != NONE else "",
        f"{100 * row['gap_recovered']:.0f} %" if row["gap_recovered"] is not None and name not in (NONE, UPPER) else "",
        _interval(row["ours_minus_this"]) if name != OURS else "",
        f"{row['dice_p10']:.3f}",
        ("" if row["hd95_px"][MEAN] is None else f"{row['hd95_px'][MEAN]:.1f} ") + f"({row['hd95_undefined']})",
        f"{100 * row['validity']:.1f}",
        f"{100 * row['source_validity']:.1f}",
        f"{100 * row['harm_rate']:.1f}" if name != NONE else "",
        f"{row['wall_minutes']:.1f}",
    ]
    return table_row(cells)


def _interval(value: Mapping[str, float] | None) -> str:
    return "" if value is None else interval(value)


def _fraction_lines(fractions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "Ejection fraction against the published one, in percentage points, each seed on its own and then averaged. "
        "Volumes by disks, with one length for both phases as the published values have it (in brackets: each phase "
        "with its own). Pixel sizes are lost and cancel where ED and ES share them.",
        "",
        "| masks of | mean absolute error | bias | patients not measured |",
        "|---|---|---|---|",
    ]
    for name, row in fractions["common"].items():
        own = fractions["own"][name]
        if row["mae"] is None:
            lines.append(f"| {name} | | | {row['not_measured']} |")
            continue
        lines.append(
            f"| {name} | {row['mae']:.1f} ({own['mae']:.1f}) | {row['bias']:+.1f} ({own['bias']:+.1f}) "
            f"| {sum(row['not_measured'])} of {sum(row['measured']) + sum(row['not_measured'])} |"
        )
    return lines


_WORST_DRAWN = -20.0
# Two colours of Okabe and Ito that differ in lightness too, and grey; the marker says the same once more.
_LOOK = {OURS: ("#0072B2", "o"), SOURCE_FREE: ("#0072B2", "s"), UPPER: ("#D55E00", "D")}


def draw(results: Mapping[str, Mapping[str, Any]], quick: bool, path: Path) -> None:
    """Gain over no adaptation by method, one panel for each shift; numbers only, no pixel of a patient."""
    names = [name for name in next(iter(results.values()))["methods"] if name != NONE]
    figure = Figure(figsize=(1.6 + 2.4 * len(results), 0.9 + 0.3 * len(names)), layout="tight")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)
    for panel, result in zip(panels[0], results.values(), strict=True):
        for place, name in enumerate(names):
            row = result["methods"][name]
            if row is None or row["gain"] is None:
                mark_missing(panel, place)
                continue
            mean, low, high = (100 * row["gain"][key] for key in ("mean", "low", "high"))
            if mean < _WORST_DRAWN:
                # Drawn, it would leave no room for the others.
                mark_missing(panel, place, f"\u25c4 {mean:+.1f}")
                continue
            colour, marker = _LOOK.get(name, ("#555555", "^"))
            panel.plot([low, high], [place, place], color=colour, linewidth=1.5)
            panel.plot(mean, place, marker, color=colour, markersize=5)
        dress(panel, names, result["title"].replace(" to ", "\nto "))
    save(figure, "Dice points gained over no adaptation (95 % interval)", quick, path)


def describe_shift(
    shift: str,
    of_shift: Mapping[str, Mapping[int, Cell]],
    seeds: Sequence[int],
    expert: Scores | None,
    published: Mapping[str, float],
) -> dict[str, Any]:
    """Everything that the report says of one shift."""
    return {
        "title": TITLES[shift],
        "simulated": is_simulated(shift),
        "seeds": list(seeds),
        "methods": {method: describe(own, of_shift) for method, own in of_shift.items()},
        "missing": {method: missing for method, own in of_shift.items() if (missing := sorted(set(seeds) - set(own)))},
        "ahead_of_all": best_baseline(of_shift),
        "ejection_fraction": ejection_fractions(of_shift, expert, published) if expert else None,
        "commits": sorted({cell.commit for own in of_shift.values() for cell in own.values()}),
    }


def report(
    runs: Path,
    shifts: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    started_in: dict[str, Any],
    quick: bool,
    name: str,
) -> None:
    """Writes JSON, table and figure of that name from the cells that there are.

    Shifts that are not asked for stay as an earlier report left them, so that one shift can be measured at a time.
    """
    cells = read_cells(runs, shifts, methods, seeds)
    published = published_fractions(data_folder() / "camus_patients_info.csv")
    results = read_shifts(RESULTS / f"{name}.json")
    for shift, of_shift in cells.items():
        results[shift] = describe_shift(shift, of_shift, seeds, read_experts(shift, runs), published)
    results = {shift: results[shift] for shift in TITLES if shift in results}
    content = {
        "quick": quick,
        "shifts": results,
        "baselines": {method: describe_baseline(method) for method in methods if method in BASELINES},
    }
    summary = summarise(results) | ({"quick": True} if quick else {})
    write_results(name, started_in, list(seeds), content, summary, table(results, quick))
    draw(results, quick, RESULTS / f"{name}.png")


def read_shifts(path: Path) -> dict[str, dict[str, Any]]:
    """The shifts of an earlier report, with the names of today; none where there is no such file."""
    if not path.exists():
        return {}
    shifts = dict(json.loads(path.read_text())["results"]["shifts"])
    for found in shifts.values():
        if found["ahead_of_all"] is not None:
            found["ahead_of_all"] = {_FORMER_KEYS.get(key, key): value for key, value in found["ahead_of_all"].items()}
    return shifts


def describe_baseline(name: str) -> dict[str, Any]:
    """The facts about a baseline: whether it needs the source, where it comes from and what was changed."""
    info = BASELINES[name]
    return {
        item.name: value
        for item in fields(info)
        if isinstance(value := getattr(info, item.name), str | bool | int | float)
    }
