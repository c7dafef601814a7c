"""LiteMedSAM with its real weights on CAMUS and on a SIMULATED handheld, prompted by another segmenter's boxes.

    python benchmarks/litemedsam_camus.py [--scopes decoder lora] [--runs ...] [--large | --quick] [--device cpu]

A small U-Net, trained on the source as in `adaptation.py`, makes coarse masks; the largest piece of each structure
gives its box (that of MYO takes in LV: it is the epicardium's). Each side of a box is moved by up to 0, 5, 10 and 20
pixels of the 224 x 224 image. LiteMedSAM is adapted to the handheld without target labels from boxes with a jitter of
10, its decoder or by low-rank parts of all layers. Measured on held-out patients of both domains:

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

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptation import Budget, Laboratory
from quality_control_report import patient_bootstrap, predicted_dice
from recording import environment, quiet, write_results
from scipy import ndimage
from shifts import ECHO, Shift, prepare

from medfm_rl.adapters import LiteMedSAMAdapter, SegmenterAdapter, TorchModuleAdapter
from medfm_rl.adapters.sam.prompts import open_prompts
from medfm_rl.data.files import write_json
from medfm_rl.data.images import write_labels
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.metrics.bootstrap import paired_bootstrap
from medfm_rl.metrics.failure_detection import failure_auroc
from medfm_rl.metrics.overlap import dice
from medfm_rl.quality import QualityController, QualityModel
from medfm_rl.quality.baselines import BoxAgreement, PredictedIoU
from medfm_rl.quality.evidence import expected_dice
from medfm_rl.quality.model import Targets
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.models import load_model, load_preprocessing
from medfm_rl.settings import AdaptConfig, DataSettings, MaskPrompts
from medfm_rl.types import LabelMap
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.calibrate.quality import calibrate_cases

JITTERS = (0, 5, 10, 20)
TRAINED_WITH = 10
JUDGED_WITH = (10, 20)
CALIBRATED_ON = 30
"""Patients; half of them are for intervals. To make something of a segmenter's own estimate takes eight at least."""
SCOPES = ("decoder", "lora")
TITLES = {"decoder": "decoder adapted", "lora": "low-rank parts"}
OURS = "predicted Dice, calibrated on the source"
EXPECTED, OWN = "reward networks alone", "own estimate, box of the mask"
IOU_HEAD, JITTER = PredictedIoU.name, BoxAgreement.name
SCORES = (OURS, EXPECTED, OWN, IOU_HEAD, JITTER)


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


