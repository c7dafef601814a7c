"""The page of a judge that `train-judge` made: how good it is on held-out patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from medfm_rl.quality.model import QualityModel
from medfm_rl.reports.figures import encode_figure
from medfm_rl.reports.pages import render_page

_COLOURS = {"accept": "#00684a", "correct": "#E69F00", "refer": "#a3123f"}


@dataclass(frozen=True)
class TriedCase:
    """A held-out mask.

    Attributes:
        case: Name of the case.
        patient: Its patient.
        dice: True mean Dice.
        predicted: Predicted mean Dice.
        low: Lower end of its interval.
        high: Upper end.
        verdict: accept, correct or refer.
    """

    case: str
    patient: str
    dice: float
    predicted: float
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class JudgePage:
    """Everything that the page shows.

    Attributes:
        words: The figures, a sentence each.
        doubts: Why nobody should accept masks by it, a sentence each.
        cases: Held-out masks.
        limit: Mean Dice below which a mask is bad.
        patients: How many taught, calibrated and tried it.
        model: The quality model.
        simulated: Whether the images are simulated; the page says so.
    """

    words: Sequence[str]
    doubts: Sequence[str]
    cases: Sequence[TriedCase]
    limit: float
    patients: Mapping[str, int]
    model: QualityModel
    simulated: bool


def write_judge_page(path: Path, page: JudgePage) -> None:
    """Writes the page; it loads nothing from anywhere else."""
    worst = sorted(page.cases, key=lambda case: case.predicted)
    figure = encode_figure(_picture(page))
    render_page(path, "judge.html", simulated=page.simulated, page=page, worst=worst, figure=figure)


def _picture(page: JudgePage) -> Figure:
    """Predicted against true mean Dice."""
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    for verdict, colour in _COLOURS.items():
        own = [case for case in page.cases if case.verdict == verdict]
        axes.scatter([case.dice for case in own], [case.predicted for case in own], s=14, color=colour, label=verdict)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.axvline(page.limit, color="0.7", linewidth=1, linestyle="--")
    axes.set(xlabel="true mean Dice", ylabel="predicted mean Dice", xlim=(0, 1.01), ylim=(0, 1.01))
    axes.set_title("held-out masks" + (" (simulated data)" if page.simulated else ""), fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure
