"""Networks, and the supervised training of a source segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from medfm_rl.settings.base import Device, Positive, Settings
from medfm_rl.settings.data import DataSettings
from medfm_rl.settings.tracking import TrackingSettings


class NetworkSettings(Settings):
    """A MONAI UNet, the architecture of source segmenters, reward networks and critics."""

    channels: tuple[Positive, ...] = Field((16, 32, 64, 128), min_length=2, description="Feature maps per level.")
    residual_units: int = Field(1, ge=0, description="Residual units per level; 0 for plain convolutions.")
    norm: Literal["instance", "batch", "group"] = Field("instance", description="Normalisation layer.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate.")


class PreprocessingSettings(Settings):
    """How an image becomes the network's input."""

    size: tuple[Positive, ...] = Field(
        (112, 112),
        min_length=2,
        max_length=3,
        description="Pixel grid of the network's input (or patch), array order: (H, W) or (D, H, W).",
    )
    grid: Literal["resize", "native"] = Field(
        "resize",
        description="resize: the whole image is resampled to `size`. native: the image keeps its pixels and the "
        "network slides over it in patches of `size`.",
    )
    intensity: Literal["zscore", "minmax", "none"] = Field(
        "zscore", description="Per image and channel: zero mean and unit variance, to [0, 1], or as in the file."
    )


class SourceTrainingSettings(Settings):
    """Supervised training of a source segmenter."""

    epochs: Positive = Field(30, description="Passes over the training cases, at most.")
    batch_size: Positive = Field(8, description="Images per step.")
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate of AdamW, decayed to 0 along a cosine.")
    validation_fraction: float = Field(0.1, gt=0, lt=1, description="Share of patients that pick the best epoch.")
    augment: bool = Field(True, description="Small rotations, scalings and changes of brightness and contrast.")


class TrainSourceConfig(Settings):
    """`medfm-rl train-source`: train a segmenter on labelled source data."""

    data: DataSettings = Field(description="Labelled source data.")
    structures: dict[str, int] = Field(description="Structures by name, with their integer in the label files.")
    in_channels: Positive = Field(1, description="Channels of the images.")
    output: Path = Field(description="Folder of the segmenter to write; it must not exist or be empty.")
    network: NetworkSettings = Field(default_factory=NetworkSettings, description="Architecture.")
    preprocessing: PreprocessingSettings = Field(
        default_factory=PreprocessingSettings, description="Input of the network."
    )
    training: SourceTrainingSettings = Field(default_factory=SourceTrainingSettings, description="Optimisation.")
    tracking: TrackingSettings = Field(
        default_factory=lambda: TrackingSettings(uri=None),
        description="MLflow; training.json records anyway.",
    )
    seed: int = Field(0, ge=0, description="Seed of every random choice.")
    device: Device = "auto"
