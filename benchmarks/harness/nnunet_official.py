"""An nnU-Net trained by its own code, 2-D or 3-D, and masks by its own command."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.budgets import Size
from benchmarks.harness.laboratory import files_of
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.files import write_json
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.metrics.scores import Evaluation, score_case, summarise
from medfm_rl.types import LabelSchema

_PLANS = "nnUNetPlans"
_PREPARED = "prepared"
_AUGMENTING = "nnUNet_n_proc_DA"
_SAVE_EVERY = 5
"""Epochs after which an interrupted training goes on."""


@dataclass(frozen=True)
class NnUNetSize(Size):
    """How much is done.

    Attributes:
        iterations: Of an epoch.
    """

    iterations: int


@dataclass(frozen=True)
class NnUNetRecipe:
    """Which nnU-Net is planned.

    Attributes:
        configuration: `2d` or `3d_fullres`.
        schema: Structures of the masks.
        channel: Name of the one channel; nnU-Net chooses the normalisation by it.
        ending: Of the files of images and masks.
        batch: Images of an iteration.
        width: The planned feature maps are divided by it.
        spacing: (z, y, x) in mm to which 3-D images are resampled; None for what nnU-Net plans.
    """

    configuration: str
    schema: LabelSchema
    channel: str
    ending: str
    batch: int
    width: int
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Start:
    """A model that training goes on from, with its plans: its data set lies in the same folder.

    Attributes:
        number: Of its data set.
        checkpoint: Its weights. nnU-Net takes all but those of the last layers.
    """

    number: int
    checkpoint: Path


@dataclass(frozen=True)
class Training:
    """A training on one data set.

    Attributes:
        number: Of the nnU-Net data set.
        title: Of the data set.
        epochs: Of the training.
        iterations: Of an epoch.
        fold: `0` keeps every fifth patient for nnU-Net's own validation, `all` none.
        seed: Of weights and augmentation, which then happens in the same process; None as nnU-Net does it, which draws
            anew in each process. What goes on after a kill has other draws.
        start: Where it starts; None from random weights.
    """

    number: int
    title: str
    epochs: int
    iterations: int
    fold: str = "0"
    seed: int | None = None
    start: Start | None = None

    @property
    def name(self) -> str:
        return f"Dataset{self.number}_{self.title}"


def train(recipe: NnUNetRecipe, training: Training, source: Path, folder: Path) -> Path:
    """Plans, preprocesses and trains; done once, and what was interrupted goes on.

    Args:
        recipe: Which nnU-Net.
        training: How it is trained.
        source: Labelled images in the folder layout.
        folder: Of nnU-Net's raw and preprocessed data and results.

    Returns:
        The model folder.
    """
    for place in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[place] = str((folder / place).absolute())
        (folder / place).mkdir(parents=True, exist_ok=True)
    # nnU-Net's planner wants at least one.
    os.environ[_AUGMENTING] = "1"
    model = folder / "nnUNet_results" / training.name / f"nnUNetTrainer__{_PLANS}__{recipe.configuration}"
    fold = model / f"fold_{training.fold}"
    if _is_whole(fold / "checkpoint_final.pth"):
        return model
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    _prepare(recipe, training, files_of(source), folder)
    begun = _is_whole(fold / "checkpoint_latest.pth")
    if training.seed is not None:
        _seed_everything(training.seed)
        os.environ[_AUGMENTING] = "0"
    trainer = get_trainer_from_args(
        str(training.number),
        recipe.configuration,
        int(training.fold) if training.fold.isdigit() else training.fold,
        continue_training=begun,
        device=torch.device("cpu"),
    )
    trainer.num_epochs, trainer.num_iterations_per_epoch = training.epochs, training.iterations
    trainer.num_val_iterations_per_epoch = max(1, training.iterations // 10)
    trainer.save_every = _SAVE_EVERY
    start = None if begun or training.start is None else str(training.start.checkpoint)
    maybe_load_checkpoint(trainer, begun, False, start)
    trainer.run_training()
    return model


def _is_whole(checkpoint: Path) -> bool:
    """Whether there is a checkpoint and no kill cut it short.

    nnU-Net writes under the final name; the index of such an archive is written last.
    """
    return zipfile.is_zipfile(checkpoint)


def _seed_everything(seed: int) -> None:
    """nnU-Net draws from the generators of torch, NumPy and Python that all share."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def _prepare(recipe: NnUNetRecipe, training: Training, cases: list[CaseFile], folder: Path) -> None:
    """Everything before training, by nnU-Net's own steps; done once."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
        move_plans_between_datasets,
    )

    preprocessed = folder / "nnUNet_preprocessed" / training.name
    if (preprocessed / _PREPARED).exists():
        return
    raw = folder / "nnUNet_raw" / training.name
    write_raw(recipe, cases, raw)
    extract_fingerprints([training.number], num_processes=1, show_progress_bar=False)
    if training.start is None:
        plan_experiments([training.number], overwrite_target_spacing=recipe.spacing)
        _make_narrow(preprocessed / f"{_PLANS}.json", recipe)
    else:
        move_plans_between_datasets(training.start.number, training.number, _PLANS)
        shutil.copyfile(raw / "dataset.json", preprocessed / "dataset.json")
    preprocess([training.number], configurations=(recipe.configuration,), num_processes=(1,), show_progress_bar=False)
    (preprocessed / "splits_final.json").write_text(json.dumps([_split(cases)]))
    (preprocessed / _PREPARED).touch()


def _make_narrow(plans_file: Path, recipe: NnUNetRecipe) -> None:
    """Changes the plans to small batches and few feature maps."""
    plans = json.loads(plans_file.read_text())
    plan = plans["configurations"][recipe.configuration]
    plan["batch_size"] = recipe.batch
    network = plan["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [features // recipe.width for features in network["features_per_stage"]]
    plans_file.write_text(json.dumps(plans, indent=4))


def _split(cases: list[CaseFile]) -> dict[str, list[str]]:
    """Every fifth patient for validation; nnU-Net itself splits by image, and a patient may be on both sides."""
    validation = set(sorted({case.patient_id for case in cases})[4::5])
    return {
        "train": [case.case_id for case in cases if case.patient_id not in validation],
        "val": [case.case_id for case in cases if case.patient_id in validation],
    }


def write_raw(recipe: NnUNetRecipe, cases: list[CaseFile], folder: Path) -> None:
    """The raw data set of nnU-Net: copies of images and masks under its names, and its description."""
    copy_images(cases, folder / "imagesTr", recipe.ending)
    (folder / "labelsTr").mkdir(parents=True, exist_ok=True)
    for case in cases:
        assert case.label_path is not None
        shutil.copyfile(case.label_path, folder / "labelsTr" / f"{case.case_id}{recipe.ending}")
    labels = dict(zip(recipe.schema.names, recipe.schema.ids, strict=True))
    description = {"channel_names": {"0": recipe.channel}, "labels": labels, "numTraining": len(cases)}
    write_json(folder / "dataset.json", description | {"file_ending": recipe.ending})


def copy_images(cases: Sequence[CaseFile], folder: Path, ending: str) -> Path:
    """Copies of images under the names that nnU-Net wants."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        shutil.copyfile(case.image_paths[0], folder / f"{case.case_id}_0000{ending}")
    return folder


def predict(model: Path, images: Path, out: Path, mirroring: bool, fold: str = "0") -> Path:
    """Masks by nnU-Net's own command."""
    if not (out / "done").exists():
        command = [str(Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder"))]
        command += ["-m", str(model), "-i", str(images), "-o", str(out), "-f", fold, "-device", "cpu"]
        command += ["-npp", "1", "-nps", "1", "--disable_progress_bar", *([] if mirroring else ["--disable_tta"])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (out / "done").touch()
    return out


def score(recipe: NnUNetRecipe, cases: Sequence[CaseFile], masks: Path, anatomy: str) -> Evaluation:
    """Dice of the masks in files, and whether they meet the rules of an anatomy."""
    rules = load_anatomy(anatomy, recipe.schema)
    scores: list[Any] = []
    for case in cases:
        labelled = case.read_labelled(recipe.schema)
        path = masks / f"{case.case_id}{recipe.ending}"
        mask = read_labels(path, recipe.schema, labelled.case.shape, labelled.case.geometry)
        scores += score_case(labelled.case, mask, labelled.ground_truth, recipe.schema, rules)
    return Evaluation(tuple(scores), summarise(scores))
