"""A 2-D nnU-Net of CAMUS adapted to a SIMULATED handheld and from 4CH to 2CH, scored from files that nnU-Net writes.

    python -m benchmarks.segmenters.nnunet_camus [--shifts handheld view] [--runs FOLDER] [--quick]

nnU-Net plans, preprocesses and trains by its own code on the labelled source: patients 1-150 of the sorted list, four
of five for training. A quarter of the planned feature maps, batches of 8, 25 epochs of 50 iterations, so that a shift
ends within about an hour and a half of one core. Of the other patients 60 are the unlabelled target and 40 are for
evaluation. Adaptation does less than by default (`FULL`). The adapted model is exported, and
`nnUNetv2_predict_from_modelfolder` segments the held-out images with the model as it was and as it is now, with and
without mirroring: Dice is measured on the masks in those files. Then the run assesses its own masks of these images:
what that adds to the time of segmenting, and how well it finds bad ones.

`--quick` runs every part in a few minutes on a few patients. Its figures mean nothing and are not kept as results.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.assessing import assess_own_masks
from benchmarks.harness.budgets import adapt_budget, trial_budget
from benchmarks.harness.command_line import add_quick, add_runs, begin, plain_parser
from benchmarks.harness.laboratory import adapt_config, files_of, read_selection
from benchmarks.harness.nnunet_official import (
    NnUNetRecipe,
    NnUNetSize,
    Training,
    copy_images,
    predict,
    score,
    train,
)
from benchmarks.harness.packs import CAMUS_SCHEMA, camus_qualities, write_camus
from benchmarks.harness.recording import RUNS, once, print_results, quiet, write_results
from benchmarks.segmenters.nnunet_report import FAILURE, summarise, table
from medfm_rl.adapters import NnUNetAdapter
from medfm_rl.data.files import write_json
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.ultrasound.resimulate import resimulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.metrics.scores import compare
from medfm_rl.networks import argmax_classes
from medfm_rl.runs.finished import load_run
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.export import export_model

RECIPE = NnUNetRecipe("2d", CAMUS_SCHEMA, "ultrasound", ".png", batch=8, width=4)
ANATOMY = "echo_apical"
DATASETS = {"handheld": (901, ("2CH", "4CH"), ("2CH", "4CH")), "view": (902, ("4CH",), ("2CH",))}
"""Number of the nnU-Net data set, views of the source and of the target, by shift."""
_CHANGES = {"collect": {"actions_per_image": 4}}
FULL = NnUNetSize(
    source=150,
    target=60,
    held_out=40,
    epochs=25,
    adapt=adapt_budget(fine_tuning=(400, 12), collect=(200, 120), reward=(500, 8), ppo=(20, 8, 5), changes=_CHANGES),
    iterations=50,
)
QUICK = NnUNetSize(source=10, target=5, held_out=3, epochs=2, iterations=4, adapt=trial_budget(8, 4))


def prepare(shift: str, size: NnUNetSize, folder: Path) -> dict[str, Path]:
    """Source, target and held-out images of a shift in the folder layout."""
    _, source_views, target_views = DATASETS[shift]
    names = list(camus_qualities())
    parts = {
        "source": (names[: size.source], source_views),
        "target": (names[150 : 150 + size.target], target_views),
        "held-out": (names[210 : 210 + size.held_out], target_views),
    }
    data = {name: write_camus(patients, folder / name, views) for name, (patients, views) in parts.items()}
    if shift == "handheld":
        for name in ("target", "held-out"):
            shown = folder / f"{name}-handheld"
            resimulate_dataset(files_of(data[name]), shown, vendor("handheld"), seed=0)
            data[name] = shown
    return data


def agreement(model: Path, cases: list[CaseFile], masks: Path, mirroring: bool) -> tuple[float, float]:
    """Share of pixels that our masks share with the files, and on which our logits disagree with nnU-Net's."""
    adapter = NnUNetAdapter(model, folds=(0,), mirroring=mirroring)
    equal, differs = [], []
    for file in cases:
        case = file.read()
        written = read_labels(masks / f"{file.case_id}.png", CAMUS_SCHEMA, case.shape, case.geometry)
        equal.append(float((adapter.segment(case) == written).mean()))
        sample = adapter.preprocess(case)
        adapter.mirroring = False
        with torch.no_grad():
            ours = argmax_classes(adapter(sample.image[None])[0], dim=0)
        differs.append(float((ours != argmax_classes(adapter.predict_logits(sample), dim=0)).float().mean()))
        adapter.mirroring = mirroring
    return float(np.mean(equal)), float(np.mean(differs))


