"""Masks assessed without ground truth by the controller of a run, as several benchmarks do it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.harness.recording import quiet
from medfm_rl.data.layouts import CaseFile
from medfm_rl.metrics.failure_detection import failure_auroc
from medfm_rl.metrics.overlap import dice
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.reports import BatchReport, QualityReport
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.types import LabelSchema
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


def assess_own_masks(
    run: FinishedRun, cases: Sequence[CaseFile], schema: LabelSchema, failure: float
) -> dict[str, Any]:
    """Masks of the run's own segmenter, assessed: what that adds to the time of segmenting, and the failures it finds.

    Both are timed one after the other for the same images, some at once as `medfm-rl score` takes them.

    Args:
        run: A finished run.
        cases: With ground truth.
        schema: Of the ground truth.
        failure: Mean Dice below which a mask is a failure.
    """
    controller = controller_of(run)
    if controller is None:
        return {"overhead": None, "segmenting_seconds": None, "failure_auroc": None, "failures": None}
    ratios, seconds, predicted, truth = [], [], [], []
    for first in range(0, len(cases), TOGETHER):
        labelled = [file.read_labelled(schema) for file in cases[first : first + TOGETHER]]
        began = time.perf_counter()
        masks = [controller.segmenter.segment(item.case) for item in labelled]
        segmented = time.perf_counter()
        reports = controller.assess_batch([controller.segment(item.case) for item in labelled])
        both = time.perf_counter() - segmented
        seconds.append((segmented - began) / len(labelled))
        ratios.append(both / (segmented - began) - 1)
        predicted += [predicted_dice(report) for report in reports]
        truth += [
            float(dice(mask, item.ground_truth, schema.classes).mean())
            for mask, item in zip(masks, labelled, strict=True)
        ]
    failed = np.array(truth) < failure
    return {
        "overhead": float(np.median(ratios)),
        "segmenting_seconds": float(np.median(seconds)),
        "failure_auroc": failure_auroc(np.array(predicted), failed),
        "failures": int(failed.sum()),
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
