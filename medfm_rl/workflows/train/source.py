"""`medfm-rl train-source`: a segmenter for those who have none yet."""

from __future__ import annotations

import torch

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.layouts import find_cases, split_by_patient
from medfm_rl.data.locks import alone_making
from medfm_rl.errors import ConfigError
from medfm_rl.networks import choose_device
from medfm_rl.progress import Progress
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import TrainSourceConfig
from medfm_rl.types import LabelSchema
from medfm_rl.workflows.train.supervised import train_supervised
from medfm_rl.workflows.training_images import load_labelled


def train_source(config: TrainSourceConfig, progress: Progress) -> TorchModuleAdapter:
    """Trains a UNet on labelled source data and writes it as a segmenter folder.

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
        adapter.cpu().export(config.output)
        return adapter
