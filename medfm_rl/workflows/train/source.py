"""`medfm-rl train-source`: a segmenter for those who have none yet."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.files import replace_folder_on_success, write_json
from medfm_rl.data.layouts import find_cases, split_by_patient
from medfm_rl.data.locks import alone_making
from medfm_rl.errors import ConfigError
from medfm_rl.networks import choose_device
from medfm_rl.progress import Progress
from medfm_rl.runs.inputs import Input, hash_labelled
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import TrainSourceConfig
from medfm_rl.tracking import open_tracker, require_store
from medfm_rl.tracking.environment import environment
from medfm_rl.types import LabelSchema
from medfm_rl.workflows.train.supervised import train_supervised
from medfm_rl.workflows.training_images import load_labelled

RECORD = "training.json"
"""The file beside the weights that says what they were trained with."""
_FORMAT = 1


def train_source(config: TrainSourceConfig, progress: Progress) -> TorchModuleAdapter:
    """Trains a UNet on labelled source data and writes it as a segmenter folder, with a record of what it was made of.

    Raises:
        UserError: The data or a setting cannot be used, or the output folder is not empty.
    """
    with alone_making(config.output):
        if config.output.exists() and any(config.output.iterdir()):
            raise ConfigError(f"output {config.output}: the folder is not empty; choose a new one")
        try:
            schema = LabelSchema.from_structures(config.structures)
        except ValueError as error:
            raise ConfigError(f"structures: {error}") from error
        device = choose_device(config.device)
        require_store(config.tracking)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "weights"))
            adapter = TorchModuleAdapter.build_unet(config.network, schema, config.preprocessing, config.in_channels)
        files = find_cases(config.data)
        training, validation = split_by_patient(
            files,
            config.training.validation_fraction,
            derive_seed(config.seed, "validation"),
            f"data: {config.data.path}",
        )
        training_images, training_masks = load_labelled(training, adapter, progress, "training images")
        validation_images, validation_masks = load_labelled(validation, adapter, progress, "validation images")
        train_supervised(
            adapter,
            (training_images.images, training_masks),
            (validation_images.images, validation_masks),
            config.training,
            derive_seed(config.seed, "training"),
            device,
            lambda done, total: progress("training the source model", done, total),
        )
        hashed = hash_labelled(config.data.path, files, progress)
        record = _describe(config, hashed)
        with replace_folder_on_success(config.output) as temporary:
            adapter.cpu().export(temporary)
            write_json(temporary / RECORD, record)
        with open_tracker(config.tracking, config.output) as tracker:
            tracker.log_params(record["settings"])
            tracker.log_data("source", hashed.record())
            for path in sorted(path for path in config.output.iterdir() if not path.name.startswith(".")):
                tracker.log_artifact(path)
        return adapter


def _describe(config: TrainSourceConfig, data: Input) -> dict[str, Any]:
    """What a segmenter was trained with: versions, settings and data by hash, without a name of a file or patient."""
    settings = config.model_dump(mode="json", exclude={"output", "tracking"})
    return {"format": _FORMAT, "environment": environment(), "settings": settings, "data": asdict(data.record())}
