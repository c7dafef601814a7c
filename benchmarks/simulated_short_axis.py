"""The whole loop in 3-D, on drawn hearts in short axis: adaptation between two SIMULATED MR scanners.

    python benchmarks/simulated_short_axis.py [--seeds 0 1 2] [--runs benchmarks/runs/simulated_short_axis]
    python benchmarks/simulated_short_axis.py --quick   # minutes: shows that it runs, measures nothing

Volumes of 16 planes of 64 x 64 voxels (6 x 2.5 x 2.5 mm), two per patient. A 3-D UNet learns from 30 labelled patients
of the first scanner, is adapted to 20 unlabelled patients of the second, and is measured on 20 others; a second UNet,
trained on the labels of those 20, is the upper bound. The run's own `quality.json` then judges the masks of the source
and the adapted model on the same 20, without ground truth. It needs no data and no download. It says that the loop
works in 3-D and what it costs; of real scanners it says nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_control_report import predicted_dice
from recording import RESULTS, environment, quiet, write_results
from short_axis_phantom import BRIGHT, FAINT, SCHEMA, SHAPE, Scanner, simulate_dataset

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import SIMULATION_RECORD, CaseFile, find_cases
from medfm_rl.metrics.failure_detection import excess_aurc, failure_auroc
from medfm_rl.metrics.scores import MEAN, dice
from medfm_rl.reports.adaptation import case_figure
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.models import load_model
from medfm_rl.settings import (
    AdaptConfig,
    DataSettings,
    PreprocessingSettings,
    SourceTrainingSettings,
    TorchSettings,
    TrackingSettings,
    TrainSourceConfig,
)
from medfm_rl.workflows.adapt.final_report import show_case
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.deploy.score import load_controller
from medfm_rl.workflows.evaluate.comparison import compare_models
from medfm_rl.workflows.train.source import train_source

ANATOMY = "cardiac_short_axis"
FAILED_BELOW = 0.7


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        source: Labelled patients of the first scanner.
        target: Unlabelled patients of the second.
        held_out: Patients of the second on which is measured.
        epochs: Of the training on labels.
        adapt: Settings of `adapt`: volumes cost more than frames, and all numbers are smaller than the defaults.
    """

    source: int
    target: int
    held_out: int
    epochs: int
    adapt: Mapping[str, Any]


SIZE = Size(
    30,
    20,
    20,
    40,
    {
        "fine_tuning": {"steps": 200, "batch_size": 4, "target_batch_size": 2},
        "collect": {"source_images": 120, "target_images": 60, "shard_images": 20},
        "shape_prior": {"epochs": 10},
        "reward": {"steps": 300, "validate_every": 50, "batch_size": 8},
        "ppo": {"updates": 12, "n_envs": 6, "eval_every": 6},
    },
)
QUICK = Size(
    18,
    6,
    3,
    2,
    {
        "fine_tuning": {"steps": 4, "batch_size": 2, "target_batch_size": 1},
        "collect": {"source_images": 9, "target_images": 3, "actions_per_image": 2},
        "shape_prior": {"epochs": 1},
        "reward": {"ensemble": 1, "steps": 4, "validate_every": 2, "batch_size": 2, "network": {"channels": (8, 16)}},
        "ppo": {"updates": 1, "n_envs": 2, "n_epochs": 2},
    },
)


