"""The report of a supervised training: curves, Dice on held-out patients, and some of their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from medfm_rl.metrics.scores import StructureSummary
from medfm_rl.reports.figures import LEGEND_COLUMNS, encode_figure, overlay, show_no_axes, structure_colours
from medfm_rl.reports.pages import render_page
from medfm_rl.types import FloatArray, LabelMap, LabelSchema

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """A validation case to look at; all arrays are 2-D on one grid.

    Attributes:
        case_id: Name of the case.
        image: Grey values.
        mask: Class indices of the model.
        ground_truth: Class indices.
        dice: Mean over the structures.
    """

    case_id: str
    image: FloatArray
    mask: LabelMap
    ground_truth: LabelMap
    dice: float


@dataclass(frozen=True, eq=False)
class TrainingPage:
    """Everything that the page shows.

    Attributes:
        simulated: Whether the images are simulated; the page says so.
        schema: Structures.
        summary: How the training went, in a sentence.
        steps: The step of each validation.
        losses: By name, the losses at each validation.
        dice: By structure, Dice at each validation.
        kept: The step whose weights were kept.
        scores: On the validation cases in their own pixels, by structure, the mean last.
        cases: Some of them, worst first.
        provenance: Names and values.
    """

    simulated: bool
    schema: LabelSchema
    summary: str
    steps: Sequence[int]
    losses: Mapping[str, Sequence[float]]
    dice: Mapping[str, Sequence[float]]
    kept: int
    scores: Sequence[StructureSummary]
    cases: Sequence[TrainingCase]
    provenance: Mapping[str, str]


def write_training_page(path: Path, page: TrainingPage) -> None:
    """Writes the page; it loads nothing from anywhere else."""
    figures = {
        "losses": _curves("loss", page, page.losses),
        "dice": _curves("Dice on held-out patients", page, page.dice),
        "cases": [(case, encode_figure(_case_figure(case, page.schema, page.simulated))) for case in page.cases],
    }
    render_page(path, "training.html", simulated=page.simulated, page=page, figures=figures)


def _curves(title: str, page: TrainingPage, curves: Mapping[str, Sequence[float]]) -> str:
    figure = Figure(figsize=(5.2, 3.4))
    axes: Axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for index, (name, values) in enumerate(curves.items()):
        line, colour = _LINES[index % len(_LINES)], _COLOURS[index % len(_COLOURS)]
        axes.plot(page.steps, values, line, color=colour, label=name, linewidth=1.6)
    axes.axvline(page.kept, color="0.6", linewidth=1, linestyle="--")
    axes.set(xlabel="step (dashed: the one that was kept)")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return encode_figure(figure)


def _case_figure(case: TrainingCase, schema: LabelSchema, simulated: bool) -> Figure:
    """Image, ground truth and mask side by side."""
    handles = [Patch(facecolor=colour, label=name) for name, colour in structure_colours(schema).items()]
    if simulated:
        handles.append(Patch(facecolor="none", label="(simulated data)"))
    figure = Figure(figsize=(8, 3.0), layout="constrained")
    panels = figure.subplots(1, 3)
    shown = (("image", None), ("ground truth", case.ground_truth), (f"model (Dice {case.dice:.3f})", case.mask))
    for axes, (title, labels) in zip(panels, shown, strict=True):
        axes.imshow(case.image, cmap="gray")
        if labels is not None:
            axes.imshow(overlay(labels, schema))
        axes.set_title(title, fontsize=9)
        show_no_axes(axes)
    columns = min(len(handles), LEGEND_COLUMNS)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure
