"""A 2-D nnU-Net of CAMUS adapted to a SIMULATED handheld and from 4CH to 2CH, scored from files that nnU-Net writes.

    python benchmarks/nnunet_camus.py [--shifts handheld view] [--runs benchmarks/runs/nnunet_camus] [--quick]

nnU-Net plans, preprocesses and trains by its own code on the labelled source: patients 1-150 of the sorted list, four
of five for training. A quarter of the planned feature maps, batches of 8, 25 epochs of 50 iterations, so that a shift
ends within about an hour and a half of one core. Of the other patients 60 are the unlabelled target and 40 are for
evaluation. Adaptation does less than by default (`FULL`). The adapted model is exported, and
`nnUNetv2_predict_from_modelfolder` segments the held-out images with the model as it was and as it is now, with and
without mirroring: Dice is measured on the masks in those files. Then the run judges its own masks of these images: what
that adds to the time of segmenting, and how well it finds bad ones.

`--quick` runs every part in a few minutes on a few patients. Its figures mean nothing and are not kept as results.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packs import CAMUS_SCHEMA, camus_qualities, write_camus
from quality_control_report import predicted_dice
from recording import environment, quiet, write_results

from medfm_rl.adapters import NnUNetAdapter
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.files import write_json
from medfm_rl.data.images import read_labels
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.ultrasound.resimulate import resimulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.metrics.failure_detection import failure_auroc
from medfm_rl.metrics.overlap import dice
from medfm_rl.metrics.scores import MEAN, Evaluation, compare, score_case, summarise
from medfm_rl.networks import argmax_classes
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import (
    AdaptConfig,
    CollectSettings,
    DataSettings,
    FineTuningSettings,
    NnUNetSettings,
    PPOSettings,
    RewardSettings,
    ShapePriorSettings,
    TrackingSettings,
)
from medfm_rl.settings.files import load_config
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.calibrate.from_source import write_default_quality
from medfm_rl.workflows.deploy.score import load_controller
from medfm_rl.workflows.export import export_model

DATASETS = {"handheld": (901, ("2CH", "4CH"), ("2CH", "4CH")), "view": (902, ("4CH",), ("2CH",))}
"""Number of the nnU-Net data set, views of the source and of the target, by shift."""
BATCH = 8
WIDTH = 4
"""The planned feature maps are divided by it."""
TOGETHER = 16
"""Masks that are judged at once, as `medfm-rl score` does."""
FAILURE = 0.8
"""Mean Dice below which a mask is a failure."""


@dataclass(frozen=True)
class Size:
    """How much is done."""

    source: int
    target: int
    held_out: int
    epochs: int
    iterations: int
    settings: dict[str, Any]


FULL = Size(
    150,
    60,
    40,
    25,
    50,
    {
        "fine_tuning": FineTuningSettings(steps=400, batch_size=12, target_batch_size=6),
        "collect": CollectSettings(source_images=200, target_images=120, actions_per_image=4),
        "reward": RewardSettings(steps=500, batch_size=8),
        "ppo": PPOSettings(updates=20, n_envs=8, eval_every=5),
    },
)
QUICK = Size(
    10,
    5,
    3,
    2,
    4,
    {
        "fine_tuning": FineTuningSettings(steps=4, batch_size=4),
        "collect": CollectSettings(source_images=8, target_images=4, actions_per_image=2),
        "shape_prior": ShapePriorSettings(epochs=1),
        "reward": RewardSettings(ensemble=1, steps=4, validate_every=2, batch_size=2),
        "ppo": PPOSettings(updates=2, n_envs=2, n_epochs=1, eval_every=1),
    },
)


def prepare(shift: str, size: Size, folder: Path) -> dict[str, Path]:
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
            resimulate_dataset(find_cases(DataSettings(path=data[name])), shown, vendor("handheld"), seed=0)
            data[name] = shown
    return data


def train(shift: str, size: Size, source: Path, folder: Path) -> Path:
    """The model folder of an nnU-Net that was trained by its own code."""
    number = DATASETS[shift][0]
    name = f"Dataset{number}_{shift}"
    for place in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[place] = str((folder / place).absolute())
        (folder / place).mkdir(parents=True, exist_ok=True)
    os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112 - its name
    model = folder / "nnUNet_results" / name / "nnUNetTrainer__nnUNetPlans__2d"
    if (model / "fold_0" / "checkpoint_final.pth").exists():
        return model
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.run.run_training import get_trainer_from_args

    cases = find_cases(DataSettings(path=source))
    write_raw(cases, folder / "nnUNet_raw" / name)
    extract_fingerprints([number], num_processes=1, show_progress_bar=False)
    plan_experiments([number])
    preprocessed = folder / "nnUNet_preprocessed" / name
    plans_file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plan = plans["configurations"]["2d"]
    plan["batch_size"] = BATCH
    network = plan["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [features // WIDTH for features in network["features_per_stage"]]
    plans_file.write_text(json.dumps(plans, indent=4))
    preprocess([number], configurations=("2d",), num_processes=(1,), show_progress_bar=False)
    # nnU-Net splits by image; here no patient is on both sides.
    validation = {
        patient for index, patient in enumerate(sorted({case.patient_id for case in cases})) if index % 5 == 4
    }
    split = {
        "train": [case.case_id for case in cases if case.patient_id not in validation],
        "val": [case.case_id for case in cases if case.patient_id in validation],
    }
    (preprocessed / "splits_final.json").write_text(json.dumps([split]))
    trainer = get_trainer_from_args(str(number), "2d", 0, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = size.epochs, size.iterations
    trainer.num_val_iterations_per_epoch = max(1, size.iterations // 10)
    trainer.run_training()
    return model


def write_raw(cases: list[CaseFile], folder: Path) -> None:
    """The raw data set of nnU-Net: copies of images and masks under its names, and its description."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for case in cases:
        assert case.label_path is not None
        shutil.copyfile(case.image_paths[0], folder / "imagesTr" / f"{case.case_id}_0000.png")
        shutil.copyfile(case.label_path, folder / "labelsTr" / f"{case.case_id}.png")
    labels = dict(zip(CAMUS_SCHEMA.names, CAMUS_SCHEMA.ids, strict=True))
    description = {"channel_names": {"0": "ultrasound"}, "labels": labels, "numTraining": len(cases)}
    write_json(folder / "dataset.json", description | {"file_ending": ".png"})


