"""Networks, and the supervised training of a source segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from medfm_rl.settings.base import Device, Positive, Settings
from medfm_rl.settings.data import DataSettings
from medfm_rl.settings.tracking import TrackingSettings


class NetworkSettings(Settings):
    """A MONAI UNet, the architecture of source segmenters, reward networks and critics."""

    channels: tuple[Positive, ...] = Field((16, 32, 64, 128), min_length=2, description="Feature maps per level.")
    residual_units: int = Field(1, ge=0, description="Residual units per level; 0 for plain convolutions.")
    norm: Literal["instance", "batch", "group"] = Field("instance", description="Normalisation layer.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate.")


Numbers = float | tuple[float, ...]
"""One number for all channels, or one for each."""


class IntensitySettings(Settings):
    """How grey values become what a network learned on, in exactly one way.

    A `transform` is code of the user, imported by name and run: it must be trusted.
    """

    mean: Numbers | None = Field(None, description="Subtracted from each channel, before the division by `std`.")
    std: Numbers | None = Field(None, description="What each channel is divided by, with `mean`.")
    window: tuple[float, float] | None = Field(
        None, description="Lowest and highest value: what lies beyond is cut off, and the rest goes to [0, 1]."
    )
    percentiles: tuple[float, float] | None = Field(
        None, description="The same, with percentiles of each image and channel in the place of values."
    )
    divide: float | None = Field(None, description="What all values are divided by, such as 255.")
    transform: str | None = Field(
        None,
        description="package.module:name of a MONAI transform (Compose, say) or function from an image (C, *S) to one "
        "of the same shape. Trusted code: it is imported and run.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> IntensitySettings:
        given = sorted(name for name in type(self).model_fields if getattr(self, name) is not None)
        if given != ["mean", "std"] and (len(given) != 1 or given in (["mean"], ["std"])):
            raise ValueError(
                f"one of mean with std, window, percentiles, divide and transform is needed, not {' with '.join(given)}"
                if given
                else "one of mean with std, window, percentiles, divide and transform is needed"
            )
        for name, pair in (("window", self.window), ("percentiles", self.percentiles)):
            if pair is not None and pair[0] >= pair[1]:
                raise ValueError(f"{name} [{pair[0]:g}, {pair[1]:g}]: the first must be lower than the second")
        if self.percentiles is not None and not (self.percentiles[0] >= 0 and self.percentiles[1] <= 100):
            raise ValueError("percentiles must lie between 0 and 100")
        if self.divide == 0 or (self.std is not None and min(_each(self.std), default=0) <= 0):
            raise ValueError("std must be above 0 and divide not 0")
        if self.transform is not None and not all(self.transform.partition(":")):
            raise ValueError(f"transform {self.transform!r}: written as package.module:name")
        return self

    def require_channels(self, channels: int) -> None:
        """Raises ValueError where numbers are given for another number of channels."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(_each(values)) not in (1, channels):
                raise ValueError(f"{name} has {len(_each(values))} numbers and the images have {channels} channels")


def _each(values: Numbers) -> tuple[float, ...]:
    return values if isinstance(values, tuple) else (values,)


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
    intensity: Annotated[
        Annotated[Literal["zscore", "minmax", "none"], Tag("name")] | Annotated[IntensitySettings, Tag("fields")],
        Discriminator(lambda given: "name" if isinstance(given, str) else "fields"),
    ] = Field(
        "zscore",
        description="Per image and channel: zero mean and unit variance, to [0, 1], or as in the file (none); or what "
        "the network learned with: {mean: .., std: ..}, {window: [low, high]}, {percentiles: [1, 99]}, {divide: 255}, "
        "{transform: package.module:name} (IntensitySettings).",
    )


class SourceTrainingSettings(Settings):
    """Supervised training of a source segmenter."""

    steps: Positive | None = Field(
        700,
        description="Optimiser steps, whatever the number of images. 700 of 16 images trained the models of the "
        "benchmarks in the README.",
    )
    epochs: Positive | None = Field(
        None,
        description="In place of `steps` (which is then left out, or null): passes over the training images. How many "
        "steps they are depends on the data.",
    )
    batch_size: Positive = Field(16, description="Images per step.")
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate of AdamW, decayed to 0 along a cosine.")
    validate_every: Positive | None = Field(
        None,
        description="Steps from one validation to the next, at which the learning rate is lowered too; null: a pass "
        "over the images, or a twentieth of `steps` where that is less.",
    )
    validation_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of patients that no step learns from: their loss picks the weights that are kept, their "
        "Dice is shown.",
    )
    augment: bool = Field(True, description="Small rotations, scalings and changes of brightness and contrast.")

    @model_validator(mode="before")
    @classmethod
    def _epochs_take_the_place_of_steps(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("epochs") is not None and "steps" not in values:
            return {**values, "steps": None}
        return values

    @model_validator(mode="after")
    def _one_length(self) -> SourceTrainingSettings:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"steps: {self.steps} and epochs: {self.epochs} both say how long to train; keep steps, which mean the "
                "same whatever the number of images, and take epochs out"
            )
        if self.epochs is None and self.steps is None:
            raise ValueError("nothing says how long to train; write steps: 700")
        return self


def _source_network() -> NetworkSettings:
    """The network of the source models in the benchmarks of the README."""
    return NetworkSettings(channels=(16, 32, 64, 128, 256), residual_units=2, norm="batch")


class TrainSourceConfig(Settings):
    """`medfm-rl train-source`: train a segmenter on labelled source data."""

    data: DataSettings = Field(description="Labelled source data.")
    structures: dict[str, int] | None = Field(
        None,
        description="Structures by name, with their integer in the label files, such as {LV: 1, MYO: 2}; null: as the "
        "dataset.json of the data names them.",
    )
    in_channels: Positive = Field(1, description="Channels of the images.")
    output: Path = Field(
        description="Folder of the segmenter to write; it must not exist or be empty. Checkpoints and report.html lie "
        "beside it, in OUTPUT.training."
    )
    network: NetworkSettings = Field(
        default_factory=_source_network, description="Architecture; by default that of the benchmarks in the README."
    )
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
