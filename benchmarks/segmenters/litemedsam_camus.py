"""LiteMedSAM with its real weights on CAMUS and on a SIMULATED handheld, prompted by another segmenter's boxes.

    python -m benchmarks.segmenters.litemedsam_camus [--scopes decoder lora] [--runs FOLDER]
        [--large | --quick] [--device cpu]

A small U-Net, trained on the source as in `benchmarks.adaptation.run`, makes coarse masks; the largest piece of each
structure gives its box (that of MYO takes in LV: it is the epicardium's). Each side of a box is moved by up to 0, 5, 10
and 20 pixels of the 224 x 224 image. LiteMedSAM is adapted to the handheld without target labels from boxes with a
jitter of 10, its decoder or by low-rank parts of all layers. Measured on held-out patients of both domains:

- Dice by jitter as it is and adapted, the difference paired by patient;
- how well masks of the unadapted model from boxes with 10 and 20 pixels that are worse than the median of them are
  found by the Dice that the run's reward maps let expect, by the model's own IoU head, and by box jitter;
- the time of an inner epoch of PPO on the decoder, with kept embeddings, as a share of the encoder's on those images.

The default sizes (`SIZE`: 10 patients in each part, every second of their images measured) are small: adapting the
decoder takes less than an hour of one core, low-rank parts of all layers several, for the whole encoder is
differentiated. `--large` (`LARGE`: 40 patients) is for a GPU; its results are `litemedsam_camus`, those of the default
sizes `litemedsam_camus_small`. What is complete is not done again. `--quick` runs every part on a few images. Its
figures mean nothing and are not kept.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from benchmarks.harness.assessing import predicted_dice
from benchmarks.harness.budgets import adapt_budget, trial_budget
from benchmarks.harness.command_line import add_quick, add_runs, begin, plain_parser
from benchmarks.harness.laboratory import Budget, Laboratory, adapt_config, files_of, read_selection
from benchmarks.harness.recording import RUNS, once, print_results, quiet, write_results
from benchmarks.harness.shifts import ECHO, HANDHELD, Shift, prepare
from benchmarks.segmenters.litemedsam_report import (
    EXPECTED,
    JITTERS,
    OURS,
    OWN,
    SCOPES,
    SCORES,
    TRAINED_WITH,
    summarise,
    table,
)
from medfm_rl.adapters import LiteMedSAMAdapter, SegmenterAdapter, TorchModuleAdapter
from medfm_rl.adapters.sam.prompts import open_prompts
from medfm_rl.data.files import write_json
from medfm_rl.data.images import write_labels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.metrics.overlap import dice
from medfm_rl.quality.baselines import BoxAgreement, PredictedIoU
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.evidence import expected_dice
from medfm_rl.quality.model import QualityModel, Targets
from medfm_rl.runs.finished import FinishedRun, load_run
from medfm_rl.settings import MaskPrompts
from medfm_rl.types import Case, LabelMap
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.calibrate.quality import MaskToAssess, calibrate_cases

ASSESSED_WITH = (10, 20)
CALIBRATED_ON = 30
"""Patients; half of them are for intervals. To make something of a segmenter's own estimate takes eight at least."""


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        patients: In each part of the shift.
        every: Of the held-out images, each that many-th is measured.
        coarse_steps: Training of the coarse segmenter.
        adapt: Settings of `adapt`.
    """

    patients: int
    every: int
    coarse_steps: int
    adapt: Mapping[str, Any]


def _changes(actions: int, shard_images: int, prior_epochs: int) -> dict[str, dict[str, Any]]:
    """Further settings: actions per image, images per file of D_R, and epochs of the shape prior differ by size."""
    return {
        "fine_tuning": {"learning_rate": 2e-4},
        "collect": {"actions_per_image": actions, "shard_images": shard_images},
        "shape_prior": {"epochs": prior_epochs},
        "reward": {"validate_every": 50},
        "ppo": {"n_epochs": 3},
    }


SIZE = Size(10, 2, 150, adapt_budget((20, 4), (20, 10), (150, 8), (6, 4, 3), _changes(4, 10, 5)))
LARGE = Size(40, 2, 400, adapt_budget((80, 8), (120, 60), (400, 16), (12, 8, 3), _changes(5, 20, 15)))
QUICK = Size(8, 12, 20, trial_budget(6, 2))


def largest_pieces(labels: LabelMap, num_classes: int) -> LabelMap:
    """A mask without what is not connected to the largest piece of its structure."""
    kept = np.zeros_like(labels)
    for index in range(1, num_classes):
        pieces, count = ndimage.label(labels == index)
        if count:
            kept[pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()] = index
    return kept


def write_coarse(segmenter: SegmenterAdapter, folders: Sequence[Path], out: Path) -> None:
    """Masks that the boxes are taken of, each once."""
    for folder in folders:
        for file in files_of(folder):
            path = out / f"{file.case_id}.png"
            if not path.exists():
                case = file.read()
                mask = largest_pieces(segmenter.segment(case), segmenter.schema.num_classes)
                write_labels(path, mask, case.geometry, segmenter.schema)


class LiteMedSAMOnShift:
    """LiteMedSAM on one shift.

    Args:
        shift: The images.
        size: How much is done.
        runs: Folder of the benchmark.
        started_in: The environment.
        calibration: Labelled source images that the assessment is calibrated on; None for those held out in the shift.
        device: Where the networks run.
    """

    def __init__(
        self,
        shift: Shift,
        size: Size,
        runs: Path,
        started_in: Mapping[str, Any],
        calibration: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.shift = shift
        self.device = torch.device(device)
        self.calibration = shift.folders.source_held_out if calibration is None else calibration
        self.size = size
        self.runs = runs
        budget = Budget(training_steps=size.coarse_steps, most_patients=size.patients)
        self.coarse, _ = Laboratory(shift, 0, runs, budget, started_in).trained(shift.folders.source)
        self.masks = runs / "coarse"
        self.segmenter = runs / "litemedsam"
        folders = shift.folders
        write_coarse(
            TorchModuleAdapter.load(self.coarse).to(self.device),
            [folders.source, folders.source_held_out, folders.target, folders.held_out, self.calibration],
            self.masks,
        )
        write_json(
            self.segmenter / "segmenter.json",
            {
                "format": 1,
                "kind": "litemedsam",
                "structures": dict(ECHO),
                "contains": {"MYO": ["LV"]},
                "prompts": {"kind": "from_masks", "path": "../coarse"},
            },
        )

    def run(self, scopes: Sequence[str]) -> dict[str, Any]:
        """Every part, or what it found before; adaptation in these scopes."""
        cells = self.runs / "cells"
        original = LiteMedSAMAdapter.load(self.segmenter).to(self.device)
        results: dict[str, Any] = {"before": once(cells / "before.json", lambda: self.dice_by_jitter(original))}
        results["cost"] = once(cells / "cost.json", lambda: self.cost(original))
        for scope in scopes:
            results[scope] = once(cells / f"{scope}.json", lambda scope=scope: self.adapted(scope))  # type: ignore[misc]
        results["assessed"] = once(cells / "assessed.json", lambda: self.assessed(original))
        return results

    def adapted(self, scope: str) -> dict[str, Any]:
        """Dice of the adapted model, and what it took."""
        config = adapt_config(
            {
                "kind": "litemedsam",
                "folder": self.segmenter,
                "train": scope,
                "prompts": self.prompts(TRAINED_WITH).model_dump(),
            },
            self.shift.folders.target,
            self.shift.folders.source,
            self.runs / f"run-{scope}",
            self.shift.anatomy,
            {"device": self.device.type, **self.size.adapt},
        )
        start = time.perf_counter()
        run = adapt(config, resume=True, progress=quiet)
        seconds = time.perf_counter() - start
        segmenter = load_run(run.path, self.device.type).segmenter
        assert isinstance(segmenter, LiteMedSAMAdapter)
        return {
            "chosen": read_selection(run).chosen,
            "adapt_seconds": seconds,
            **self.dice_by_jitter(segmenter),
        }

    def dice_by_jitter(self, segmenter: LiteMedSAMAdapter) -> dict[str, Any]:
        """Mean Dice of each held-out case, by domain and jitter."""
        found: dict[str, Any] = {}
        segmenter.requires_grad_(False)
        for domain, folder in {
            "source": self.shift.folders.source_held_out,
            "target": self.shift.folders.held_out,
        }.items():
            files = self.measured(folder)
            by_jitter: dict[str, list[list[float]]] = {str(jitter): [] for jitter in JITTERS}
            for file in files:
                labelled = file.read_labelled(segmenter.schema)
                # Image by image, so that all boxes share an embedding.
                for jitter in JITTERS:
                    mask = self.segment(segmenter, labelled.case, jitter)
                    by_jitter[str(jitter)].append(dice(mask, labelled.ground_truth, segmenter.schema.classes).tolist())
            found[domain] = {"patient_ids": [file.patient_id for file in files], "dice": by_jitter}
        return found

    def assessed(self, segmenter: LiteMedSAMAdapter) -> dict[str, Any]:
        """Scores of masks of the unadapted model on held-out target images, by the run that adapted the decoder."""
        run = load_run(self.runs / "run-decoder", self.device.type)
        quality = self.calibrated(run, segmenter)
        controller = QualityController(run.preprocessing, run.reward, quality, device=self.device)
        baselines = (PredictedIoU(segmenter), BoxAgreement(segmenter))
        segmenter.requires_grad_(False)
        scores: dict[str, list[float]] = {name: [] for name in SCORES}
        patients, truth = [], []
        for jitter in ASSESSED_WITH:
            for file in self.measured(self.shift.folders.held_out):
                labelled = file.read_labelled(segmenter.schema)
                mask = self.segment(segmenter, labelled.case, jitter)
                sample = segmenter.preprocess(labelled.case)
                image, action = sample.image.to(self.device), segmenter.preprocess_labels(mask, sample).to(self.device)
                scores[OURS].append(predicted_dice(controller.assess(labelled.case, mask)))
                maps = run.reward(image[None], action[None])
                scores[EXPECTED].append(float(expected_dice(maps, action[None], segmenter.schema.classes).mean()))
                estimate = controller.segmenter.own_estimate(image, action)
                assert estimate is not None
                scores[OWN].append(float(estimate.mean()))
                for baseline in baselines:
                    scores[baseline.name].append(baseline.estimate(image, action))
                patients.append(file.patient_id)
                truth.append(float(dice(mask, labelled.ground_truth, segmenter.schema.classes).mean()))
        return {"patient_ids": patients, "dice": truth, "scores": scores}

    def calibrated(self, run: FinishedRun, segmenter: LiteMedSAMAdapter) -> QualityModel:
        """A quality model from masks of held-out labelled source images, made with boxes that are moved as much."""
        of_patients: dict[str, list[CaseFile]] = {}
        for file in files_of(self.calibration):
            of_patients.setdefault(file.patient_id, []).append(file)
        # One image of each, in turn another view and phase.
        files = [images[index % len(images)] for index, images in enumerate(of_patients.values())]
        masks = [
            MaskToAssess(self.segment(segmenter, file.read(), jitter)) for jitter in ASSESSED_WITH for file in files
        ]
        return calibrate_cases(run, files * len(ASSESSED_WITH), masks, Targets(), quiet)

    def cost(self, segmenter: LiteMedSAMAdapter) -> dict[str, Any]:
        """Seconds of the encoder, of an inner epoch of PPO on the decoder and of a mask; memory of the process."""
        files = files_of(self.shift.folders.target)[:4]
        cases = [file.read() for file in files]
        images = torch.stack([segmenter.preprocess(case).image for case in cases]).to(self.device)
        segmenter.requires_grad_(False)
        parameters = list(segmenter.trainable("decoder").values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimiser = torch.optim.Adam(parameters, 0.0)

        def inner_epoch() -> None:
            optimiser.zero_grad()
            segmenter(images).log_softmax(dim=1).square().mean().backward()
            optimiser.step()

        def encode() -> None:
            with torch.no_grad():
                segmenter.encode(images[:, : segmenter.intensity_channels])

        inner_epoch()
        encoder, update = seconds_of(encode), seconds_of(inner_epoch)
        segmenter.requires_grad_(True)
        # The embedding is kept from above.
        decode = seconds_of(lambda: segmenter.segment(cases[0]))
        return {
            "images": len(images),
            "encoder_seconds": encoder,
            "decoder_update_seconds": update,
            "seconds_per_image_without_encoder": decode,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    def measured(self, folder: Path) -> list[CaseFile]:
        return files_of(folder)[:: self.size.every]

    def prompts(self, jitter: int) -> MaskPrompts:
        return MaskPrompts(kind="from_masks", path=self.masks.absolute(), jitter=jitter)

    def segment(self, segmenter: LiteMedSAMAdapter, case: Case, jitter: int) -> LabelMap:
        """A mask from boxes with that jitter, from which the segmenter then goes on to take its boxes."""
        segmenter.prompts = open_prompts(self.prompts(jitter), segmenter.schema, segmenter.description.contains)
        return segmenter.segment(case)


def seconds_of(work: Callable[[], Any], times: int = 5) -> float:
    """Median wall time."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    parser = plain_parser(__doc__, threads=1)
    parser.add_argument("--patients", type=int, help="in each part; the figures are printed and not kept")
    parser.add_argument("--scopes", nargs="+", choices=SCOPES, default=list(SCOPES), help="what is adapted")
    add_runs(parser)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--large", action="store_true", help="40 patients in each part, for a GPU")
    add_quick(sizes)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    started_in = begin(arguments)
    kind = "quick" if arguments.quick else "large" if arguments.large else "full"
    size = {"quick": QUICK, "large": LARGE, "full": SIZE}[kind]
    if arguments.patients is not None:
        size = replace(size, patients=arguments.patients)
    runs: Path = arguments.runs or RUNS / "litemedsam_camus" / f"{kind}-{size.patients}-{arguments.device}"
    shift = prepare(HANDHELD, runs / "data", size.patients)
    calibration = prepare(HANDHELD, runs / "calibration", CALIBRATED_ON).folders.source_held_out
    results = LiteMedSAMOnShift(shift, size, runs, started_in, calibration, arguments.device).run(arguments.scopes)
    summary, text = summarise(results), table(results, size.patients)
    if arguments.quick or arguments.patients is not None:
        print_results(summary, text)
    else:
        name = "litemedsam_camus" if arguments.large else "litemedsam_camus_small"
        write_results(name, started_in, [0], {**results, "size": asdict(size)}, summary, text)


if __name__ == "__main__":
    main()