SIZE = Size(
    10,
    2,
    150,
    {
        "fine_tuning": {"steps": 20, "batch_size": 4, "target_batch_size": 2, "learning_rate": 2e-4},
        "collect": {"source_images": 20, "target_images": 10, "actions_per_image": 4, "shard_images": 10},
        "shape_prior": {"epochs": 5},
        "reward": {"steps": 150, "validate_every": 50, "batch_size": 8},
        "ppo": {"updates": 6, "n_envs": 4, "n_epochs": 3, "eval_every": 3},
    },
)
LARGE = Size(
    40,
    2,
    400,
    {
        "fine_tuning": {"steps": 80, "batch_size": 8, "target_batch_size": 4, "learning_rate": 2e-4},
        "collect": {"source_images": 120, "target_images": 60, "actions_per_image": 5, "shard_images": 20},
        "shape_prior": {"epochs": 15},
        "reward": {"steps": 400, "validate_every": 50, "batch_size": 16},
        "ppo": {"updates": 12, "n_envs": 8, "n_epochs": 3, "eval_every": 3},
    },
)
QUICK = Size(
    8,
    12,
    20,
    {
        "fine_tuning": {"steps": 2, "batch_size": 2, "target_batch_size": 1},
        "collect": {"source_images": 6, "target_images": 2, "actions_per_image": 2},
        "shape_prior": {"epochs": 1},
        "reward": {"ensemble": 1, "steps": 4, "validate_every": 2, "batch_size": 2, "network": {"channels": (8, 16)}},
        "ppo": {"updates": 1, "n_envs": 2, "n_epochs": 2},
    },
)


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
        for file in find_cases(DataSettings(path=folder)):
            path = out / f"{file.case_id}.png"
            if not path.exists():
                case = file.read()
                mask = largest_pieces(segmenter.segment(case), segmenter.schema.num_classes)
                write_labels(path, mask, case.geometry, segmenter.schema)


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part found; made unless it is there."""
    if not path.exists():
        print(f"  {path.stem}", flush=True)
        write_json(path, make())
    return dict(json.loads(path.read_text()))


class Bench:
    """LiteMedSAM on one shift.

    Args:
        shift: The images.
        size: How much is done.
        runs: Folder of the benchmark.
        started_in: The environment.
        calibration: Labelled source images that judging is calibrated on; None for those held out in the shift.
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
        results["judged"] = once(cells / "judged.json", lambda: self.judged(original))
        return results

    def adapted(self, scope: str) -> dict[str, Any]:
        """Dice of the adapted model, and what it took."""
        config = AdaptConfig.model_validate(
            {
                "segmenter": {
                    "kind": "litemedsam",
                    "folder": self.segmenter,
                    "train": scope,
                    "prompts": self.prompts(TRAINED_WITH).model_dump(),
                },
                "target": {"path": self.shift.folders.target},
                "source": {"path": self.shift.folders.source},
                "output": self.runs / f"run-{scope}",
                "anatomy": self.shift.anatomy,
                "tracking": {"uri": None},
                "device": self.device.type,
                **self.size.adapt,
            }
        )
        start = time.perf_counter()
        run = adapt(config, resume=True, progress=quiet)
        seconds = time.perf_counter() - start
        segmenter = load_model(run.path).segmenter.to(self.device)
        assert isinstance(segmenter, LiteMedSAMAdapter)
        chosen = json.loads(run.selection(config.iterations - 1).read_text())["chosen"]
        return {"chosen": chosen, "adapt_seconds": seconds, **self.dice_by_jitter(segmenter)}

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
                    by_jitter[str(jitter)].append(
                        dice(mask, labelled.ground_truth, segmenter.schema.num_classes).tolist()
                    )
            found[domain] = {"patient_ids": [file.patient_id for file in files], "dice": by_jitter}
        return found

    def judged(self, segmenter: LiteMedSAMAdapter) -> dict[str, Any]:
        """Scores of masks of the unadapted model on held-out target images, by the run that adapted the decoder."""
        run = RunFolder(self.runs / "run-decoder")
        reward = load_model(run.path).reward
        assert reward is not None
        quality = self.calibrated(run, segmenter)
        controller = QualityController(load_preprocessing(run), reward, quality, device=self.device)
        rivals = (PredictedIoU(segmenter), BoxAgreement(segmenter))
        segmenter.requires_grad_(False)
        scores: dict[str, list[float]] = {name: [] for name in SCORES}
        patients, truth = [], []
        for jitter in JUDGED_WITH:
            for file in self.measured(self.shift.folders.held_out):
                labelled = file.read_labelled(segmenter.schema)
                mask = self.segment(segmenter, labelled.case, jitter)
                sample = segmenter.preprocess(labelled.case)
                image, action = sample.image.to(self.device), segmenter.preprocess_labels(mask, sample).to(self.device)
                scores[OURS].append(predicted_dice(controller.assess(labelled.case, mask)))
                maps = reward(image[None], action[None])
                scores[EXPECTED].append(float(expected_dice(maps, action[None], segmenter.schema.num_classes).mean()))
                estimate = controller.segmenter.own_estimate(image, action)
                assert estimate is not None
                scores[OWN].append(float(estimate.mean()))
                for rival in rivals:
                    scores[rival.name].append(rival.estimate(image, action))
                patients.append(file.patient_id)
                truth.append(float(dice(mask, labelled.ground_truth, segmenter.schema.num_classes).mean()))
        return {"patient_ids": patients, "dice": truth, "scores": scores}

    def calibrated(self, run: RunFolder, segmenter: LiteMedSAMAdapter) -> QualityModel:
        """A quality model from masks of held-out labelled source images, made with boxes that are moved as much."""
        of_patients: dict[str, list[CaseFile]] = {}
        for file in find_cases(DataSettings(path=self.calibration)):
            of_patients.setdefault(file.patient_id, []).append(file)
        # One image of each, in turn another view and phase.
        files = [images[index % len(images)] for index, images in enumerate(of_patients.values())]
        masks = [self.segment(segmenter, file.read(), jitter) for jitter in JUDGED_WITH for file in files]
        return calibrate_cases(run, files * len(JUDGED_WITH), masks, Targets(), self.device, quiet)

    def cost(self, segmenter: LiteMedSAMAdapter) -> dict[str, Any]:
        """Seconds of the encoder, of an inner epoch of PPO on the decoder and of a mask; memory of the process."""
        files = find_cases(DataSettings(path=self.shift.folders.target))[:4]
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
        return find_cases(DataSettings(path=folder))[:: self.size.every]

    def prompts(self, jitter: int) -> MaskPrompts:
        return MaskPrompts(kind="from_masks", path=self.masks.absolute(), jitter=jitter)

    def segment(self, segmenter: LiteMedSAMAdapter, case: Any, jitter: int) -> LabelMap:
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


