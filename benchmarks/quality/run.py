"""Quality control: does the predicted Dice find bad masks on real shifts, beside other ways to assess masks?

    python -m benchmarks.quality.run [--shifts ...] [--seeds 0 1 2] [--reviewed 0] [--runs FOLDER]
    python -m benchmarks.quality.run --report-only   # table from the cells that there are
    python -m benchmarks.quality.run --without-training  # no MC dropout and ensemble, which train six models a seed
    python -m benchmarks.quality.run --quick         # minutes: shows that it runs, measures nothing

On the shifts, splits and models of `benchmarks.feedback.run`, whose runs of `ours` are gone on with: the held-out
target patients, segmented by the source model and by the adapted model, which knew nobody's review or, with
`--reviewed K`, those of K patients. Only these real predictions are assessed, by:

- ours: the predicted mean Dice of the run's `quality.json`, calibrated on held-out source cases, no target label.
- calibrated: the same, calibrated on the labelled cases of half of the held-out patients, measured on the others.
- mean entropy, max softmax and soft Dice confidence of the segmenter, TTA (5 draws), MC dropout (5 draws of a twin that
  was trained with dropout .1), ensemble (5 source models of other seeds), reverse classification (10 source images).

Agreement of several predictions is the mean pairwise Dice among them and the assessed mask, so that every method
assesses the same masks. Beside each cell a score table is written, from which `replays`, `drift` and `inference` go on.
A failure is a mask with a mean Dice below the shift's stated limit. A cell is one model on one
shift with one seed; it is complete when its file is there with every method that is asked for, and is then skipped.
Intervals are 95 %, from 1000 draws of patients.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.feedback.cells import NONE, OURS, Cells
from benchmarks.feedback.methods import FeedbackCells
from benchmarks.harness.assessing import TOGETHER, controller_of, predicted_dice
from benchmarks.harness.command_line import add_results, add_shifts, begin_on_shifts, each_laboratory, parser_of
from benchmarks.harness.laboratory import Laboratory, files_of
from benchmarks.harness.recording import quiet
from benchmarks.quality.report import MODELS, Asked, cell_file, report, table_name
from benchmarks.quality.score_tables import Domain, Row, ScoreTable, table_file
from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import CaseFile, split_by_patient
from medfm_rl.metrics.calibration import expected_calibration_error
from medfm_rl.metrics.overlap import dice
from medfm_rl.quality import baselines
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.model import Targets
from medfm_rl.quality.reports import QualityReport
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.types import LabelledCase, LabelMap
from medfm_rl.workflows.calibrate.quality import MaskToAssess, calibrate_cases
from medfm_rl.workflows.training_images import load_labelled

OURS_DEFAULT, CALIBRATED = "ours", "calibrated"
MEMBERS = 5
LIMITS = {"lungs": 0.93, "echo_apical": 0.8, "optic_disc": 0.7, "complete": 0.8}
"""Mean Dice below which a mask is a failure, by anatomy; stated before anything was measured with it."""


@dataclass(frozen=True, eq=False)
class SegmentedCases:
    """The held-out target cases, and the masks that one model makes of them.

    Attributes:
        of: The model.
        segmenter: The model itself.
        files: Where the cases lie.
        cases: The cases with their ground truth.
        masks: One for each.
        milliseconds: That a mask took.
    """

    of: str
    segmenter: SegmenterAdapter
    files: Sequence[CaseFile]
    cases: Sequence[LabelledCase]
    masks: Sequence[LabelMap]
    milliseconds: float

    @classmethod
    def by(cls, name: str, segmenter: SegmenterAdapter, files: Sequence[CaseFile]) -> SegmentedCases:
        """Segments cases."""
        cases = [file.read_labelled(segmenter.schema) for file in files]
        start = time.perf_counter()
        masks = [segmenter.segment(item.case) for item in cases]
        return cls(name, segmenter, files, cases, masks, 1000 * (time.perf_counter() - start) / len(cases))


class QualityCells:
    """The cells of both models in one laboratory.

    Args:
        laboratory: One shift with one seed.
        reviewed: Patients whose expert masks the adapted model knew.
        training: Whether MC dropout and the ensemble take part, which train models of their own.
    """

    def __init__(self, laboratory: Laboratory, reviewed: int = 0, training: bool = True) -> None:
        self.laboratory = laboratory
        self.reviewed = reviewed
        self.shift, self.seed, self.runs = laboratory.shift, laboratory.seed, laboratory.runs
        self.limit = LIMITS[laboratory.shift.anatomy]
        self.training = training

    def make(self) -> None:
        """Makes the cells that are missing."""
        missing = [model for model in MODELS if not self._is_complete(model)]
        if not missing:
            return
        run = FeedbackCells(self.laboratory, Cells(self.runs, "feedback")).run(self.reviewed)
        controller = controller_of(run)
        source, adapted = self.laboratory.source_model(), run.segmenter
        for name in missing:
            print(f"  assessing masks of {name}", flush=True)
            segmented = SegmentedCases.by(name, source if name == NONE else adapted, self.laboratory.held_out())
            if controller is not None:
                self._write_table(segmented, controller)
            cell = self._assess(segmented, self._baselines(segmented.segmenter, source), controller, run)
            write_json(cell_file(self.runs, self.shift.name, name, self.seed, self.reviewed), cell)

    def _write_table(self, target: SegmentedCases, controller: QualityController) -> None:
        """Writes the score table of a model, for replays, drift and inference.

        Masks of the source are those of its held-out patients, whom no network knows.
        """
        source = SegmentedCases.by(target.of, target.segmenter, files_of(self.shift.folders.source_held_out))
        rows: list[Row] = []
        domains: tuple[tuple[Domain, SegmentedCases], ...] = (("source", source), ("target", target))
        for domain, segmented in domains:
            found = controller.settle(_reports(controller, segmented, range(len(segmented.cases)))).reports
            structures = target.segmenter.schema.classes
            for assessed, mask, item in zip(found, segmented.masks, segmented.cases, strict=True):
                rows.append(Row.of(assessed, float(dice(mask, item.ground_truth, structures).mean()), domain))
        name = table_name(target.of, self.reviewed)
        table = ScoreTable(self.shift.name, name, self.seed, self.limit, False, tuple(rows))
        table.write(table_file(self.runs, self.shift.name, name, self.seed))

    def _is_complete(self, model: str) -> bool:
        path = cell_file(self.runs, self.shift.name, model, self.seed, self.reviewed)
        if not path.exists():
            return False
        return not self.training or baselines.EnsembleAgreement.name in json.loads(path.read_text())["scores"]

    def _baselines(self, segmenter: SegmenterAdapter, source: SegmenterAdapter) -> list[baselines.QualityEstimator]:
        structures = segmenter.schema.classes
        data = self.shift.folders.source
        images, masks = load_labelled(files_of(data)[:10], source, quiet, "reference images")
        found: list[baselines.QualityEstimator] = [
            baselines.MeanEntropy(segmenter),
            baselines.MaxSoftmax(segmenter),
            baselines.SoftDiceConfidence(segmenter, structures),
            baselines.AugmentationAgreement(segmenter, structures),
            baselines.ReverseClassification(images.images[:], masks[:], structures),
        ]
        if not self.training:
            return found
        seeds = [(self.seed + member) % MEMBERS for member in range(MEMBERS)]
        twin = TorchModuleAdapter.load(self.laboratory.trained(data, dropout=0.1)[0])
        members = [self.laboratory.with_seed(seed).source_model() for seed in seeds]
        return [
            *found,
            baselines.MonteCarloDropout(twin, structures),
            baselines.EnsembleAgreement(members, structures),
        ]

    def _assess(
        self,
        segmented: SegmentedCases,
        estimators: Sequence[baselines.QualityEstimator],
        controller: QualityController | None,
        run: FinishedRun,
    ) -> dict[str, Any]:
        structures = segmented.segmenter.schema.classes
        content: dict[str, Any] = {
            "case_ids": [file.case_id for file in segmented.files],
            "patient_ids": [file.patient_id for file in segmented.files],
            "dice": [
                float(dice(mask, item.ground_truth, structures).mean())
                for mask, item in zip(segmented.masks, segmented.cases, strict=True)
            ],
            "limit": self.limit,
            "scores": {},
            "milliseconds": {},
            "forward_passes": {estimator.name: estimator.forward_passes for estimator in estimators},
            "segmenting_milliseconds": segmented.milliseconds,
            "batches": {},
            "environment": dict(self.laboratory.started_in),
        }
        for estimator in estimators:
            _add_baseline(content, estimator, segmented)
        if controller is not None:
            _add_controller(content, OURS_DEFAULT, controller, segmented, range(len(segmented.cases)))
        fitted, measured = _halves(segmented.files, self.seed)
        model = calibrate_cases(
            run,
            [segmented.files[row] for row in fitted],
            [MaskToAssess(segmented.masks[row]) for row in fitted],
            Targets(dice=self.limit),
            quiet,
        )
        calibrated = QualityController(run.segmenter, run.reward, model)
        _add_controller(content, CALIBRATED, calibrated, segmented, measured)
        return content


def _add_baseline(content: dict[str, Any], estimator: baselines.QualityEstimator, segmented: SegmentedCases) -> None:
    """Writes down how an estimator scores all masks, and its time."""
    start = time.perf_counter()
    scores = []
    for item, mask in zip(segmented.cases, segmented.masks, strict=True):
        sample = segmented.segmenter.preprocess(item.case)
        action = segmented.segmenter.preprocess_labels(mask, sample)
        scores.append(estimator.estimate(sample.image, action))
    content["milliseconds"][estimator.name] = 1000 * (time.perf_counter() - start) / len(segmented.cases)
    content["scores"][estimator.name] = scores


def _add_controller(
    content: dict[str, Any],
    name: str,
    controller: QualityController,
    segmented: SegmentedCases,
    rows: Sequence[int],
) -> None:
    """Assesses some of the masks with a controller and writes down what came out."""
    cases, masks = segmented.cases, segmented.masks
    own = segmented.of == OURS
    start = time.perf_counter()
    reports = _reports(controller, segmented, rows)
    spent = 1000 * (time.perf_counter() - start) / max(1, len(rows))
    # The run's own segmenter makes and assesses a mask in one inference; its time without the assessment is taken off.
    content["milliseconds"][name] = spent - (segmented.milliseconds if own else 0)
    content["forward_passes"][name] = len(controller.reward.members) + (not own)
    batch = controller.settle(reports)
    content["scores"][name] = [None] * len(cases)
    intervals: list[list[float] | None] = [None] * len(cases)
    right, maps = [], []
    for row, found in zip(rows, batch.reports, strict=True):
        mean = found.mean
        content["scores"][name][row] = predicted_dice(found)
        if mean.low is not None and mean.high is not None:
            intervals[row] = [mean.low, mean.high]
        maps.append(found.reward_map.ravel())
        right.append((masks[row] == cases[row].ground_truth).ravel())
    content["batches"][name] = {
        "intervals": intervals,
        "pixel_ece": expected_calibration_error(np.concatenate(maps), np.concatenate(right)),
        "shift_probability": batch.shift_probability,
        "guarantees": {promise.promise: promise.status for promise in batch.promises},
        "verdicts": [found.verdict for found in batch.reports],
    }


def _reports(controller: QualityController, segmented: SegmentedCases, rows: Sequence[int]) -> list[QualityReport]:
    """Reports on some of the masks; a mask of the run's own segmenter is made and assessed in one inference."""
    cases, masks, reports = segmented.cases, segmented.masks, list[QualityReport]()
    for first in range(0, len(rows), TOGETHER):
        chosen = rows[first : first + TOGETHER]
        if segmented.of == OURS:
            submissions = [controller.segment(cases[row].case) for row in chosen]
        else:
            submissions = [controller.submit(cases[row].case, masks[row]) for row in chosen]
        reports += controller.assess_batch(submissions)
    return reports


def _halves(files: Sequence[CaseFile], seed: int) -> tuple[list[int], list[int]]:
    """Rows of the patients to calibrate on, and of the others."""
    fitted = {file.case_id for file in split_by_patient(list(files), 0.5, seed)[0]}
    rows = range(len(files))
    return [row for row in rows if files[row].case_id in fitted], [
        row for row in rows if files[row].case_id not in fitted
    ]


def main() -> None:
    parser = parser_of(__doc__)
    add_shifts(parser)
    add_results(parser)
    parser.add_argument("--without-training", action="store_true", help="leave out MC dropout and the ensemble")
    parser.add_argument("--reviewed", type=int, default=0, help="patients whose masks the adapted model knew")
    arguments = parser.parse_args()
    name, runs, started_in = begin_on_shifts(arguments, "quality_control")
    if not arguments.report_only:
        for laboratory in each_laboratory(arguments, runs, started_in):
            QualityCells(laboratory, arguments.reviewed, not arguments.without_training).make()
    asked = Asked(arguments.shifts, arguments.seeds, arguments.reviewed)
    report(runs, asked, started_in, arguments.results or name)


if __name__ == "__main__":
    main()