class Bench:
    """One seed.

    Args:
        seed: Of hearts, training and adaptation.
        size: How much is done.
        folder: Data, models and the run.
    """

    def __init__(self, seed: int, size: Size, folder: Path) -> None:
        self.seed = seed
        self.size = size
        self.folder = folder
        self.source = self._simulated("bright", BRIGHT, 1, size.source)
        self.target = self._simulated("faint", FAINT, 1001, size.target)
        self.held_out = self._simulated("faint-held-out", FAINT, 2001, size.held_out)

    def run(self, picture: Path | None) -> dict[str, Any]:
        """Trains, adapts, measures; what was measured before is read again."""
        result_file = self.folder / "result.json"
        if result_file.exists():
            return dict(json.loads(result_file.read_text()))
        source, upper = self._trained("source", self.source), self._trained("upper", self.target)
        run, minutes = self._adapted(source)
        files = self._files()
        models = {
            "source": TorchModuleAdapter.load(source),
            "adapted": TorchModuleAdapter.load(run.model),
            "upper": TorchModuleAdapter.load(upper),
        }
        comparison = compare_models(models["source"], models["adapted"], files, ANATOMY, quiet)
        bound = compare_models(models["source"], models["upper"], files, ANATOMY, quiet)
        pairs = [
            (old.dice, new.dice) for old, new in zip(comparison.before.of(MEAN), comparison.after.of(MEAN), strict=True)
        ]
        result: dict[str, Any] = {
            "summaries": {
                "source": [asdict(row) for row in comparison.before.summary],
                "adapted": [asdict(row) for row in comparison.after.summary],
                "upper": [asdict(row) for row in bound.after.summary],
            },
            "gain": {name: asdict(value) for name, value in comparison.differences.items()},
            "upper_gain": {name: asdict(value) for name, value in bound.differences.items()},
            "harmed": float(np.mean([new < old - 0.01 for old, new in pairs])),
            "chosen": json.loads(run.selection(0).read_text())["chosen"],
            "minutes": minutes,
            "judged": {name: self._judged(run, models[name], files) for name in ("source", "adapted")},
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if picture is not None:
            self._draw(models["source"], run, files, pairs, picture)
        write_json(result_file, json.loads(json.dumps(result).replace("NaN", "null")))
        return result

    def _simulated(self, name: str, scanner: Scanner, first: int, patients: int) -> Path:
        out = self.folder / "data" / name
        if not (out / SIMULATION_RECORD).exists():
            simulate_dataset(out, scanner, patients, self.seed, first, lambda *_: None)
        return out

    def _trained(self, name: str, data: Path) -> Path:
        folder = self.folder / name
        if not folder.exists():
            config = TrainSourceConfig(
                data=DataSettings(path=data),
                structures={name: SCHEMA.ids[SCHEMA.index_of(name)] for name in SCHEMA.structures},
                output=folder,
                preprocessing=PreprocessingSettings(size=SHAPE),
                training=SourceTrainingSettings(epochs=self.size.epochs, batch_size=4),
                seed=self.seed,
            )
            train_source(config, quiet)
        return folder

    def _adapted(self, source: Path) -> tuple[RunFolder, float | None]:
        """The run and its minutes; None where it was interrupted, for what was done before was not timed."""
        timed, fresh = self.folder / "minutes.json", not (self.folder / "run").exists()
        start = time.perf_counter()
        run = adapt(self._config(source), resume=True, progress=quiet)
        if fresh:
            write_json(timed, {"minutes": (time.perf_counter() - start) / 60})
        return run, json.loads(timed.read_text())["minutes"] if timed.exists() else None

    def _config(self, source: Path) -> AdaptConfig:
        return AdaptConfig.model_validate(
            {
                "segmenter": TorchSettings(folder=source),
                "target": DataSettings(path=self.target),
                "source": DataSettings(path=self.source),
                "output": self.folder / "run",
                "anatomy": ANATOMY,
                "iterations": 1,
                "tracking": TrackingSettings(uri=None),
                "seed": self.seed,
                **self.size.adapt,
            }
        )

    def _files(self) -> list[CaseFile]:
        return find_cases(DataSettings(path=self.held_out))

    def _judged(self, run: RunFolder, segmenter: TorchModuleAdapter, files: Sequence[CaseFile]) -> dict[str, Any]:
        """Predicted and true mean Dice of the masks of a model, and what was said of the batch."""
        controller = load_controller(run.path, "cpu")
        reports, truth, seconds = [], [], 0.0
        for file in files:
            labelled = file.read_labelled(segmenter.schema)
            mask = segmenter.segment(labelled.case)
            start = time.perf_counter()
            reports.append(controller.assess(labelled.case, mask))
            seconds += time.perf_counter() - start
            truth.append(float(dice(mask, labelled.ground_truth, segmenter.schema.num_classes).mean()))
        batch = controller.settle(reports)
        return {
            "state": batch.state,
            "verdicts": [report.verdict for report in batch.reports],
            "predicted": [predicted_dice(report) for report in batch.reports],
            "dice": truth,
            "seconds_per_case": seconds / len(files),
        }

    def _draw(
        self,
        source: TorchModuleAdapter,
        run: RunFolder,
        files: Sequence[CaseFile],
        pairs: Sequence[tuple[float, float]],
        picture: Path,
    ) -> None:
        """The held-out case whose gain is the median."""
        index = int(np.argsort([new - old for old, new in pairs])[len(pairs) // 2])
        case = show_case(source, load_model(run.path), files[index], pairs[index])
        picture.parent.mkdir(exist_ok=True)
        figure = case_figure(case, source.schema, simulated=True)
        figure.savefig(picture, dpi=90, bbox_inches="tight", facecolor="white")


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that others quote."""
    return {
        "source_dice": [result["summaries"]["source"][-1]["dice"] for result in results],
        "adapted_dice": [result["summaries"]["adapted"][-1]["dice"] for result in results],
        "upper_dice": [result["summaries"]["upper"][-1]["dice"] for result in results],
        "gain_ci_low": [result["gain"][MEAN]["low"] for result in results],
        "harm_rate": [result["harmed"] for result in results],
        "failure_auroc": [detection(result["judged"])["failure_auroc"] for result in results],
        "excess_aurc": [detection(result["judged"])["excess_aurc"] for result in results],
        "minutes": [result["minutes"] for result in results],
    }


def detection(judged: Mapping[str, Any]) -> dict[str, float | None]:
    """How well the masks of both models are told apart, good from bad."""
    truth = np.concatenate([part["dice"] for part in judged.values()])
    scores = np.concatenate([part["predicted"] for part in judged.values()])
    return {
        "failure_auroc": failure_auroc(scores, truth < FAILED_BELOW),
        "excess_aurc": excess_aurc(scores, 1 - truth),
    }


def table(seeds: Sequence[int], results: Sequence[Mapping[str, Any]], size: Size) -> str:
    """Markdown."""
    lines = [
        "# 3-D: simulated bright-blood MR -> simulated faint-blood MR (both scanners are simulated)",
        "",
        f"Mean Dice over RV, MYO and LV on {size.held_out} held-out patients ({2 * size.held_out} volumes); intervals: "
        "95 %, bootstrap over patients. Harmed: share of volumes that lost more than a point. Minutes: the adaptation "
        "alone.",
        "",
        "| seed | source | adapted | gain [interval] | trained on target labels | 10th percentile before, after "
        "| HD95 before, after (mm) | valid before, after | harmed | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, result in zip(seeds, results, strict=True):
        rows = {name: summary[-1] for name, summary in result["summaries"].items()}
        before, after, gain = rows["source"], rows["adapted"], result["gain"][MEAN]
        distances = [_number(row["hd95"]) for row in (before, after)]
        lines.append(
            f"| {seed} | {before['dice']:.3f} | {after['dice']:.3f} "
            f"| {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] | {rows['upper']['dice']:.3f} "
            f"| {before['dice_p10']:.3f}, {after['dice_p10']:.3f} | {', '.join(distances)} "
            f"| {before['validity']:.2f}, {after['validity']:.2f} | {100 * result['harmed']:.0f} % "
            f"| {_number(result['minutes'])} |"
        )
    lines += [
        "",
        f"Judged without ground truth by the run's own `quality.json`, masks of both models; failures: Dice below "
        f"{FAILED_BELOW}.",
        "",
        "| seed | failure AUROC | excess AURC | batch: source, adapted | accepted: source, adapted "
        "| seconds per volume | memory of the process (MiB) |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, result in zip(seeds, results, strict=True):
        judged, found = result["judged"], detection(result["judged"])
        auroc = found["failure_auroc"]
        accepted = [f"{part['verdicts'].count('accept')} of {len(part['verdicts'])}" for part in judged.values()]
        lines.append(
            f"| {seed} | {'not defined' if auroc is None else f'{auroc:.3f}'} | {found['excess_aurc']:.4f} "
            f"| {', '.join(part['state'] for part in judged.values())} | {', '.join(accepted)} "
            f"| {judged['adapted']['seconds_per_case']:.2f} | {result['peak_memory_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="where data, models and runs are kept")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--quick", action="store_true", help="every part in minutes; the figures mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started_in = environment()
    size = QUICK if arguments.quick else SIZE
    name = "quick" if arguments.quick else "full"
    runs: Path = arguments.runs or Path(__file__).parent / "runs" / "simulated_short_axis" / name
    results = []
    for seed in arguments.seeds:
        print(f"seed {seed}", flush=True)
        drawn = seed == arguments.seeds[0] and not arguments.quick
        picture = RESULTS / "simulated_short_axis.png" if drawn else None
        results.append(Bench(seed, size, runs / f"seed-{seed}").run(picture))
    text = table(arguments.seeds, results, size)
    if arguments.quick:
        print(json.dumps(summarise(results), indent=2))
        print(text)
        return
    write_results("simulated_short_axis", started_in, arguments.seeds, results, summarise(results), text)


if __name__ == "__main__":
    main()
