"""Does the predicted Dice find bad masks on real shifts, next to what others judge masks by?

    python benchmarks/quality_control.py [--shifts ...] [--seeds 0 1 2] [--runs benchmarks/runs/adaptation]
    python benchmarks/quality_control.py --report-only   # table from the cells that there are
    python benchmarks/quality_control.py --without-training  # no MC dropout and ensemble, which train six models a seed
    python benchmarks/quality_control.py --quick         # minutes: shows that it runs, measures nothing

On the shifts, splits and models of `adaptation.py`, whose runs are gone on with: the held-out target patients,
segmented by the source model and by the adapted model. Only these real predictions are judged, by:

- ours: the predicted mean Dice of the run's `quality.json`, calibrated on held-out source cases, no target label.
- calibrated: the same, calibrated on the labelled cases of half of the held-out patients, measured on the others.
- mean entropy, max softmax and soft Dice confidence of the segmenter, TTA (5 draws), MC dropout (5 draws of a twin that
  was trained with dropout .1), ensemble (5 source models of other seeds), reverse classification (10 source images).

Agreement of several predictions is the mean pairwise Dice among them and the judged mask, so that every method judges
the same masks. A failure is a mask with a mean Dice below the shift's stated limit. A cell is one model on one shift
with one seed; it is complete when its file is there with every method that is asked for, and is then skipped. Intervals
are 95 %, from 1000 draws of patients.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptation import BATCH, NETWORK, QUICK, Budget, Laboratory
from cells import NONE, OURS
from command_line import add_results, add_shifts, begin, each_shift, parser_of
from quality_control_report import MODELS, cell_file, predicted_dice, report
from recording import quiet
from shifts import Shift

from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import CaseFile, find_cases, split_by_patient
from medfm_rl.metrics.calibration import expected_calibration_error
from medfm_rl.metrics.overlap import dice
from medfm_rl.quality import QualityController
from medfm_rl.quality.baselines import (
    AugmentationAgreement,
    EnsembleAgreement,
    MaxSoftmax,
    MeanEntropy,
    MonteCarloDropout,
    QualityEstimator,
    ReverseClassification,
    SoftDiceConfidence,
)
from medfm_rl.quality.model import Targets
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import AdaptConfig, DataSettings, SourceTrainingSettings, TrainSourceConfig
from medfm_rl.settings.files import load_config
from medfm_rl.types import LabelledCase
from medfm_rl.workflows.calibrate.from_source import write_default_quality
from medfm_rl.workflows.calibrate.quality import calibrate_cases
from medfm_rl.workflows.deploy.score import load_controller
from medfm_rl.workflows.train.source import train_source
from medfm_rl.workflows.training_images import load_labelled

# Enough patients for a calibration to be made at all.
QUICK_HERE = replace(QUICK, most_patients=20)
OURS_DEFAULT, CALIBRATED = "ours", "calibrated"
MEMBERS = 5
TOGETHER = 16
"""Masks that are judged at once, as `medfm-rl score` does."""
LIMITS = {"lungs": 0.93, "echo_apical": 0.8}
"""Mean Dice below which a mask is a failure, by anatomy."""


class Bench:
    """Cells of one shift with one seed."""

    def __init__(
        self,
        shift: Shift,
        seed: int,
        runs: Path,
        budget: Budget,
        started_in: Mapping[str, Any],
        training: bool = True,
    ) -> None:
        self.shift = shift
        self.seed = seed
        self.runs = runs
        self.budget = budget
        self.started_in = started_in
        self.laboratory = Laboratory(shift, seed, runs, budget, started_in)
        self.limit = LIMITS[shift.anatomy]
        self.training = training

    def run(self) -> None:
        """Makes the cells that are missing."""
        missing = [model for model in MODELS if not self._is_complete(model)]
        if not missing:
            return
        for method in MODELS:
            self.laboratory.run(method)
        run = RunFolder(self.laboratory.cell_folder(OURS) / "run")
        write_default_quality(run, load_config(run.config_file, AdaptConfig), quiet)
        controller = load_controller(run.path, "cpu") if run.quality.exists() else None
        source = TorchModuleAdapter.load(self.laboratory.trained(self.shift.folders.source)[0])
        adapted = TorchModuleAdapter.load(run.model)
        for name in missing:
            print(f"  judging masks of {name}", flush=True)
            segmenter = source if name == NONE else adapted
            cell = self._judge(name, segmenter, self._rivals(segmenter, source), controller, run)
            write_json(cell_file(self.runs, self.shift.name, name, self.seed), cell)

    def _is_complete(self, model: str) -> bool:
        path = cell_file(self.runs, self.shift.name, model, self.seed)
        if not path.exists():
            return False
        return not self.training or EnsembleAgreement.name in json.loads(path.read_text())["scores"]

    def _rivals(self, segmenter: SegmenterAdapter, source: SegmenterAdapter) -> list[QualityEstimator]:
        classes = segmenter.schema.num_classes
        references = _files(self.shift.folders.source)[:10]
        images, masks = load_labelled(references, source, quiet, "reference images")
        rivals: list[QualityEstimator] = [
            MeanEntropy(segmenter),
            MaxSoftmax(segmenter),
            SoftDiceConfidence(segmenter),
            AugmentationAgreement(segmenter, classes),
            ReverseClassification(images.images, masks, classes),
        ]
        if not self.training:
            return rivals
        seeds = [(self.seed + member) % MEMBERS for member in range(MEMBERS)]
        folders = [
            Laboratory(self.shift, seed, self.runs, self.budget, self.started_in).trained(self.shift.folders.source)[0]
            for seed in seeds
        ]
        return [
            *rivals,
            MonteCarloDropout(TorchModuleAdapter.load(self._dropout_twin()), classes),
            EnsembleAgreement([TorchModuleAdapter.load(folder) for folder in folders], classes),
        ]

    def _dropout_twin(self) -> Path:
        folder = self.runs / "models" / f"{self.shift.folders.source.name}-dropout-seed-{self.seed}"
        if not folder.exists():
            files = _files(self.shift.folders.source)
            epochs = max(1, round(self.budget.training_steps * BATCH / len(files)))
            config = TrainSourceConfig(
                data=DataSettings(path=self.shift.folders.source),
                structures=dict(self.shift.structures),
                output=folder,
                network=NETWORK.model_copy(update={"dropout": 0.1}),
                training=SourceTrainingSettings(epochs=epochs, batch_size=BATCH),
                seed=self.seed,
            )
            train_source(config, quiet)
        return folder

    def _judge(
        self,
        name: str,
        segmenter: SegmenterAdapter,
        rivals: Sequence[QualityEstimator],
        controller: QualityController | None,
        run: RunFolder,
    ) -> dict[str, Any]:
        files = _files(self.shift.folders.held_out)
        cases = [file.read_labelled(segmenter.schema) for file in files]
        start = time.perf_counter()
        masks = [segmenter.segment(item.case) for item in cases]
        segmenting = 1000 * (time.perf_counter() - start) / len(cases)
        scores: dict[str, list[float | None]] = {}
        milliseconds: dict[str, float] = {}
        for rival in rivals:
            start = time.perf_counter()
            scores[rival.name] = []
            for item, mask in zip(cases, masks, strict=True):
                sample = segmenter.preprocess(item.case)
                action = segmenter.preprocess_labels(mask, sample)
                scores[rival.name].append(rival.estimate(sample.image, action))
            milliseconds[rival.name] = 1000 * (time.perf_counter() - start) / len(cases)
        content: dict[str, Any] = {
            "case_ids": [file.case_id for file in files],
            "patient_ids": [file.patient_id for file in files],
            "dice": [
                float(dice(mask, item.ground_truth, segmenter.schema.num_classes).mean())
                for mask, item in zip(masks, cases, strict=True)
            ],
            "limit": self.limit,
            "scores": scores,
            "milliseconds": milliseconds,
            "forward_passes": {rival.name: rival.forward_passes for rival in rivals},
            "segmenting_milliseconds": segmenting,
            "batches": {},
            "environment": dict(self.started_in),
        }
        if controller is not None:
            members = len(controller.reward.members)
            self._add(content, OURS_DEFAULT, name, controller, cases, masks, range(len(cases)), members)
        fitted, measured = _halves(files, self.seed)
        half, judged = [files[row] for row in fitted], [masks[row] for row in fitted]
        model = calibrate_cases(run, half, judged, Targets(dice=self.limit), torch.device("cpu"), quiet)
        reward = RewardEnsemble.load(run.final_reward)
        calibrated = QualityController(TorchModuleAdapter.load(run.model), reward, model)
        self._add(content, CALIBRATED, name, calibrated, cases, masks, measured, len(reward.members))
        return content

    def _add(
        self,
        content: dict[str, Any],
        name: str,
        masks_of: str,
        controller: QualityController,
        cases: Sequence[LabelledCase],
        masks: Sequence[Any],
        rows: Sequence[int],
        members: int,
    ) -> None:
        """Judges some of the cases with a controller and writes down what came out."""
        start = time.perf_counter()
        reports = []
        for first in range(0, len(rows), TOGETHER):
            chosen = rows[first : first + TOGETHER]
            if masks_of == OURS:
                submissions = [controller.segment(cases[row].case) for row in chosen]
            else:
                submissions = [controller.submit(cases[row].case, masks[row]) for row in chosen]
            reports += controller.assess_batch(submissions)
        spent = 1000 * (time.perf_counter() - start) / max(1, len(rows))
        # The run's own segmenter makes and judges a mask in one inference, which is not what judging costs.
        content["milliseconds"][name] = spent - (content["segmenting_milliseconds"] if masks_of == OURS else 0)
        content["forward_passes"][name] = members + (masks_of != OURS)
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
            "guarantees": {guarantee.promise: guarantee.status for guarantee in batch.guarantees},
            "verdicts": [found.verdict for found in batch.reports],
        }


def _files(folder: Path) -> list[CaseFile]:
    return find_cases(DataSettings(path=folder))


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
    arguments = parser.parse_args()
    name, runs, started_in = begin(arguments, "quality_control")
    if not arguments.report_only:
        budget = QUICK_HERE if arguments.quick else Budget()
        for shift, seed in each_shift(arguments, runs, budget.most_patients):
            Bench(shift, seed, runs, budget, started_in, not arguments.without_training).run()
    report(runs, arguments.shifts, arguments.seeds, started_in, arguments.results or name)


if __name__ == "__main__":
    main()
