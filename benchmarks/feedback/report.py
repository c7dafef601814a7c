"""From the cells of the feedback benchmark to its figures, its table and its curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.feedback.cells import (
    BY_CASE,
    CONTROLS,
    DPO,
    FROM_LESS,
    LADDER,
    METHODS,
    NONE,
    OURS,
    UPPER,
    Cell,
    Cells,
    difference,
    gap_recovered,
    harm_rate,
    ppo_gain,
    regret,
)
from benchmarks.feedback.judgements import AREAS, FRACTIONS, GRADES, PREFERENCES, VERDICTS
from benchmarks.harness.panels import save
from benchmarks.harness.recording import RESULTS, write_results
from benchmarks.harness.shifts import TITLES, is_simulated
from benchmarks.harness.tables import heading, interval, table_row

_COMPARED_AT = 8
_PPO_AT = (8, 16)
_GAP = 0.005
"""An upper bound that is less than half a Dice point above the source model, or may be so by chance, is no gap."""


def summarise(cells: Cells) -> dict[str, Any]:
    """The figures that others quote; None stands for what is missing."""
    shifts = [shift for shift in TITLES if cells.get(shift, NONE, 0)]
    reviewed = sorted({cell.k for cell in cells if cell.method == OURS})
    with_gap = [shift for shift in shifts if _has_gap(cells, shift)]
    gaps = {
        shift: {k: gap_recovered(*(cells.get(shift, name, k) for name in (NONE, OURS, UPPER))) for k in reviewed}
        for shift in with_gap
    }
    return {
        "gap_recovered": gaps,
        "gap_recovered_mean": {k: _mean([gaps[shift][k] for shift in with_gap]) for k in reviewed},
        "harm_rate": {
            shift: {k: harm_rate(cells.get(shift, NONE, 0), cells.get(shift, OURS, k)) for k in reviewed}
            for shift in shifts
        },
        "harm_rate_upper": {
            shift: harm_rate(cells.get(shift, NONE, 0), cells.get(shift, UPPER, 0)) for shift in shifts
        },
        **_by_case(cells, shifts, with_gap, reviewed),
        "ahead_of_controls": {shift: _ahead(cells, shift) for shift in shifts},
        "ppo_gain": {shift: {k: _as_dict(ppo_gain(cells.get(shift, OURS, k))) for k in _PPO_AT} for shift in shifts},
        "selection_regret": {shift: {k: regret(cells.get(shift, OURS, k)) for k in reviewed} for shift in shifts},
        **_of_less_than_masks(cells, shifts),
        "minutes": {
            shift: {k: _median([cell.minutes for cell in cells.get(shift, OURS, k).values()]) for k in reviewed}
            for shift in shifts
        },
        "seeds": {shift: sorted({cell.seed for cell in cells if cell.shift == shift}) for shift in shifts},
    }


def _by_case(
    cells: Cells, shifts: Sequence[str], with_gap: Sequence[str], reviewed: Sequence[int]
) -> dict[str, dict[float, Any]]:
    """Share of the gap and of harmed cases by margin, shift and k where masks are chosen case by case."""
    return {
        "gap_recovered_by_case": {
            margin: {
                shift: {
                    k: gap_recovered(*(cells.get(shift, each, k) for each in (NONE, name, UPPER))) for k in reviewed
                }
                for shift in with_gap
            }
            for name, margin in BY_CASE.items()
        },
        "harm_rate_by_case": {
            margin: {
                shift: {k: harm_rate(cells.get(shift, NONE, 0), cells.get(shift, name, k)) for k in reviewed}
                for shift in shifts
            }
            for name, margin in BY_CASE.items()
        },
    }


def _of_less_than_masks(cells: Cells, shifts: Sequence[str]) -> dict[str, Any]:
    """What grades, preferences and reports bring: shares of the gap, errors of the ventricle, change of Dice."""
    fractions = {shift: _latest(cells, shift, FRACTIONS) for shift in shifts}
    uppers = {shift: cells.get(shift, UPPER, 0) for shift in shifts}
    bounds = {shift: own for shift, own in uppers.items() if own and all(cell.ventricle for cell in own.values())}
    return {
        **{
            f"{knowledge}_gap_recovered": {
                shift: gap_recovered(cells.get(shift, NONE, 0), own, cells.get(shift, UPPER, 0))
                for shift in shifts
                if (own := _latest(cells, shift, knowledge)) and _has_gap(cells, shift)
            }
            for knowledge in (GRADES, VERDICTS, PREFERENCES, AREAS)
        },
        "preferences_ahead_of_dpo": {
            shift: _as_dict(difference(cells.get(shift, DPO, next(iter(own.values())).k), own))
            for shift in shifts
            if (own := _latest(cells, shift, PREFERENCES))
        },
        **{
            f"area_error_{when}": {
                shift: _ventricle(own, when, "area") for shift in shifts if (own := _latest(cells, shift, AREAS))
            }
            for when in ("before", "after")
        },
        "area_error_upper": {shift: _ventricle(own, "after", "area") for shift, own in bounds.items()},
        "ef_mae_upper": {shift: _ventricle(own, "after", "EF") for shift, own in bounds.items()},
        **{
            f"ef_mae_{when}": {shift: _ventricle(own, when, "EF") for shift, own in fractions.items() if own}
            for when in ("before", "after")
        },
        "ef_dice_change": {
            shift: _as_dict(difference(cells.get(shift, NONE, 0), own)) for shift, own in fractions.items() if own
        },
    }


def _latest(cells: Cells, shift: str, knowledge: str) -> dict[int, Cell]:
    """The cells with the most patients of whom that is known."""
    found = [cell.k for cell in cells if (cell.shift, cell.method) == (shift, LADDER[knowledge])]
    return cells.get(shift, LADDER[knowledge], max(found)) if found else {}


def _ventricle(own: Mapping[int, Cell], when: str, measure: str) -> float:
    return float(np.mean([np.mean(cell.ventricle[when][measure]) for cell in own.values()]))


def _has_gap(cells: Cells, shift: str) -> bool:
    found = difference(cells.get(shift, NONE, 0), cells.get(shift, UPPER, 0))
    return found is not None and found.mean >= _GAP and found.low > 0


def _ahead(cells: Cells, shift: str) -> dict[str, Any] | None:
    """Ours minus the better of the controls with eight reviewed patients."""
    ours = cells.get(shift, OURS, _COMPARED_AT)
    found = {name: difference(cells.get(shift, name, _COMPARED_AT), ours) for name in CONTROLS}
    known = {name: value for name, value in found.items() if value is not None}
    if not known:
        return None
    nearest = min(known, key=lambda name: known[name].mean)
    return {"control": nearest, "controls_compared": len(known), **asdict(known[nearest])}


def _as_dict(value: object) -> dict[str, Any] | None:
    return None if value is None else asdict(value)  # type: ignore[call-overload]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def table(cells: Cells, quick: bool) -> str:
    """Markdown, one section a shift."""
    lines = [
        *heading("What reviewed patients bring", quick),
        "Held-out target patients. k: reviewed target patients, drawn at random. Dice: mean over the structures. Gap: "
        "share of the gap to the model trained on the labels of all target patients, where the interval of its gain is "
        "above 0. Harmed: share of cases more than 1 Dice point below no adaptation. HD95: mean over the cases where "
        "it is defined. Without PPO: the fine-tuned policy of the same run. Regret: Dice points of the best candidate "
        "of the run in hindsight above the returned one. DPO: direct preference optimisation of the source model by "
        "the preferences that ours learns from. Intervals: 95 %, bootstrap over patients, seeds averaged.",
    ]
    for shift, title in TITLES.items():
        none, bound = cells.get(shift, NONE, 0), cells.get(shift, UPPER, 0) if _has_gap(cells, shift) else {}
        if not none:
            continue
        lines += [
            "",
            f"## {title}{' (the target is SIMULATED)' if is_simulated(shift) else ''}",
            "",
            "| method | k | seeds | Dice | gain [interval] | gap | HD95 (px) | valid % | harmed % | returned minus "
            "without PPO [interval] | regret | returned | minutes |",
            "|---" * 13 + "|",
        ]
        for method in (*METHODS, *FROM_LESS):
            for k in sorted({cell.k for cell in cells if (cell.shift, cell.method) == (shift, method)}):
                lines.append(_row(method, k, cells.get(shift, method, k), none, bound))
        lines += _ventricles(cells, shift)
    return "\n".join(lines) + "\n"


def _ventricles(cells: Cells, shift: str) -> list[str]:
    """How wrong the left ventricle is where that was measured; nothing elsewhere."""
    rows = []
    for method in (UPPER, *FROM_LESS):
        for k in sorted({cell.k for cell in cells if (cell.shift, cell.method) == (shift, method)}):
            own = cells.get(shift, method, k)
            if all(cell.ventricle for cell in own.values()):
                areas, fractions = (
                    [f"{scale * _ventricle(own, when, measure):.1f}" for when in ("before", "after")]
                    for measure, scale in (("area", 100), ("EF", 1))
                )
                rows.append(table_row([method, "" if method == UPPER else str(k), *areas, *fractions]))
    if not rows:
        return []
    return [
        "",
        "Left ventricle: mean error of its area in percent of the true one, and mean absolute difference to the "
        "published ejection fraction in points.",
        "",
        "| method | k | area, source model | area, afterwards | EF, source model | EF, afterwards |",
        "|---" * 6 + "|",
        *rows,
    ]


def _row(method: str, k: int, own: Mapping[int, Cell], none: Mapping[int, Cell], upper: Mapping[int, Cell]) -> str:
    gain, gap, harm = difference(none, own), gap_recovered(none, own, upper), harm_rate(none, own)
    is_ours = method == OURS or method in LADDER.values()
    ppo = ppo_gain(own) if is_ours else None
    lost = regret(own)
    distances = [value for cell in own.values() for value in cell.hd95 if value is not None]
    bare = method == NONE
    return table_row(
        [
            method,
            "" if method in (NONE, UPPER) else str(k),
            " ".join(str(seed) for seed in sorted(own)),
            f"{np.mean([np.mean(cell.dice) for cell in own.values()]):.3f}",
            "" if bare or gain is None else interval(asdict(gain)),
            "" if bare or method == UPPER or gap is None else f"{100 * gap:.0f} %",
            f"{np.mean(distances):.1f}" if distances else "",
            f"{100 * np.mean([cell.valid for cell in own.values()]):.0f}",
            "" if bare or harm is None else f"{100 * harm:.1f}",
            "" if ppo is None else interval(asdict(ppo), 4),
            "" if lost is None else f"{100 * lost:.2f}",
            ", ".join(str(own[seed].chosen) for seed in sorted(own)) if is_ours else "",
            "" if bare else f"{np.median([cell.minutes for cell in own.values()]):.1f}",
        ]
    )


def draw(cells: Cells, quick: bool, path: Path) -> None:
    """Dice by number of reviewed patients, a panel for each shift; numbers only, no pixel of a patient."""
    shifts = [shift for shift in TITLES if cells.get(shift, OURS, _COMPARED_AT) or cells.get(shift, OURS, 0)]
    if not shifts:
        return
    counts = sorted({cell.k for cell in cells if cell.method in (OURS, *CONTROLS)})
    figure = Figure(figsize=(2.6 * len(shifts), 3.0), layout="constrained")
    panels = figure.subplots(1, len(shifts), squeeze=False)
    for panel, shift in zip(panels[0], shifts, strict=True):
        for method, colour, marker in zip((OURS, *CONTROLS), ("#0072B2", "#E69F00", "#009E73"), "o^s", strict=True):
            found = sorted({cell.k for cell in cells if (cell.shift, cell.method) == (shift, method)})
            means = [np.mean([np.mean(cell.dice) for cell in cells.get(shift, method, k).values()]) for k in found]
            panel.plot(found, means, marker=marker, color=colour, markersize=4, label=method)
        for method, style in ((NONE, ":"), (UPPER, "--")):
            own = cells.get(shift, method, 0)
            if own:
                height = float(np.mean([np.mean(cell.dice) for cell in own.values()]))
                panel.axhline(height, color="#555555", linestyle=style, label=method)
        panel.set_title(TITLES[shift].replace(" to ", "\nto "), fontsize=8)
        panel.set_xlabel("reviewed patients", fontsize=8)
        panel.set_xticks(counts)
        panel.set_xlim(min(counts, default=0) - 1, max(counts, default=0) + 1)
        panel.tick_params(labelsize=7)
    panels[0][0].set_ylabel("mean Dice", fontsize=8)
    names = {text: line for panel in panels[0] for line, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(names.values(), names.keys(), loc="outside upper center", ncols=len(names), fontsize=7)
    save(figure, "Dice on held-out target patients", quick, path)


def report(cells: Cells, started_in: dict[str, Any], quick: bool, name: str) -> None:
    """Writes JSON, table and figure of that name from the cells that there are."""
    seeds = sorted({cell.seed for cell in cells})
    summary = summarise(cells) | ({"quick": True} if quick else {})
    content = {"quick": quick, "cells": [asdict(cell) for cell in cells]}
    write_results(name, started_in, seeds, content, summary, table(cells, quick))
    draw(cells, quick, RESULTS / f"{name}.png")