def summarise(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that others quote; Dice on held-out images of the target."""
    before = results["before"]["target"]
    after = {scope: results[scope]["target"] for scope in SCOPES if scope in results}
    aurocs, low = detection(results["judged"])
    cost = results["cost"]
    return {
        "auroc_ours": aurocs[OURS],
        "auroc_reward_alone": aurocs[EXPECTED],
        "auroc_own_estimate": aurocs[OWN],
        "auroc_iou_head": aurocs[IOU_HEAD],
        "auroc_jitter": aurocs[JITTER],
        "auroc_gain_ci_low": low,
        "dice_before": {jitter: mean_dice(before, jitter) for jitter in before["dice"]},
        "dice_after": {
            scope: {jitter: mean_dice(found, jitter) for jitter in found["dice"]} for scope, found in after.items()
        },
        "gain_ci_low_10px": {scope: gain(before, found, TRAINED_WITH)["low"] for scope, found in after.items()},
        "decoder_update_share_of_encoder": cost["decoder_update_seconds"] / cost["encoder_seconds"],
    }


def mean_dice(domain: Mapping[str, Any], jitter: str) -> float:
    return float(np.mean(domain["dice"][jitter]))


def gain(before: Mapping[str, Any], after: Mapping[str, Any], jitter: int) -> dict[str, float]:
    """Difference of mean Dice at a jitter, paired, with its interval over patients."""
    values = [np.mean(domain["dice"][str(jitter)], axis=1) for domain in (before, after)]
    return asdict(paired_bootstrap(values[0], values[1], before["patient_ids"]))


def detection(judged: Mapping[str, Any]) -> tuple[dict[str, float | None], float | None]:
    """Failure AUROC of each score, and the lower end of the interval of ours minus the IoU head's over patients.

    None where there are no failures, or nothing else; draws of patients without both are left out.
    """
    failed = failures_of(judged)
    scores = {name: np.array(values) for name, values in judged["scores"].items()}
    aurocs = {name: failure_auroc(values, failed) for name, values in scores.items()}
    if aurocs[OURS] is None:
        return aurocs, None
    known: list[float] = []

    def difference(rows: Any) -> float:
        ours, theirs = (failure_auroc(scores[name][rows], failed[rows]) for name in (OURS, IOU_HEAD))
        if ours is None or theirs is None:
            return 0.0
        known.append(ours - theirs)
        return known[-1]

    patient_bootstrap(difference, judged["patient_ids"])
    return aurocs, float(np.quantile(known, 0.025)) if known else None


def failures_of(judged: Mapping[str, Any]) -> np.ndarray:
    """Which masks are worse than their median: a limit on Dice that the model never reaches tells nothing apart."""
    values = np.array(judged["dice"])
    return np.asarray(values < np.median(values))


def table(results: Mapping[str, Any], size: Size) -> str:
    """Markdown."""
    cost, summary = results["cost"], summarise(results)
    seconds = cost["seconds_per_image_without_encoder"] + cost["encoder_seconds"] / cost["images"]
    scopes = [scope for scope in SCOPES if scope in results]
    judged = np.array(results["judged"]["dice"])
    lines = [
        "# LiteMedSAM on CAMUS and on a SIMULATED handheld",
        "",
        f"{size.patients} patients in each part; mean Dice on held-out patients by jitter of the boxes' sides in",
        "pixels; intervals: 95 %, bootstrap over patients.",
        "",
        f"| domain | jitter | as it is |{''.join(f' {TITLES[scope]} | gain [interval] |' for scope in scopes)}",
        f"|---|---|---|{'---|---|' * len(scopes)}",
    ]
    for domain in ("source", "target"):
        before = results["before"][domain]
        for jitter in JITTERS:
            row = [domain, str(jitter), f"{mean_dice(before, str(jitter)):.3f}"]
            for scope in scopes:
                after = results[scope][domain]
                found = gain(before, after, jitter)
                row.append(f"{mean_dice(after, str(jitter)):.3f}")
                row.append(f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]")
            lines.append(f"| {' | '.join(row)} |")
    keys = ("auroc_ours", "auroc_reward_alone", "auroc_own_estimate", "auroc_iou_head", "auroc_jitter")
    scores = {name: summary[key] for name, key in zip(SCORES, keys, strict=True)}
    lines += [
        "",
        f"Failures are masks below the median of what is judged, {np.median(judged):.3f}: "
        f"{int(failures_of(results['judged']).sum())} of {len(judged)}. At .8, as first planned, "
        f"{int((judged < 0.8).sum())} were failures.",
        "",
    ]
    lines += ["| judged by | failure AUROC |", "|---|---|"]
    lines += [f"| {name} | {'not defined' if value is None else f'{value:.3f}'} |" for name, value in scores.items()]
    lines += [
        "",
        f"An inner epoch of PPO on the decoder takes {summary['decoder_update_share_of_encoder']:.2f} of the encoder's "
        f"time on the same {cost['images']} images; a mask takes {seconds:.2f} s, the process "
        f"{cost['peak_memory_mib']:.0f} MiB. Chosen: "
        + ", ".join(f"{scope} {results[scope]['chosen']}" for scope in scopes)
        + ".",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, help="in each part; the figures are printed and not kept")
    parser.add_argument("--scopes", nargs="+", choices=SCOPES, default=list(SCOPES), help="what is adapted")
    parser.add_argument("--runs", type=Path, help="where data, models and cells are kept")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--large", action="store_true", help="40 patients in each part, for a GPU")
    sizes.add_argument("--quick", action="store_true", help="every part in minutes; the figures mean nothing")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started_in = environment()
    kind = "quick" if arguments.quick else "large" if arguments.large else "full"
    size = {"quick": QUICK, "large": LARGE, "full": SIZE}[kind]
    if arguments.patients is not None:
        size = replace(size, patients=arguments.patients)
    name = f"{kind}-{size.patients}-{arguments.device}"
    runs: Path = arguments.runs or Path(__file__).parent / "runs" / "litemedsam_camus" / name
    shift = prepare("camus-handheld", runs / "data", size.patients)
    calibration = prepare("camus-handheld", runs / "calibration", CALIBRATED_ON).folders.source_held_out
    results = Bench(shift, size, runs, started_in, calibration, arguments.device).run(arguments.scopes)
    if arguments.quick or arguments.patients is not None:
        print(json.dumps(summarise(results), indent=2))
        print(table(results, size))
    else:
        record = {**results, "size": asdict(size)}
        results_name = "litemedsam_camus" if arguments.large else "litemedsam_camus_small"
        write_results(results_name, started_in, [0], record, summarise(results), table(results, size))


if __name__ == "__main__":
    main()
