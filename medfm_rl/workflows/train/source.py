"""`medfm-rl train-source`: a segmenter for those who have none yet."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.files import hash_folder, remove_abandoned, replace_folder_on_success, write_json
from medfm_rl.data.layouts import CaseFile, find_cases, require_masks, split_by_patient
from medfm_rl.data.locks import alone_making
from medfm_rl.errors import ConfigError
from medfm_rl.networks import choose_device
from medfm_rl.progress import Progress
from medfm_rl.reward.collection import ImageSet
from medfm_rl.rows import Rows
from medfm_rl.runs.inputs import Input, hash_labelled
from medfm_rl.runs.log_file import logged_to
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import TrainSourceConfig
from medfm_rl.tracking import Tracker, open_tracker, require_store
from medfm_rl.tracking.environment import environment
from medfm_rl.tracking.tracker import run_id_path
from medfm_rl.types import LabelSchema
from medfm_rl.workflows.train.checkpoint import TrainingCheckpoint
from medfm_rl.workflows.train.report import TrainingOutcome, measure, write_page
from medfm_rl.workflows.train.structures import find_structures
from medfm_rl.workflows.train.supervised import Training, Validation, planned_validations, train_supervised
from medfm_rl.workflows.training_images import load_labelled

RECORD: Final = "training.json"
"""The file beside the weights that says what they were trained with, and how that went."""
_FORMAT: Final = 2
_CHECKPOINT, _REPORT, _LOG_FILE = "checkpoint.safetensors", "report.html", "log.txt"
_FEW_PATIENTS: Final = 5
_LOG = logging.getLogger(__name__)
_Labelled = tuple[ImageSet, Rows]


def training_folder(output: Path) -> Path:
    """Where the checkpoint, the log and the report of a training lie: beside the segmenter, which is handed on.

    Args:
        output: Folder of the segmenter.
    """
    return output.with_name(f"{output.name}.training")


def training_page(output: Path) -> Path:
    """The report of a training, for a person to look at.

    Args:
        output: Folder of the segmenter.
    """
    return training_folder(output) / _REPORT


def read_record(output: Path) -> dict[str, Any]:
    """What a training has written beside the weights: environment, settings, data by hash, and how it went.

    Args:
        output: Folder of the segmenter.
    """
    record: dict[str, Any] = json.loads((output / RECORD).read_text(encoding="utf-8"))
    return record


def train_source(config: TrainSourceConfig, progress: Progress) -> TorchModuleAdapter:
    """Trains a UNet on labelled source data and writes it as a segmenter folder, with a record of what it was made of.

    A training that was interrupted goes on where it was, and ends with the weights of one that was not.

    Raises:
        UserError: The data or a setting cannot be used, or the output folder is not empty.
    """
    with alone_making(config.output):
        if config.output.exists() and any(config.output.iterdir()):
            raise ConfigError(f"output {config.output}: the folder is not empty; choose a new one")
        device = choose_device(config.device)
        require_store(config.tracking)
        files = find_cases(config.data)
        require_masks(files, f"data: {config.data.path}")
        schema = find_structures(config.structures, files, config.data.path, progress)
        adapter = _untrained(config, schema)
        parts = split_by_patient(
            files,
            config.training.validation_fraction,
            derive_seed(config.seed, "validation"),
            f"data: {config.data.path}",
        )
        learning, held_out = (
            load_labelled(part, adapter, progress, name)
            for part, name in zip(parts, ("training images", "validation images"), strict=True)
        )
        _refuse_single_pixels(config, len(learning[0]))
        data = hash_labelled(config.data.path, files, progress)
        place = training_folder(config.output)
        place.mkdir(exist_ok=True)
        remove_abandoned(place)
        with logged_to(place / _LOG_FILE), open_tracker(config.tracking, place, config.output.name) as tracker:
            _tell_plan(config, parts, learning, schema)
            job = _Job(config, adapter, device, data, place, tracker)
            history = job.train(learning, held_out, progress)
            outcome = _outcome(config, parts, learning, held_out, history)
            job.hand_over(outcome, parts[1], progress)
        run_id_path(place).unlink(missing_ok=True)
        return adapter


def _untrained(config: TrainSourceConfig, schema: LabelSchema) -> TorchModuleAdapter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        return TorchModuleAdapter.build_unet(config.network, schema, config.preprocessing, config.in_channels)


def _refuse_single_pixels(config: TrainSourceConfig, images: int) -> None:
    """Refuses what batch normalisation cannot compute: the statistics of one value."""
    lowest = [side >> (len(config.network.channels) - 1) for side in config.preprocessing.size]
    alone = config.training.batch_size == 1 or images % config.training.batch_size == 1
    if config.network.norm == "batch" and alone and all(side == 1 for side in lowest):
        raise ConfigError(
            f"network.norm batch: of an input of {config.preprocessing.size} one pixel is left at the lowest of "
            f"{len(config.network.channels)} levels, and a step that shows one image cannot be normalised; write "
            "network.norm: instance, or make preprocessing.size larger"
        )


def _tell_plan(
    config: TrainSourceConfig, parts: Sequence[Sequence[CaseFile]], learning: _Labelled, schema: LabelSchema
) -> None:
    """Says what is going to happen before hours of it."""
    training, validation = parts
    images, size = len(learning[0]), config.training.batch_size
    steps = planned_validations(config.training, images)[-1]
    patients = len({file.patient_id for file in validation})
    _LOG.info(
        "%d steps of %d images, %.1f passes over %d images of %d patients; validation on %d images of %d others; "
        "structures: %s",
        steps,
        min(size, images),
        steps / -(-images // size),
        images,
        len({file.patient_id for file in training}),
        len(validation),
        patients,
        ", ".join(f"{name} {number}" for name, number in schema.integers.items() if name in schema.structures),
    )
    if patients < _FEW_PATIENTS:
        _LOG.warning(
            "the weights are chosen, and their Dice is measured, on %d held-out %s alone: that says little; more by "
            "training.validation_fraction, or more labelled patients",
            patients,
            "patient" if patients == 1 else "patients",
        )


@dataclass(frozen=True, eq=False)
class _Job:
    """A training and where its parts lie.

    Attributes:
        config: The settings.
        adapter: The segmenter in training.
        device: Where it is trained.
        data: The labelled images and masks, by hash.
        place: Folder of checkpoint, log and report.
        tracker: Where it is recorded.
    """

    config: TrainSourceConfig
    adapter: TorchModuleAdapter
    device: torch.device
    data: Input
    place: Path
    tracker: Tracker

    @property
    def settings(self) -> dict[str, Any]:
        """What the weights depend on beside the data, as JSON values."""
        return self.config.model_dump(mode="json", exclude={"output", "tracking"})

    def train(self, learning: _Labelled, held_out: _Labelled, progress: Progress) -> list[Validation]:
        """Trains to the end, from a checkpoint where there is one."""
        self.tracker.log_params(self.settings)
        self.tracker.log_data("source", self.data.record())
        # Where the data lies and which device is taken do not make another training of it; who is a patient does.
        started_with = {**self.settings, "data": {**self.settings["data"], "path": None, "hash": self.data.hash}}
        del started_with["device"]
        checkpoint = TrainingCheckpoint(self.place / _CHECKPOINT, started_with, self.device)
        return train_supervised(
            self.adapter,
            (learning[0].images[:], learning[1][:]),
            (held_out[0].images[:], held_out[1][:]),
            self.config.training,
            derive_seed(self.config.seed, "training"),
            self.device,
            lambda done, total: progress("training the source model", done, total),
            lambda training: self._validated(training, checkpoint),
            lambda training: _resume(training, checkpoint),
        )

    def _validated(self, training: Training, checkpoint: TrainingCheckpoint) -> None:
        now = training.history[-1]
        dice = {f"dice_{name}": value for name, value in zip(self.adapter.schema.structures, now.dice, strict=True)}
        self.tracker.log_metrics({"training_loss": now.training_loss, "validation_loss": now.loss, **dice}, now.step)
        checkpoint.keep(training)

    def hand_over(self, outcome: TrainingOutcome, files: Sequence[CaseFile], progress: Progress) -> None:
        """Measures the model on the held-out patients, writes the page, and last of all the segmenter folder."""
        evaluation = measure(self.adapter, files, progress)
        write_page(self.place / _REPORT, self.config.data.path, self.adapter, outcome, evaluation, files, self.data)
        record = {
            "format": _FORMAT,
            "environment": environment(),
            "settings": self.settings,
            "structures": self.adapter.schema.integers,
            "data": asdict(self.data.record()),
            "training": outcome.as_json(self.adapter.schema, evaluation.summary),
        }
        with replace_folder_on_success(self.config.output) as temporary:
            self.adapter.cpu().export(temporary)
            write_json(temporary / RECORD, record)
            if run_id_path(self.place).exists():
                shutil.copy(run_id_path(self.place), run_id_path(temporary))
        for path in sorted(path for path in self.config.output.iterdir() if not path.name.startswith(".")):
            self.tracker.log_artifact(path)
        self.tracker.log_params({"segmenter_hash": hash_folder(self.config.output)})
        (self.place / _CHECKPOINT).unlink(missing_ok=True)


def _resume(training: Training, checkpoint: TrainingCheckpoint) -> None:
    checkpoint.resume(training)
    if training.history:
        _LOG.info("going on after step %d of an interrupted training", training.history[-1].step)


def _outcome(
    config: TrainSourceConfig,
    parts: Sequence[Sequence[CaseFile]],
    learning: _Labelled,
    held_out: _Labelled,
    history: Sequence[Validation],
) -> TrainingOutcome:
    training, validation = (len({file.patient_id for file in part}) for part in parts)
    return TrainingOutcome(
        tuple(history),
        config.training.batch_size,
        (len(learning[0]), training),
        (len(held_out[0]), validation),
    )
