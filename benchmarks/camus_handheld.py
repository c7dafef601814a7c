"""CAMUS -> simulated handheld: the closed loop on real echo whose target vendor is SIMULATED.

    python benchmarks/camus_handheld.py [--seeds 0 1 2] [--runs benchmarks/runs/camus_handheld]

Patients 1-150 of the sorted list are the labelled source. Of the rest, re-simulated as `handheld`, 60 are the
unlabelled target and 40 are for evaluation. Four numbers for each seed: the source model on source-like images, the
source model on handheld, the adapted model on handheld, and a model trained on the labelled target (upper bound).
Every part is kept in the folder of runs, so an interrupted benchmark goes on. The network sees 112 x 112 pixels; Dice
is measured at 224 x 224.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from packs import unpack_camus
from recording import environment, quiet, write_results
from safetensors.torch import load_file

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.ultrasound.resimulate import resimulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.metrics.scores import MEAN, Evaluation, compare
from medfm_rl.metrics.validity import load_anatomy
from medfm_rl.pipeline.adapt import adapt
from medfm_rl.pipeline.evaluate import evaluate
from medfm_rl.pipeline.train_source import train_source
from medfm_rl.settings import (
    AdaptConfig,
    DataSettings,
    NetworkSettings,
    SegmenterSettings,
    SourceTrainingSettings,
    TrackingSettings,
    TrainSourceConfig,
)

NETWORK = NetworkSettings(channels=(16, 32, 64, 128, 256), residual_units=2)
STRUCTURES = {"LV": 1, "MYO": 2, "LA": 3}


def prepare(folder: Path) -> dict[str, Path]:
    """Real source images, and the target patients as the simulated handheld shows them."""
    parts = {"source": slice(0, 150), "target": slice(150, 210), "held-out": slice(210, 250)}
    data = {name: unpack_camus(patients, folder / name) for name, patients in parts.items()}
    for name in ("target", "held-out"):
        data[f"{name}-handheld"] = folder / f"{name}-handheld"
        cases = find_cases(DataSettings(path=data[name]))
        resimulate_dataset(cases, data[f"{name}-handheld"], vendor("handheld"), seed=0)
    return data


def trained(folder: Path, data: Path, seed: int) -> Path:
    """A model trained on labelled data."""
    if not folder.exists():
        config = TrainSourceConfig(
            data=DataSettings(path=data),
            structures=STRUCTURES,
            output=folder,
            network=NETWORK,
            training=SourceTrainingSettings(epochs=25, batch_size=16),
            seed=seed,
        )
        train_source(config, quiet)
    return folder


def score(segmenter: TorchModuleAdapter, data: Path) -> Evaluation:
    anatomy = load_anatomy("echo_apical", segmenter.schema)
    return evaluate(segmenter, find_cases(DataSettings(path=data)), anatomy, quiet)


def run_seed(seed: int, iterations: int, folder: Path, data: dict[str, Path]) -> dict[str, object]:
    result_file = folder / "result.json"
    if result_file.exists():
        return dict(json.loads(result_file.read_text()))
    source_folder = trained(folder / "source", data["source"], seed)
    upper_folder = trained(folder / "upper", data["target-handheld"], seed)
    config = AdaptConfig(
        segmenter=SegmenterSettings(folder=source_folder),
        target=DataSettings(path=data["target-handheld"]),
        source=DataSettings(path=data["source"]),
        output=folder / "run",
        anatomy="echo_apical",
        iterations=iterations,
        tracking=TrackingSettings(uri=None),
        seed=seed,
    )
    start = time.perf_counter()
    run = adapt(config, resume=True, progress=quiet)
    minutes = (time.perf_counter() - start) / 60
    selection = json.loads(run.selection(config.iterations - 1).read_text())
    source, adapted = TorchModuleAdapter.load(source_folder), TorchModuleAdapter.load(run.model)
    evaluations = {
        "source on source-like": score(source, data["held-out"]),
        "source": score(source, data["held-out-handheld"]),
        "adapted": score(adapted, data["held-out-handheld"]),
        "upper bound": score(TorchModuleAdapter.load(upper_folder), data["held-out-handheld"]),
    }
    checkpoints = {}
    policy = TorchModuleAdapter.load(source_folder)
    for candidate in selection["candidates"][1:]:
        policy.load_state_dict(load_file(run.path / candidate["name"] / "actor.safetensors"))
        checkpoints[candidate["name"]] = score(policy, data["held-out-handheld"]).summary[-1].dice
    result = {
        "summaries": {name: [asdict(row) for row in evaluation.summary] for name, evaluation in evaluations.items()},
        "gain": {name: asdict(value) for name, value in compare(evaluations["source"], evaluations["adapted"]).items()},
        "chosen": selection["chosen"],
        "checkpoints": checkpoints,
        "adaptation_minutes": minutes,
        "harmed": float(
            np.mean(
                [
                    after.dice < before.dice - 0.01
                    for before, after in zip(
                        evaluations["source"].of(MEAN), evaluations["adapted"].of(MEAN), strict=True
                    )
                ]
            )
        ),
    }
    write_json(result_file, json.loads(json.dumps(result).replace("NaN", "null")))
    return result


def summarise(results: list[dict[str, object]]) -> dict[str, object]:
    def dice(name: str) -> list[float]:
        return [result["summaries"][name][-1]["dice"] for result in results]  # type: ignore[index]

    last = [list(result["checkpoints"].values())[-1] for result in results]  # type: ignore[attr-defined]
    return {
        "source_dice": dice("source"),
        "adapted_dice": dice("adapted"),
        "upper_dice": dice("upper bound"),
        "source_like_dice": dice("source on source-like"),
        "gain_ci_low": [result["gain"][MEAN]["low"] for result in results],  # type: ignore[index]
        "last_minus_selected": [end - chosen for end, chosen in zip(last, dice("adapted"), strict=True)],
    }


def table(seeds: list[int], results: list[dict[str, object]]) -> str:
    lines = [
        "# CAMUS -> simulated handheld (the target vendor is simulated)",
        "",
        "Mean Dice over LV, MYO and LA on 40 held-out patients (160 frames); intervals: 95 %, bootstrap over patients.",
        "Harmed: share of frames that lost more than 1 Dice point. Minutes: the adaptation alone.",
        "",
        "| seed | source on source-like | source on handheld | adapted | gain [interval] | labelled target "
        "| 10th percentile before, after | HD95 before, after (px) | valid before, after | harmed | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, result in zip(seeds, results, strict=True):
        rows = {name: summary[-1] for name, summary in result["summaries"].items()}  # type: ignore[attr-defined]
        gain = result["gain"][MEAN]  # type: ignore[index]
        before, after = rows["source"], rows["adapted"]
        lines.append(
            f"| {seed} | {rows['source on source-like']['dice']:.3f} | {before['dice']:.3f} | {after['dice']:.3f} "
            f"| {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] | {rows['upper bound']['dice']:.3f} "
            f"| {before['dice_p10']:.3f}, {after['dice_p10']:.3f} | {before['hd95']:.1f}, {after['hd95']:.1f} "
            f"| {before['validity']:.2f}, {after['validity']:.2f} | {result['harmed']:.2f} "
            f"| {result['adaptation_minutes']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs" / "camus_handheld")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    started_in = environment()
    data = prepare(arguments.runs / "data")
    results = []
    for seed in arguments.seeds:
        print(f"seed {seed}", flush=True)
        results.append(run_seed(seed, arguments.iterations, arguments.runs / f"seed-{seed}", data))
    write_results(
        "camus_handheld", started_in, arguments.seeds, results, summarise(results), table(arguments.seeds, results)
    )


if __name__ == "__main__":
    main()
