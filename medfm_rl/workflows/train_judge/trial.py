"""How good a judge is, on patients that taught it nothing."""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import stats

from medfm_rl.data.files import write_json, write_text
from medfm_rl.data.layouts import are_simulated
from medfm_rl.errors import DataError
from medfm_rl.metrics.failure_detection import excess_aurc, failure_auroc, interval_coverage
from medfm_rl.metrics.overlap import dice
from medfm_rl.progress import Progress
from medfm_rl.quality.reports import QualityReport
from medfm_rl.quality.submission import is_a_batch
from medfm_rl.reports.judge import JudgePage, TriedCase, write_judge_page
from medfm_rl.runs.judging import Judge
from medfm_rl.workflows.calibrate.quality import CalibrateRequest, read_masks
from medfm_rl.workflows.train_judge.deal import Deal

TABLE_FILE: Final = "held_out.csv"
SUMMARY_FILE: Final = "held_out.json"
PAGE_FILE: Final = "report.html"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """Figures on held-out patients; a failure is a mean Dice below the limit of the calibration.

    Attributes:
        patients: How many.
        masks: How many of their masks could be predicted.
        failures: How many of these are failures.
        error: Mean absolute error of predicted mean Dice.
        error_of_constant: The same of the mean of the true Dice, which knows no mask: what must be beaten.
        spearman: Rank correlation of predicted and true mean Dice; None where one of them is constant.
        failure_auroc: Probability that a failure is predicted lower than a success; None without both.
        excess_aurc: Excess area under the risk-coverage curve.
        coverage: Share of the intervals that hold the true mean Dice.
        accepted: Masks with the verdict accept.
        accepted_failures: Failures among these.
    """

    patients: int
    masks: int
    failures: int
    error: float
    error_of_constant: float
    spearman: float | None
    failure_auroc: float | None
    excess_aurc: float
    coverage: float
    accepted: int
    accepted_failures: int

    @property
    def words(self) -> list[str]:
        """The figures, a line each."""
        auroc = "cannot be told without both" if self.failure_auroc is None else f"{self.failure_auroc:.2f}"
        rank = "cannot be told" if self.spearman is None else f"{self.spearman:.2f}"
        return [
            f"Tried on {self.masks} masks of {self.patients} patients that taught it nothing, {self.failures} of them "
            "failures",
            f"Predicted mean Dice: off by {self.error:.3f} on average ({self.error_of_constant:.3f} without looking at "
            f"the mask), rank correlation {rank}",
            f"Failures are predicted lower than successes: {auroc}; intervals hold the true Dice: {self.coverage:.0%}",
            f"Accepted: {self.accepted}, {self.accepted_failures} of them failures",
        ]

    @property
    def doubts(self) -> list[str]:
        """Why nobody should accept masks by this judge yet, a line each; empty where the trial shows nothing."""
        found = []
        if not self.failures:
            found.append(
                f"none of the {self.masks} masks of the trial is a failure, so that nothing shows whether it tells bad "
                "masks from good ones: do not accept by it; give labelled cases on which the tool fails too"
            )
        if self.error >= self.error_of_constant:
            found.append(
                f"it predicts no better than one number for every mask would (off by {self.error:.3f} on average, and "
                f"{self.error_of_constant:.3f} without looking at the mask): do not accept by it; give more labelled "
                "patients, or train longer (--steps)"
            )
        if self.spearman is not None and self.spearman <= 0:
            found.append(
                f"it does not order masks by how good they are (rank correlation {self.spearman:.2f}): do not accept "
                "by it; give more labelled patients, or train longer (--steps)"
            )
        return found


def try_judge(judge: Judge, parts: Deal, asked: CalibrateRequest, out: Path, progress: Progress) -> Trial:
    """Assesses the held-out masks and writes table, figures and page."""
    controller, schema = judge.controller(), judge.grid.schema
    reports: list[QualityReport] = []
    truths: list[float] = []
    waiting = []
    masks = read_masks(schema, parts.trying, asked)
    for done, (file, mask) in enumerate(zip(parts.trying, masks, strict=True), 1):
        item = file.read_labelled(schema)
        waiting.append(controller.submit(item.case, mask.labels, mask.confidence))
        truths.append(float(dice(mask.labels, item.ground_truth, schema.classes).mean()))
        if is_a_batch(waiting) or done == len(parts.trying):
            reports += controller.assess_batch(waiting)
            waiting = []
        progress("trying the judge", done, len(parts.trying))
    batch = controller.settle(reports)
    limit = judge.quality.targets.dice
    cases = [
        TriedCase(report.case_id, report.patient_id, truth, predicted, mean.low, mean.high, report.verdict)
        for report, truth in zip(batch.reports, truths, strict=True)
        if (predicted := (mean := report.mean).predicted_dice) is not None
    ]
    if not cases:
        raise DataError(
            "every held-out mask lacks a structure, so that nothing is predicted of any; is --labels right?"
        )
    trial = _figures(cases, limit)
    _write_table(out / TABLE_FILE, cases)
    write_json(out / SUMMARY_FILE, {"format": 1, "dice_limit": limit, **asdict(trial)})
    simulated = are_simulated(parts.trying)
    rows = {
        name: len({file.patient_id for file in part})
        for name, part in (("taught", parts.learning), ("calibrated", parts.calibrating), ("tried", parts.trying))
    }
    page = JudgePage(trial.words, trial.doubts, cases, limit, rows, judge.quality, simulated)
    write_judge_page(out / PAGE_FILE, page)
    for doubt in trial.doubts:
        _LOG.warning("%s: %s", judge.path, doubt)
    return trial


def _figures(cases: list[TriedCase], limit: float) -> Trial:
    truth, predicted = (np.array([getattr(case, name) for case in cases]) for name in ("dice", "predicted"))
    failed, accepted = truth < limit, np.array([case.verdict == "accept" for case in cases])
    varies = len(cases) > 2 and truth.std() > 0 and predicted.std() > 0
    low, high = (np.array([getattr(case, name) for case in cases]) for name in ("low", "high"))
    return Trial(
        patients=len({case.patient for case in cases}),
        masks=len(cases),
        failures=int(failed.sum()),
        error=float(np.abs(predicted - truth).mean()),
        error_of_constant=float(np.abs(truth - truth.mean()).mean()),
        spearman=float(stats.spearmanr(predicted, truth).statistic) if varies else None,
        failure_auroc=failure_auroc(predicted, failed),
        excess_aurc=excess_aurc(predicted, 1 - truth),
        coverage=interval_coverage(low, high, truth).share,
        accepted=int(accepted.sum()),
        accepted_failures=int((accepted & failed).sum()),
    )


def _write_table(path: Path, cases: list[TriedCase]) -> None:
    text = io.StringIO()
    rows: list[dict[str, Any]] = [asdict(case) for case in cases]
    writer = csv.DictWriter(text, list(TriedCase.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
