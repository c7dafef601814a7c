"""A source model and the settings of a run of `adapt` that take seconds."""

from __future__ import annotations

from pathlib import Path

from medfm_rl.settings import (
    AdaptConfig,
    CollectSettings,
    DataSettings,
    FineTuningSettings,
    NetworkSettings,
    PPOSettings,
    PreprocessingSettings,
    RewardSettings,
    ShapePriorSettings,
    SourceTrainingSettings,
    TorchSettings,
    TrackingSettings,
    TrainSourceConfig,
)
from medfm_rl.workflows.train.source import train_source

TINY = NetworkSettings(channels=(4, 8), residual_units=0)


def train_tiny_source(
    echo: Path, folder: Path, training: SourceTrainingSettings, network: NetworkSettings = TINY, device: str = "cpu"
) -> Path:
    """Trains a network of 32 x 32 pixels on the simulated vendor `a`; returns the segmenter folder."""
    config = TrainSourceConfig.model_validate(
        {
            "data": DataSettings(path=echo / "a"),
            "structures": {"LV": 1, "MYO": 2, "LA": 3},
            "output": folder,
            "network": network,
            "preprocessing": PreprocessingSettings(size=(32, 32)),
            "training": training,
            "device": device,
        }
    )
    train_source(config, lambda *_: None)
    return folder


def tiny_config(echo: Path, model: Path, output: Path, **changes: object) -> AdaptConfig:
    """From the simulated vendor `a` to `b` on the CPU, in two iterations, but for the changes."""
    values: dict[str, object] = {
        "segmenter": TorchSettings(folder=model),
        "target": DataSettings(path=echo / "b"),
        "source": DataSettings(path=echo / "a"),
        "output": output,
        "iterations": 2,
        "fine_tuning": FineTuningSettings(steps=2, batch_size=4),
        "collect": CollectSettings(source_images=12, target_images=8, actions_per_image=3, shard_images=6),
        "shape_prior": ShapePriorSettings(epochs=1, latent=4),
        "reward": RewardSettings(network=TINY, steps=4, validate_every=2),
        "ppo": PPOSettings(updates=4, n_envs=4, eval_every=2),
        "tracking": TrackingSettings(uri=None),
        "device": "cpu",
    }
    return AdaptConfig.model_validate({**values, **changes})