def predict(model: Path, images: Path, out: Path, mirroring: bool) -> Path:
    """Masks by nnU-Net's own command."""
    if not (out / "done").exists():
        command = [str(Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder"))]
        command += ["-m", str(model), "-i", str(images), "-o", str(out), "-f", "0", "-device", "cpu"]
        command += ["-npp", "1", "-nps", "1", "--disable_progress_bar", *([] if mirroring else ["--disable_tta"])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (out / "done").touch()
    return out


def score(cases: list[CaseFile], masks: Path) -> Evaluation:
    """Dice of the masks in files."""
    anatomy = load_anatomy("echo_apical", CAMUS_SCHEMA)
    scores = []
    for case in cases:
        labelled = case.read_labelled(CAMUS_SCHEMA)
        mask = read_labels(masks / f"{case.case_id}.png", CAMUS_SCHEMA, labelled.case.shape, labelled.case.geometry)
        scores += score_case(labelled.case, mask, labelled.ground_truth, CAMUS_SCHEMA, anatomy)
    return Evaluation(tuple(scores), summarise(scores))


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


def judge(run: RunFolder, cases: list[CaseFile]) -> dict[str, Any]:
    """What judging costs beside segmenting, by the run's own segmenter, and how well it finds failures.

    Both are timed one after the other for the same images, some at once as `medfm-rl score` takes them.
    """
    write_default_quality(run, load_config(run.config_file, AdaptConfig), quiet)
    if not run.quality.exists():
        return {"overhead": None, "segmenting_seconds": None, "failure_auroc": None, "failures": None}
    controller = load_controller(run.path, "cpu")
    ratios, seconds, predicted, truth = [], [], [], []
    for start in range(0, len(cases), TOGETHER):
        labelled = [file.read_labelled(CAMUS_SCHEMA) for file in cases[start : start + TOGETHER]]
        began = time.perf_counter()
        masks = [controller.segmenter.segment(item.case) for item in labelled]
        segmented = time.perf_counter()
        reports = controller.assess_batch([controller.segment(item.case) for item in labelled])
        both = time.perf_counter() - segmented
        seconds.append((segmented - began) / len(labelled))
        ratios.append(both / (segmented - began) - 1)
        predicted += [predicted_dice(report) for report in reports]
        truth += [
            float(dice(mask, item.ground_truth, CAMUS_SCHEMA.num_classes).mean())
            for mask, item in zip(masks, labelled, strict=True)
        ]
    failed = np.array(truth) < FAILURE
    return {
        "overhead": float(np.median(ratios)),
        "segmenting_seconds": float(np.median(seconds)),
        "failure_auroc": failure_auroc(np.array(predicted), failed),
        "failures": int(failed.sum()),
    }


def run_shift(shift: str, size: Size, folder: Path) -> dict[str, Any]:
    """Everything of a shift; what was found before is taken, and judging is done anew where only that is missing."""
    result_file, judging = folder / "result.json", folder / "judging.json"
    data = prepare(shift, size, folder / "data")
    if not result_file.exists():
        write_json(result_file, make_result(shift, size, data, folder))
    if not judging.exists():
        write_json(judging, judge(RunFolder(folder / "run"), find_cases(DataSettings(path=data["held-out"]))))
    result = json.loads(result_file.read_text())
    return {**result, "judging": json.loads(judging.read_text())}


def make_result(shift: str, size: Size, data: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains, adapts, exports, and measures the files that nnU-Net writes."""
    started = time.perf_counter()
    source = train(shift, size, data["source"], folder)
    # An interrupted run goes on with the model that was trained.
    training = folder / "training.json"
    if not training.exists():
        write_json(training, {"minutes": (time.perf_counter() - started) / 60})
    trained = time.perf_counter()
    config = AdaptConfig(
        segmenter=NnUNetSettings(kind="nnunet", folder=source, folds=(0,)),
        target=DataSettings(path=data["target"]),
        source=DataSettings(path=data["source"]),
        output=folder / "run",
        anatomy="echo_apical",
        tracking=TrackingSettings(uri=None),
        **size.settings,
    )
    run = adapt(config, resume=True, progress=quiet)
    adapted_at = time.perf_counter()
    exported = folder / "exported"
    if not exported.exists():
        export_model(run.path, exported)
    cases = find_cases(DataSettings(path=data["held-out"]))
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for case in cases:
        shutil.copyfile(case.image_paths[0], images / f"{case.case_id}_0000.png")
    result: dict[str, Any] = {
        "chosen": json.loads(run.selection(config.iterations - 1).read_text())["chosen"],
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
        before, after = (score(cases, masks[when]) for when in ("before", "after"))
        equal, differs = agreement(exported, cases, masks["after"], mirroring)
        result["mirroring"][name] = {
            "before": [asdict(row) for row in before.summary],
            "after": [asdict(row) for row in after.summary],
            "gain": {structure: asdict(value) for structure, value in compare(before, after).items()},
            "cli_equals_ours": equal,
            "disagreement_with_official": differs,
        }
    return dict(json.loads(json.dumps(result).replace("NaN", "null")))


def summarise_shifts(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures that others quote, with mirroring as nnU-Net has it by default."""

    def by_shift(value: str, *path: Any) -> dict[str, float]:
        found = {}
        for shift, result in results.items():
            inner = result["mirroring"]["on"][value]
            for step in path:
                inner = inner[step]
            found[shift] = inner
        return found

    return {
        "dice_before": by_shift("before", -1, "dice"),
        "dice_after": by_shift("after", -1, "dice"),
        "gain_ci_low": by_shift("gain", MEAN, "low"),
        "cli_equals_ours": by_shift("cli_equals_ours"),
        "disagreement_with_official": by_shift("disagreement_with_official"),
        "judging_overhead": {shift: result["judging"]["overhead"] for shift, result in results.items()},
        "judging_failure_auroc": {shift: result["judging"]["failure_auroc"] for shift, result in results.items()},
    }


def table(results: dict[str, dict[str, Any]], size: Size) -> str:
    lines = [
        "# A 2-D nnU-Net of CAMUS, adapted and exported",
        "",
        f"A model with 1/{WIDTH} of the planned feature maps, {size.epochs} epochs of {size.iterations} iterations.",
        f"Dice of the masks that `nnUNetv2_predict_from_modelfolder` wrote for {size.held_out} held-out patients;",
        "intervals: 95 %, bootstrap over patients. `handheld` is a SIMULATED target vendor; `view` is 4CH to 2CH.",
        "Minutes: training, adaptation.",
        "",
        "| shift | mirroring | structure | before | after | gain [interval] | pixels as ours | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for shift, result in results.items():
        minutes = f"{result['training_minutes']:.1f}, {result['adaptation_minutes']:.1f}"
        for mirroring, scores in result["mirroring"].items():
            for old, new in zip(scores["before"], scores["after"], strict=True):
                gain = scores["gain"][old["structure"]]
                lines.append(
                    f"| {shift} | {mirroring} | {old['structure']} | {old['dice']:.3f} | {new['dice']:.3f} "
                    f"| {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] "
                    f"| {scores['cli_equals_ours']:.4f} | {minutes} |"
                )
    lines += ["", "Judging the adapted model's own masks, in the same process (mirroring on):", ""]
    for shift, result in results.items():
        found = result["judging"]
        if found["overhead"] is not None:
            auroc = "none" if found["failure_auroc"] is None else f"{found['failure_auroc']:.3f}"
            lines.append(
                f"- {shift}: adds {100 * found['overhead']:.0f} % to the {found['segmenting_seconds']:.2f} s of "
                f"segmenting; failure AUROC {auroc} ({found['failures']} masks below a mean Dice of {FAILURE:g})"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shifts", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs" / "nnunet_camus")
    parser.add_argument("--quick", action="store_true", help="Every part on a few patients; the figures mean nothing.")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    started_in = environment()
    results = {}
    for shift in arguments.shifts:
        print(shift, flush=True)
        results[shift] = run_shift(shift, size, arguments.runs / ("quick" if arguments.quick else "full") / shift)
    if arguments.quick:
        print(json.dumps(summarise_shifts(results), indent=2))
        print(table(results, size))
    else:
        write_results("nnunet_camus", started_in, [0], results, summarise_shifts(results), table(results, size))


# nnU-Net starts processes that import this file again.
if __name__ == "__main__":
    main()
