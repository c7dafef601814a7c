"""Masks assessed without ground truth by the controller of a run, as several benchmarks do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.harness.recording import quiet
from medfm_rl.quality import QualityController, QualityReport
from medfm_rl.quality.reports import BatchReport
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.workflows.calibrate.from_source import write_default_quality

TOGETHER = 16
"""Masks that are assessed at once, as `medfm-rl score` does."""
_DRAWS = 1000


def controller_of(run: FinishedRun) -> QualityController | None:
    """The controller of a run with the default calibration; None where too few patients were held out."""
    write_default_quality(run, run.require_config(), quiet)
    return run.controller() if run.folder.quality.exists() else None


def predicted_dice(report: QualityReport) -> float:
    """The predicted mean Dice; a mask that lacks a structure has none, and is worse than any that has one."""
    value = report.mean.predicted_dice
    return 0.0 if value is None else value


def verdicts_of(batch: BatchReport) -> dict[str, Any]:
    """State of a batch, and verdict and predicted mean Dice of each mask."""
    return {
        "state": batch.state,
        "verdicts": [report.verdict for report in batch.reports],
        "predicted": [predicted_dice(report) for report in batch.reports],
    }


def patient_bootstrap(statistic: Callable[[Any], float], patients: Sequence[str]) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of a statistic of rows, from draws of patients."""
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    rows = [np.flatnonzero(index == number) for number in range(len(names))]
    generator = np.random.default_rng(0)
    drawn = [
        statistic(np.concatenate([rows[number] for number in generator.integers(len(names), size=len(names))]))
        for _ in range(_DRAWS)
    ]
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))
