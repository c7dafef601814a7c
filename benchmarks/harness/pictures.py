"""Pictures of simulated cases, which may be published."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.data.layouts import CaseFile
from medfm_rl.metrics.scores import MEAN
from medfm_rl.reports.adaptation import case_figure
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.workflows.adapt.final_report import show_case
from medfm_rl.workflows.evaluate.comparison import Comparison


def draw_median_case(
    source: SegmenterAdapter, run: FinishedRun, files: list[CaseFile], comparison: Comparison, picture: Path
) -> None:
    """Draws the simulated case whose gain in mean Dice is the median, before and after adaptation.

    Args:
        source: The segmenter before adaptation.
        run: The run that adapted it.
        files: The cases that were compared.
        comparison: What they scored.
        picture: File to write.
    """
    before, after = (
        np.array([score.dice for score in evaluation.of(MEAN)]) for evaluation in (comparison.before, comparison.after)
    )
    index = int(np.argsort(after - before)[len(after) // 2])
    case = show_case(source, run, files[index], (before[index], after[index]))
    picture.parent.mkdir(exist_ok=True)
    figure = case_figure(case, source.schema, simulated=True)
    figure.savefig(picture, dpi=90, bbox_inches="tight", facecolor="white")
