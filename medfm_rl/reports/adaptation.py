"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from medfm_rl.metrics.calibration import ReliabilityCurve
from medfm_rl.reports.figures import (
    LEGEND_COLUMNS,
    encode_figure,
    explain_rewards,
    overlay,
    show_no_axes,
    structure_colours,
)
from medfm_rl.reports.pages import render_page
from medfm_rl.reports.tables import TableRow, verdict
from medfm_rl.types import FloatArray, LabelMap, LabelSchema

_BEFORE, _AFTER = "#0072B2", "#D55E00"
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True, eq=False)
class ReportCase:
    """A case to look at; all arrays are 2-D on one grid.

    Attributes:
        case_id: Name of the case.
        image: Grey values.
        before: Class indices of the source model.
        after: Class indices of the adapted model.
        reward_map: Reward map of the adapted segmentation, in [0, 1].
        ground_truth: Class indices, or None where there is none.
        dice_before: Mean Dice, or None without ground truth.
        dice_after: Mean Dice, or None without ground truth.
    """

    case_id: str
    image: FloatArray
    before: LabelMap
    after: LabelMap
    reward_map: FloatArray
    ground_truth: LabelMap | None
    dice_before: float | None
    dice_after: float | None


@dataclass(frozen=True)
class ChoiceRow:
    """A candidate of a run.

    Attributes:
        name: As in its folder.
        chosen: Whether it was returned.
        opinions: By signal its mean score, and whether it surely prefers the candidate, or surely does not.
    """

    name: str
    chosen: bool
    opinions: Mapping[str, tuple[float, bool, bool]]


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that the page shows.

    Attributes:
        title: Heading.
        simulated: Whether the images are simulated; the page says so.
        schema: Structures.
        rows: The comparison, the mean last; empty without ground truth.
        validity: Share of valid masks before and after, or None.
        paired_dice: Mean Dice of each case before and after.
        cases: Cases to show, worst first.
        curves: By title, then by name: steps and values.
        reliability: By network: curve and ECE before calibration, curve and ECE after.
        chosen: The choice between the candidates, in words.
        choice: What each signal says of each of them.
        provenance: Names and values.
    """

    title: str
    simulated: bool
    schema: LabelSchema
    rows: Sequence[TableRow]
    validity: tuple[float, float] | None
    paired_dice: Sequence[tuple[float, float]]
    cases: Sequence[ReportCase]
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]
    reliability: Mapping[str, tuple[ReliabilityCurve, float, ReliabilityCurve, float]]
    chosen: str
    choice: Sequence[ChoiceRow]
    provenance: Mapping[str, str]


def write_report(path: Path, data: ReportData) -> None:
    """Writes the page; it loads nothing from anywhere else."""
    figures = {
        "paired": _paired_figure(data.paired_dice) if data.paired_dice else None,
        "curves": [(title, _curve_figure(title, curves)) for title, curves in data.curves.items()],
        "reliability": _reliability_figure(data.reliability) if data.reliability else None,
        "cases": [(case, encode_figure(case_figure(case, data.schema, data.simulated))) for case in data.cases],
    }
    render_page(path, "report.html", simulated=data.simulated, data=data, figures=figures, verdict=verdict(data.rows))


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _paired_figure(pairs: Sequence[tuple[float, float]]) -> str:
    figure, axes = _axes(4.6, 4.4)
    before, after = np.array(pairs).T
    low = max(0.0, float(min(before.min(), after.min())) - 0.03)
    axes.plot([low, 1], [low, 1], color="0.6", linewidth=1, linestyle="--")
    axes.scatter(before, after, s=18, color=_AFTER, alpha=0.7, edgecolor="none")
    axes.set(xlim=(low, 1), ylim=(low, 1), xlabel="Dice, source model", ylabel="Dice, adapted model", aspect="equal")
    better = int((after > before).sum())
    axes.set_title(f"{better} of {len(pairs)} cases better (above the line)", fontsize=10)
    return encode_figure(figure)


def _curve_figure(title: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    figure, axes = _axes(4.6, 3.2)
    for index, (name, (steps, values)) in enumerate(curves.items()):
        line, colour = _LINES[index % len(_LINES)], _LINE_COLOURS[index % len(_LINE_COLOURS)]
        axes.plot(steps, values, line, color=colour, label=name, linewidth=1.6)
    axes.set(xlabel="PPO update")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return encode_figure(figure)


def _reliability_figure(
    networks: Mapping[str, tuple[ReliabilityCurve, float, ReliabilityCurve, float]],
) -> str:
    figure = Figure(figsize=(3.4 * len(networks), 3.4))
    for index, (name, (before, ece_before, after, ece_after)) in enumerate(networks.items(), 1):
        axes = figure.add_subplot(1, len(networks), index)
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        axes.plot(
            before.confidence, before.accuracy, "o-", color=_BEFORE, markersize=3, label=f"T = 1, ECE {ece_before:.3f}"
        )
        axes.plot(
            after.confidence, after.accuracy, "s-", color=_AFTER, markersize=3, label=f"calibrated, ECE {ece_after:.3f}"
        )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", aspect="equal")
        axes.set_title(name, fontsize=10)
        axes.legend(frameon=False, fontsize=7, loc="upper left")
        if index == 1:
            axes.set_ylabel("share of pixels that are right")
    figure.tight_layout()
    return encode_figure(figure)


def case_figure(case: ReportCase, schema: LabelSchema, simulated: bool) -> Figure:
    """Image, segmentation before and after, reward map and, where it is known, ground truth, side by side."""
    masks: list[tuple[str, LabelMap | None]] = [("image", None), ("before", case.before), ("after", case.after)]
    truth: list[tuple[str, LabelMap | None]] = []
    if case.ground_truth is not None:
        truth.append(("ground truth", case.ground_truth))
    handles = [Patch(facecolor=colour, label=name) for name, colour in structure_colours(schema).items()]
    if simulated:
        handles.append(Patch(facecolor="none", label="(simulated data)"))
    legend_rows = -(-len(handles) // LEGEND_COLUMNS)
    size = (2.5 * (len(masks) + 1 + len(truth)), 2.8 + 0.2 * legend_rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(masks) + 1 + len(truth))
    reward_panel = panels[len(masks)]
    for axes, (title, labels) in zip([*panels[: len(masks)], *panels[len(masks) + 1 :]], masks + truth, strict=True):
        axes.imshow(case.image, cmap="gray")
        if labels is not None:
            axes.imshow(overlay(labels, schema))
        axes.set_title(_panel_title(title, case), fontsize=9)
    picture = reward_panel.imshow(case.reward_map, cmap="cividis", vmin=0, vmax=1)
    reward_panel.set_title("reward map of after", fontsize=9)
    for axes in panels:
        show_no_axes(axes)
    explain_rewards(figure, panels, picture)
    columns = min(len(handles), LEGEND_COLUMNS)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _panel_title(title: str, case: ReportCase) -> str:
    score = {"before": case.dice_before, "after": case.dice_after}.get(title)
    return title if score is None else f"{title} (Dice {score:.3f})"
