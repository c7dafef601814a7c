"""From the cells of correction to its figures, its table and its picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.adaptation.cells import NONE, OURS
from benchmarks.harness.panels import dress, mark_missing, save
from benchmarks.harness.recording import RESULTS, write_results
from benchmarks.harness.shifts import TITLES
from benchmarks.harness.tables import table_row
from medfm_rl.correction.acceptance import HARM
from medfm_rl.metrics.bootstrap import paired_bootstrap

GIVEN = "none-by-ours"
MODELS = {NONE: "source", OURS: "adapted", GIVEN: "source, by the adapted"}
"""Whose masks are corrected by whose segmenter: its own, or those of the source model by that of the run."""
DEFAULT = "views"
"""The method that the others are compared with: the default settings."""


def cell_file(runs: Path, shift: str, model: str, method: str, seed: int) -> Path:
    """Where a cell is kept."""
    return runs / "correction-cells" / shift / model / method / f"seed-{seed}.json"


def figures(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The measurements of one cell."""
    rows = handed_back(cell)
    flagged = [row for row in rows if row["verdict"] == "correct"]
    proposed = [row for row in cell["rows"] if row["verdict"] == "correct" and row["accepted"]]
    decile = [row for row in rows if row["worst_decile"]]
    accepted = [row for row in flagged if row["accepted"]]
    harmed = [row for row in accepted if _harmed(row)]
    found: dict[str, Any] = {
        "cases": cell["cases"],
        "state": cell["state"],
        "flagged": len(flagged),
        "verifier_accepts": len(proposed),
        "verifier_accepts_harmed": sum(_harmed(row) for row in proposed),
        "accepted": len(accepted),
        "accepted_harmed": len(harmed),
        "accepted_valid": sum(row["after"]["valid"] for row in accepted),
        "proposals_harmed": sum(_harmed(row) for row in flagged),
        "seconds_median": float(np.median([row["seconds"] for row in rows])) if rows else None,
        "worst_decile": _change(decile, verified=True),
        "worst_decile_unverified": _change(decile, verified=False),
        "flagged_change": _change(flagged, verified=True),
        "flagged_unverified": _change(flagged, verified=False),
    }
    return found


