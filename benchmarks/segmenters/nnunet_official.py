"""An nnU-Net trained by its own code, and masks by its own command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.harness.laboratory import files_of
from benchmarks.harness.packs import CAMUS_SCHEMA
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import CaseFile

BATCH = 8
WIDTH = 4
"""The planned feature maps are divided by it."""


def train(number: int, title: str, source: Path, folder: Path, epochs: int, iterations: int) -> Path:
    """Plans, preprocesses and trains a 2-D model; done once.

    Args:
        number: Of the nnU-Net data set.
        title: Of the data set.
        source: Labelled images in the folder layout.
        folder: Of nnU-Net's raw and preprocessed data and results.
        epochs: Of the training.
        iterations: Of an epoch.

    Returns:
        The model folder.
    """
    name = f"Dataset{number}_{title}"
    for place in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[place] = str((folder / place).absolute())
        (folder / place).mkdir(parents=True, exist_ok=True)
    os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112 - its name
    model = folder / "nnUNet_results" / name / "nnUNetTrainer__nnUNetPlans__2d"
    if (model / "fold_0" / "checkpoint_final.pth").exists():
        return model
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.run.run_training import get_trainer_from_args

    cases = files_of(source)
    write_raw(cases, folder / "nnUNet_raw" / name)
    extract_fingerprints([number], num_processes=1, show_progress_bar=False)
    plan_experiments([number])
    preprocessed = folder / "nnUNet_preprocessed" / name
    _make_narrow(preprocessed / "nnUNetPlans.json")
    preprocess([number], configurations=("2d",), num_processes=(1,), show_progress_bar=False)
    (preprocessed / "splits_final.json").write_text(json.dumps([_split(cases)]))
    trainer = get_trainer_from_args(str(number), "2d", 0, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, iterations
    trainer.num_val_iterations_per_epoch = max(1, iterations // 10)
    trainer.run_training()
    return model


def _make_narrow(plans_file: Path) -> None:
    """Changes the plans to small batches and few feature maps."""
    plans = json.loads(plans_file.read_text())
    plan = plans["configurations"]["2d"]
    plan["batch_size"] = BATCH
    network = plan["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [features // WIDTH for features in network["features_per_stage"]]
    plans_file.write_text(json.dumps(plans, indent=4))


def _split(cases: list[CaseFile]) -> dict[str, list[str]]:
    """Every fifth patient for validation; nnU-Net itself splits by image, and a patient may be on both sides."""
    validation = set(sorted({case.patient_id for case in cases})[4::5])
    return {
        "train": [case.case_id for case in cases if case.patient_id not in validation],
        "val": [case.case_id for case in cases if case.patient_id in validation],
    }


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
