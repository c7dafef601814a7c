"""What is scored: SIMULATED echo of small size, and a finished run on it whose reward networks are not trained.

What the networks know changes neither what a call leaves in one process and in several, nor what a case costs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.recording import quiet
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.ultrasound.phantom import simulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.quality.model import Targets
from medfm_rl.reward.fusion import write_fusion
from medfm_rl.reward.network import RewardNet
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import (
    AdaptConfig,
    DataSettings,
    NetworkSettings,
    PreprocessingSettings,
    RewardSettings,
    SourceTrainingSettings,
    TorchSettings,
    TrainSourceConfig,
)
from medfm_rl.settings.files import dump_config
from medfm_rl.types import LabelSchema
from medfm_rl.workflows.calibrate.quality import CalibrateRequest, calibrate
from medfm_rl.workflows.train.source import train_source

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})
_PATIENTS = 24
"""Enough for a calibration."""


def write_run(folder: Path, side: int, network: NetworkSettings) -> Path:
    """A finished run on images of side x side pixels, with a segmenter that is hardly trained; made once."""
    run, data = folder / "run", folder / "calibration"
    if (run / "quality.json").exists():
        return run
    simulate_dataset(data, vendor("cart"), _PATIENTS, seed=0, size=(side, side))
    train_source(
        TrainSourceConfig(
            data=DataSettings(path=data),
            structures={"LV": 1, "MYO": 2, "LA": 3},
            output=run / "model",
            network=NetworkSettings(channels=(4, 8), residual_units=0),
            preprocessing=PreprocessingSettings(size=(side, side)),
            training=SourceTrainingSettings(epochs=4, batch_size=8, learning_rate=1e-2),
        ),
        quiet,
    )
    torch.manual_seed(0)
    for name in ("member-0", "member-1", "held-out"):
        RewardNet(network, SCHEMA.num_classes).save(run / "reward" / name)
    write_fusion(run / "reward", ["member-0", "member-1"], RewardSettings())
    config = AdaptConfig(
        segmenter=TorchSettings(folder=run / "model"), target=DataSettings(path=data), output=run, anatomy="generic"
    )
    (run / "config.yaml").write_text(dump_config(config))
    calibrate(load_run(run, "cpu"), find_cases(DataSettings(path=data)), CalibrateRequest(Targets(dice=0.5)), quiet)
    return run


def write_queue(folder: Path, count: int, calibration: Path) -> Path:
    """So many cases of patients of their own: those of the calibration, each with noise of its own; made once.

    Returns:
        The data set, with `images` and `labels`.
    """
    queue = folder / f"queue-{count}"
    if queue.exists():
        return queue
    unfinished = folder / f"queue-{count}-unfinished"
    models = [file.read_labelled(SCHEMA) for file in find_cases(DataSettings(path=calibration))]
    generator = np.random.default_rng(count)
    for number in range(count):
        model = models[number % len(models)]
        image = (model.case.image[0] + generator.normal(0, 5, model.case.shape)).astype(np.float32)
        name = f"p{number:05d}_4CH.mha"
        write_image(unfinished / "images" / name, image, model.case.geometry)
        write_labels(unfinished / "labels" / name, model.ground_truth, model.case.geometry, SCHEMA)
    unfinished.rename(queue)
    return queue