def handed_back(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows, none of them accepted where the batch is unlike the calibration: the masks stay."""
    return [{**row, "accepted": row["accepted"] and cell["state"] != "suspended"} for row in cell["rows"]]


def _harmed(row: Mapping[str, Any]) -> bool:
    return bool(row["after"]["dice"] < row["before"]["dice"] - HARM)


def _returned(row: Mapping[str, Any], verified: bool) -> Mapping[str, Any]:
    returned: Mapping[str, Any] = row["after"] if row["accepted"] or not verified else row["before"]
    return returned


def _change(rows: Sequence[Mapping[str, Any]], verified: bool) -> dict[str, Any]:
    """Dice, HD95 and validity before and after, and the gain of Dice with its interval."""
    before, after = [row["before"] for row in rows], [_returned(row, verified) for row in rows]
    found: dict[str, Any] = {"cases": len(rows)}
    for key in ("dice", "hd95", "valid"):
        # The distance of a structure that is missing is not known: such a case is left out on both sides.
        pairs = [
            (float(one[key]), float(two[key]))
            for one, two in zip(before, after, strict=True)
            if one[key] is not None and two[key] is not None
        ]
        means = np.mean(pairs, axis=0).tolist() if pairs else [None, None]
        found |= {f"{key}_before": means[0], f"{key}_after": means[1]}
    return found | _interval("gain", rows, [item["dice"] for item in before], [item["dice"] for item in after])


def _interval(
    name: str, rows: Sequence[Mapping[str, Any]], before: Sequence[float], after: Sequence[float]
) -> dict[str, Any]:
    patients = [row["patient_id"] for row in rows]
    if len(set(patients)) < 2:
        return {name: float(np.mean(np.subtract(after, before))) if rows else None}
    difference = paired_bootstrap(np.array(before), np.array(after), patients)
    return {name: difference.mean, f"{name}_low": difference.low, f"{name}_high": difference.high}


def ahead(ours: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """By how much ours is better on the worst decile, with its paired interval."""
    first, second = ([row for row in handed_back(cell) if row["worst_decile"]] for cell in (ours, other))
    if [row["case_id"] for row in first] != [row["case_id"] for row in second]:
        raise ValueError("the two methods were measured on other cases")
    dice = [[_returned(row, True)["dice"] for row in rows] for rows in (second, first)]
    return _interval("ours_minus_this", first, *dice)


def report(
    runs: Path,
    methods: Sequence[str],
    shifts: Sequence[str],
    seeds: Sequence[int],
    started_in: dict[str, Any],
    name: str,
) -> None:
    """Writes results, table and picture from the cells that there are."""
    results: dict[str, Any] = {}
    for shift in shifts:
        for model in MODELS:
            for seed in seeds:
                paths = {method: cell_file(runs, shift, model, method, seed) for method in methods}
                cells = {method: json.loads(path.read_text()) for method, path in paths.items() if path.exists()}
                for method, cell in cells.items():
                    found = figures(cell)
                    if DEFAULT in cells and method != DEFAULT:
                        found |= ahead(cells[DEFAULT], cell)
                    by_method = results.setdefault(shift, {}).setdefault(model, {}).setdefault(method, {})
                    by_method[str(seed)] = found
    write_results(name, started_in, list(seeds), results, summarise(results), table(results, shifts))
    draw(results, name.endswith("-quick"), RESULTS / f"{name}.png")


def summarise(results: Mapping[str, Any]) -> dict[str, Any]:
    """Of the source and of the adapted model, by method: gains averaged over cells, rates of all their cases."""
    summary: dict[str, Any] = {}
    for model, title in MODELS.items():
        cells: dict[str, list[Mapping[str, Any]]] = {}
        for models in results.values():
            for method, seeds in models.get(model, {}).items():
                cells.setdefault(method, []).extend(seeds.values())
        gains = {method: [cell["worst_decile"]["gain"] for cell in found] for method, found in cells.items()}
        seconds = {method: [cell["seconds_median"] for cell in found] for method, found in cells.items()}
        rates = {
            "harm_rate_accepted": ("accepted_harmed", "accepted"),
            "harm_rate_all": ("accepted_harmed", "flagged"),
            "validity_accepted": ("accepted_valid", "accepted"),
            "corrected": ("accepted", "flagged"),
        }
        summary[title] = {
            name: {method: _rate(found, *parts) for method, found in cells.items()} for name, parts in rates.items()
        }
        summary[title] |= {
            "worst_decile_gain": {method: float(np.mean(values)) for method, values in gains.items()},
            "seconds_per_case_median": {method: float(np.median(values)) for method, values in seconds.items()},
        }
    return summary


def _rate(cells: Sequence[Mapping[str, Any]], part: str, whole: str) -> float | None:
    total = sum(cell[whole] for cell in cells)
    return sum(cell[part] for cell in cells) / total if total else None


def table(results: Mapping[str, Any], shifts: Sequence[str]) -> str:
    """Markdown: one row for each shift, model and method, means over the seeds."""
    lines = [
        "# Correction at test time\n",
        "Means over seeds, Dice in points; the worst tenth is that of the lowest predicted Dice. Intervals: 95 %,",
        "first seed. Where the batch is suspended, what the verifier accepts is proposed and not handed back.\n",
        "| shift | masks of | batch | method | seeds | worst tenth, Dice before | gain | without the verifier | "
        "flagged | verifier accepts | of these harmed | corrected | harmed of corrected | of flagged | "
        "valid of corrected | HD95 of flagged | seconds |",
        f"|{'---|' * 17}",
    ]
    for shift in shifts:
        if shift not in results:
            lines.append(f"| {TITLES[shift]} | missing |{' |' * 15}")
        for model, methods in results.get(shift, {}).items():
            for method, seeds in methods.items():
                found = list(seeds.values())
                decile, flagged = found[0]["worst_decile"], found[0]["flagged_change"]
                interval = (
                    f" [{100 * decile['gain_low']:+.1f}, {100 * decile['gain_high']:+.1f}]"
                    if "gain_low" in decile
                    else ""
                )
                row = [
                    " ".join(seeds),
                    _points([cell["worst_decile"]["dice_before"] for cell in found], "{:.1f}"),
                    _points([cell["worst_decile"]["gain"] for cell in found], "{:+.1f}") + interval,
                    _points([cell["worst_decile_unverified"]["gain"] for cell in found], "{:+.1f}"),
                    str(sum(cell["flagged"] for cell in found)),
                    _percent(_rate(found, "verifier_accepts", "flagged")),
                    _percent(_rate(found, "verifier_accepts_harmed", "verifier_accepts")),
                    _percent(_rate(found, "accepted", "flagged")),
                    _percent(_rate(found, "accepted_harmed", "accepted")),
                    _percent(_rate(found, "accepted_harmed", "flagged")),
                    _percent(_rate(found, "accepted_valid", "accepted")),
                    ""
                    if flagged["hd95_before"] is None
                    else f"{flagged['hd95_before']:.1f} to {flagged['hd95_after']:.1f}",
                    f"{np.median([cell['seconds_median'] or 0 for cell in found]):.1f}",
                ]
                state = " and ".join(sorted({cell["state"] for cell in found}))
                lines.append(table_row([TITLES[shift], MODELS[model], state, method, *row]))
    return "\n".join(lines) + "\n"


def _points(values: Sequence[float], form: str) -> str:
    return form.format(100 * float(np.mean(values)))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def draw(results: Mapping[str, Any], trial: bool, path: Path) -> None:
    """Gain in the worst tenth by method, a row of panels for each model, one panel for each shift; numbers only."""
    names = list(dict.fromkeys(name for models in results.values() for methods in models.values() for name in methods))
    figure = Figure(figsize=(1.6 + 2.4 * len(results), (1.4 + 0.22 * len(names)) * len(MODELS)), layout="tight")
    panels = figure.subplots(len(MODELS), max(1, len(results)), sharey=True, squeeze=False)
    for row, (model, title) in zip(panels, MODELS.items(), strict=True):
        for panel, (shift, models) in zip(row, results.items(), strict=False):
            cells = {name: next(iter(seeds.values())) for name, seeds in models.get(model, {}).items()}
            for place, name in enumerate(names):
                _draw_row(panel, place, cells.get(name), "#c03030" if name == DEFAULT else "#555555")
            state = " and ".join(sorted({cell["state"] for cell in cells.values()}))
            heading = TITLES[shift].replace(" to ", "\nto ")
            dress(panel, names, f"{heading}\n{title} model\nbatch: {state}")
    label = "Dice points gained in the tenth of the lowest predicted Dice (full: handed back, 95 %; hollow: proposed)"
    save(figure, label, trial, path)


def _draw_row(panel: Any, place: int, cell: Mapping[str, Any] | None, colour: str) -> None:
    if cell is None:
        mark_missing(panel, place)
        return
    proposed, handed = cell["worst_decile_unverified"], cell["worst_decile"]
    panel.plot(100 * proposed["gain"], place, "o", color=colour, markerfacecolor="white", markersize=5)
    if "gain_low" in handed:
        panel.plot([100 * handed["gain_low"], 100 * handed["gain_high"]], [place, place], color=colour, linewidth=1.5)
    panel.plot(100 * handed["gain"], place, "o", color=colour, markersize=5)