def run_shift(shift: str, size: NnUNetSize, folder: Path) -> dict[str, Any]:
    """Everything of a shift; what was found before is taken, and masks are assessed anew where only that is missing."""
    data = prepare(shift, size, folder / "data")
    result = once(folder / "result.json", lambda: make_result(shift, size, data, folder))
    held_out = files_of(data["held-out"])

    def assessed() -> dict[str, Any]:
        return assess_own_masks(load_run(folder / "run", "cpu"), held_out, CAMUS_SCHEMA, FAILURE)

    return {**result, "assessing": once(folder / "assessing.json", assessed)}


def make_result(shift: str, size: NnUNetSize, data: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains, adapts, exports, and measures the files that nnU-Net writes."""
    started = time.perf_counter()
    source = train(RECIPE, Training(DATASETS[shift][0], shift, size.epochs, size.iterations), data["source"], folder)
    # An interrupted run goes on with the model that was trained.
    training = folder / "training.json"
    if not training.exists():
        write_json(training, {"minutes": (time.perf_counter() - started) / 60})
    trained = time.perf_counter()
    config = adapt_config(
        {"kind": "nnunet", "folder": source, "folds": (0,)},
        data["target"],
        data["source"],
        folder / "run",
        ANATOMY,
        size.adapt,
    )
    run = adapt(config, resume=True, progress=quiet)
    adapted_at = time.perf_counter()
    exported = folder / "exported"
    if not exported.exists():
        export_model(run.path, exported)
    cases = files_of(data["held-out"])
    images = copy_images(cases, folder / "images", RECIPE.ending)
    result: dict[str, Any] = {
        "chosen": read_selection(run).chosen,
        "training_minutes": json.loads(training.read_text())["minutes"],
        "adaptation_minutes": (adapted_at - trained) / 60,
        "mirroring": {},
    }
    for mirroring in (True, False):
        name = "on" if mirroring else "off"
        masks = {
            when: predict(model, images, folder / f"masks-{when}-{name}", mirroring)
            for when, model in (("before", source), ("after", exported))
        }
        before, after = (score(RECIPE, cases, masks[when], ANATOMY) for when in ("before", "after"))
        equal, differs = agreement(exported, cases, masks["after"], mirroring)
        result["mirroring"][name] = {
            "before": [asdict(row) for row in before.summary],
            "after": [asdict(row) for row in after.summary],
            "gain": {structure: asdict(value) for structure, value in compare(before, after).items()},
            "cli_equals_ours": equal,
            "disagreement_with_official": differs,
        }
    return result


def main() -> None:
    parser = plain_parser(__doc__, threads=1)
    parser.add_argument("--shifts", nargs="+", choices=DATASETS, default=list(DATASETS))
    add_runs(parser)
    add_quick(parser)
    arguments = parser.parse_args()
    started_in = begin(arguments)
    size = QUICK if arguments.quick else FULL
    runs: Path = (arguments.runs or RUNS / "nnunet_camus") / ("quick" if arguments.quick else "full")
    results = {}
    for shift in arguments.shifts:
        print(shift, flush=True)
        results[shift] = run_shift(shift, size, runs / shift)
    summary, text = summarise(results), table(results, size, RECIPE.width)
    if arguments.quick:
        print_results(summary, text)
    else:
        write_results("nnunet_camus", started_in, [0], results, summary, text)


# nnU-Net starts processes that import this file again.
if __name__ == "__main__":
    main()
