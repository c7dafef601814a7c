"""The report of a run: one self-contained HTML page, and the table that the command line prints."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from rich.markup import escape
from rich.table import Table

from medfm_rl.data.files import write_text
from medfm_rl.metrics.bootstrap import PairedDifference
from medfm_rl.metrics.calibration import ReliabilityCurve
from medfm_rl.metrics.scores import StructureSummary
from medfm_rl.types import FloatArray, LabelMap, LabelSchema

# Okabe and Ito's palette: told apart by colour-blind readers and in grey print.
_PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")
_BEFORE, _AFTER = "#0072B2", "#D55E00"
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_LINES = ("-", "--", "-.", ":")
_LEGEND_COLUMNS = 6
_DECISIONS = ("referred", "proposed", "corrected")
_CORRECTIONS = 50
"""Pictures on the page of corrections."""


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
class TableRow:
    """One structure in the comparison of source and adapted model.

    Attributes:
        structure: Name, or "mean".
        before: Mean Dice of the source model.
        after: Mean Dice of the adapted model.
        difference: Paired, with its interval.
        hd95_before: Mean HD95 of the source model, with its unit.
        hd95_after: Mean HD95 of the adapted model, with its unit.
    """

    structure: str
    before: float
    after: float
    difference: PairedDifference
    hd95_before: str
    hd95_after: str


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
        chosen: What the judge chose, in words.
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
    provenance: Mapping[str, str]


@dataclass(frozen=True)
class CorrectionEntry:
    """A correction on the page of corrections.

    Attributes:
        case_id: Name of the case.
        decision: corrected, proposed or referred.
        reasons: Why, in words.
        reward_before: Mean reward of the original.
        reward_after: Mean reward of the proposal.
        seconds: Time it took.
        views: Views that the method looked at.
        judge_views: Views that the judge looked at; None where there was nothing to judge.
        picture: A PNG file, as `correction_figure` draws it.
    """

    case_id: str
    decision: str
    reasons: Sequence[str]
    reward_before: float
    reward_after: float
    seconds: float
    views: int
    judge_views: int | None
    picture: Path

    def badness(self) -> tuple[int, float]:
        """Sorts the worst first: referred masks, then those of low reward."""
        mask = self.reward_after if self.decision == "corrected" else self.reward_before
        return _DECISIONS.index(self.decision), mask


def verdict(rows: Sequence[TableRow]) -> str:
    """The result in one sentence; it says so where there is no gain."""
    if not rows:
        return "No ground truth was given: nothing is known about the gain."
    mean = rows[-1]
    change = mean.difference
    span = (
        f"{100 * change.mean:+.1f} Dice points (95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f}, "
        f"{change.patients} patients)"
    )
    scores = f"from {mean.before:.3f} to {mean.after:.3f}"
    if change.low > 0:
        return f"The adapted model is better than the source model: {scores}, {span}."
    if change.high < 0:
        return f"The adapted model is worse than the source model: {scores}, {span}."
    return f"No difference could be shown between the adapted and the source model: {scores}, {span}."


def comparison_table(rows: Sequence[TableRow], title: str) -> Table:
    """The comparison for the terminal."""
    table = Table(title=escape(title))
    for name in ("structure", "source", "adapted", "difference [95 % interval]", "HD95 source", "HD95 adapted"):
        table.add_column(name, justify="left" if name == "structure" else "right")
    for row in rows:
        change = row.difference
        table.add_row(
            escape(row.structure),
            f"{row.before:.3f}",
            f"{row.after:.3f}",
            f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]",
            row.hd95_before,
            row.hd95_after,
        )
    return table


def summary_table(summaries: Sequence[StructureSummary], title: str) -> Table:
    """The scores of one model for the terminal."""
    table = Table(title=escape(title))
    for name in ("structure", "cases", "Dice", "10th percentile", "HD95", "ASSD", "no distance", "valid"):
        table.add_column(name, justify="left" if name == "structure" else "right")
    for row in summaries:
        distances = ("-", "-") if np.isnan(row.hd95) else (f"{row.hd95:.2f} {row.unit}", f"{row.assd:.2f} {row.unit}")
        table.add_row(
            escape(row.structure),
            str(row.cases),
            f"{row.dice:.3f}",
            f"{row.dice_p10:.3f}",
            *distances,
            str(row.undefined),
            f"{100 * row.validity:.0f} %",
        )
    return table


def write_report(path: Path, data: ReportData) -> None:
    """Writes the page; it loads nothing from anywhere else."""
    from jinja2 import Environment

    template = (resources.files("medfm_rl") / "templates" / "report.html").read_text(encoding="utf-8")
    figures = {
        "paired": _paired_figure(data.paired_dice) if data.paired_dice else None,
        "curves": [(title, _curve_figure(title, curves)) for title, curves in data.curves.items()],
        "reliability": _reliability_figure(data.reliability) if data.reliability else None,
        "cases": [(case, _encode(case_figure(case, data.schema, data.simulated))) for case in data.cases],
    }
    page = Environment(autoescape=True).from_string(template)
    write_text(path, page.render(data=data, figures=figures, verdict=verdict(data.rows)))


def write_corrections_page(
    path: Path,
    entries: Sequence[CorrectionEntry],
    problems: Mapping[str, str],
    untouched: int,
    promise: str,
    cut: int,
    simulated: bool,
) -> None:
    """Writes the page of corrections; it loads nothing from anywhere else.

    Args:
        path: File of the page.
        entries: One for each case that was handled.
        problems: By case: why it could not be handled.
        untouched: Cases that were not taken.
        promise: What is promised of the accepted corrections.
        cut: Cases whose time budget ended early.
        simulated: Whether the images are simulated; the page says so.
    """
    from jinja2 import Environment

    ordered = sorted(entries, key=CorrectionEntry.badness)
    template = (resources.files("medfm_rl") / "templates" / "corrections.html").read_text(encoding="utf-8")
    counts = {decision: sum(entry.decision == decision for entry in entries) for decision in _DECISIONS}
    shown = [(entry, base64.b64encode(entry.picture.read_bytes()).decode()) for entry in ordered[:_CORRECTIONS]]
    page = Environment(autoescape=True).from_string(template)
    write_text(
        path,
        page.render(
            shown=shown,
            total=len(entries),
            counts=counts,
            problems=problems,
            untouched=untouched,
            promise=promise,
            cut=cut,
            simulated=simulated,
        ),
    )


def _encode(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(figure_bytes(figure)).decode()


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
    return _encode(figure)


def _curve_figure(title: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    figure, axes = _axes(4.6, 3.2)
    for index, (name, (steps, values)) in enumerate(curves.items()):
        line, colour = _LINES[index % len(_LINES)], _LINE_COLOURS[index % len(_LINE_COLOURS)]
        axes.plot(steps, values, line, color=colour, label=name, linewidth=1.6)
    axes.set(xlabel="PPO update")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return _encode(figure)


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
    return _encode(figure)


def case_figure(case: ReportCase, schema: LabelSchema, simulated: bool) -> Figure:
    """Image, segmentation before and after, reward map and, where it is known, ground truth, side by side."""
    masks: list[tuple[str, LabelMap | None]] = [("image", None), ("before", case.before), ("after", case.after)]
    truth: list[tuple[str, LabelMap | None]] = []
    if case.ground_truth is not None:
        truth.append(("ground truth", case.ground_truth))
    handles = [Patch(facecolor=colour, label=name) for name, colour in structure_colours(schema).items()]
    if simulated:
        handles.append(Patch(facecolor="none", label="(simulated data)"))
    legend_rows = -(-len(handles) // _LEGEND_COLUMNS)
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
        axes.axis("off")
    _explain_rewards(figure, panels, picture)
    columns = min(len(handles), _LEGEND_COLUMNS)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def correction_figure(
    image: FloatArray,
    before: LabelMap,
    reward_before: FloatArray,
    after: LabelMap,
    reward_after: FloatArray,
    schema: LabelSchema,
    title: str,
) -> Figure:
    """Image, mask and reward map before a correction, mask and reward map after it, side by side.

    Args:
        image: Grey values `(*S)`; of a volume the plane with most of the change is shown.
        before: Class indices `(*S)` of the original.
        reward_before: Its reward map, in [0, 1].
        after: Class indices of the proposal.
        reward_after: Its reward map.
        schema: Structures.
        title: Heading.
    """
    if before.ndim == 3:
        changed = (before != after).sum(axis=(1, 2))
        plane = int(changed.argmax() if changed.any() else (before > 0).sum(axis=(1, 2)).argmax())
        image, before, reward_before = image[plane], before[plane], reward_before[plane]
        after, reward_after = after[plane], reward_after[plane]
    figure = Figure(figsize=(13, 3.3), layout="constrained")
    panels = figure.subplots(1, 5)
    names = ("image", "before", "reward before", "after", "reward after")
    for axes, name, labels in zip(panels, names, (None, before, None, after, None), strict=True):
        axes.set_title(name, fontsize=9)
        axes.axis("off")
        if not name.startswith("reward"):
            axes.imshow(image, cmap="gray")
        if labels is not None:
            axes.imshow(overlay(labels, schema))
    for axes, reward_map in ((panels[2], reward_before), (panels[4], reward_after)):
        picture = axes.imshow(reward_map, cmap="cividis", vmin=0, vmax=1)
    _explain_rewards(figure, panels, picture)
    handles = [Patch(facecolor=colour, label=name) for name, colour in structure_colours(schema).items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def _explain_rewards(figure: Figure, panels: npt.NDArray[np.object_], picture: AxesImage) -> None:
    """A colour bar beside the panels for the reward maps among them, of which `picture` is one."""
    bar = figure.colorbar(picture, ax=panels, fraction=0.012, pad=0.01)
    bar.set_label("reward: fused probability of being right", fontsize=8)


def figure_bytes(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _panel_title(title: str, case: ReportCase) -> str:
    score = {"before": case.dice_before, "after": case.dice_after}.get(title)
    return title if score is None else f"{title} (Dice {score:.3f})"


def structure_colours(schema: LabelSchema) -> dict[str, str]:
    """The colour of each structure in pictures, as `#RRGGBB`."""
    return {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(schema.structures)}


def overlay(labels: LabelMap, schema: LabelSchema) -> npt.NDArray[np.float64]:
    """Translucent fill and opaque contour of each structure, RGBA `(H, W, 4)`."""
    layer = np.zeros((*labels.shape, 4))
    for index, shown in enumerate(structure_colours(schema).values(), 1):
        mask = labels == index
        inside = mask.copy()
        for axis in (0, 1):
            for step in (-1, 1):
                inside &= np.roll(mask, step, axis)
        colour = to_rgb(shown)
        layer[mask] = (*colour, 0.3)
        layer[mask & ~inside] = (*colour, 1.0)
    return layer
