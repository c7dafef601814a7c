"""`segmenter.json` of a torch module: what the folder holds, and the module that it describes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, StrictBool, StrictInt, StrictStr, ValidationError, field_validator, model_validator
from torch import nn

from medfm_rl.adapters.description import DESCRIPTION, read_described
from medfm_rl.adapters.state_dicts import Place
from medfm_rl.errors import ModelError
from medfm_rl.settings import IntensitySettings, NetworkSettings, PreprocessingSettings
from medfm_rl.settings.base import Settings
from medfm_rl.settings.problems import sum_up_problems
from medfm_rl.types import LabelSchema

DEFAULT_WEIGHTS: Final = "weights.safetensors"
OVERLAP: Final = "structures_overlap"


class Classes(Settings):
    """The field `schema`: the background and the structures, and the integer of each class in label files."""

    names: tuple[StrictStr, ...]
    ids: tuple[StrictInt, ...] | None = None


class Described(Settings):
    """`segmenter.json` of a torch module."""

    kind: Literal["torch"]
    classes: Classes = Field(alias="schema")
    preprocessing: PreprocessingSettings
    network: dict[str, Any] = Field(
        description="How to build the module: one of unet, factory (with arguments) or torchscript."
    )
    in_channels: int = Field(1, description="Channels of an image.")
    weights: str = Field(DEFAULT_WEIGHTS, description="File of the weights; a TorchScript network has its own.")
    decoder_prefixes: tuple[str, ...] = Field((), description="Where the names of the decoder's parameters start.")
    output: StrictStr | StrictInt | None = Field(
        None, description="Which of the network's outputs are the logits; null where it returns one tensor."
    )
    structures_overlap: StrictBool = Field(
        False, description="Whether a pixel can lie in several structures, and the network gives a logit for each."
    )
    weights_keys: tuple[StrictStr, ...] | None = Field(None, description="As in `Place`; neither of both: to be found.")
    weights_prefix: StrictStr | None = None

    @field_validator("network")
    @classmethod
    def _is_given_in_one_way(cls, network: dict[str, Any]) -> dict[str, Any]:
        arguments = {"arguments"} if "factory" in network else set()
        if network.keys() - arguments not in ({"unet"}, {"factory"}, {"torchscript"}):
            raise ValueError(f"is one of unet, factory (with arguments), torchscript; not {sorted(network)}")
        return network

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        self.label_schema()
        if isinstance(self.preprocessing.intensity, IntensitySettings):
            self.preprocessing.intensity.require_channels(self.in_channels)
        return self

    def label_schema(self) -> LabelSchema:
        """The structures.

        Raises:
            ValueError: Names and integers do not fit each other.
        """
        names, ids = self.classes.names, self.classes.ids
        if not self.structures_overlap:
            if ids is None:
                raise ValueError("schema.ids: this field is needed")
            return LabelSchema(names, ids)
        by_bits = LabelSchema.of_regions(names[1:])
        if ids is None:
            return replace(by_bits, names=names)
        if len(set(ids)) != len(ids) or len(ids) != by_bits.num_classes:
            raise ValueError(
                f"schema.ids: {', '.join(by_bits.structures)} overlap, and {by_bits.num_classes} distinct integers are "
                f"needed, one for each of {', '.join(by_bits.class_names)}; leave ids out to have bit masks"
            )
        return LabelSchema(names, ids, tuple(tuple(ids[index] for index in own) for own in by_bits.classes))

    @property
    def weights_file(self) -> str:
        """The file that the weights are read from; of a TorchScript network that is its own."""
        return str(self.network.get("torchscript", self.weights))

    @property
    def place(self) -> Place | None:
        """Where in the file the weights are; None to find them."""
        if self.weights_keys is None and self.weights_prefix is None:
            return None
        return Place(self.weights_keys or (), self.weights_prefix or "")


def read_description(folder: Path) -> Described:
    """Reads `segmenter.json`.

    Raises:
        ModelError: It is missing, is of something else, or a field is missing or wrong.
    """
    return read_described(folder, Described)


def network_settings(settings: Any, folder: Path) -> NetworkSettings:
    """The settings of a UNet.

    Raises:
        ModelError: They are none.
    """
    try:
        return NetworkSettings.model_validate(settings)
    except ValidationError as error:
        raise ModelError(f"{folder / DESCRIPTION}: network.unet: {sum_up_problems(error)}") from error


def call_factory(name: str, arguments: Mapping[str, Any], folder: Path) -> nn.Module:
    """What the user's own function `package.module:function` builds. Its code runs.

    Raises:
        ModelError: It cannot be imported or called, or returns no torch module.
    """
    module_name, _, function = name.partition(":")
    try:
        module = getattr(importlib.import_module(module_name), function)(**arguments)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ModelError(f"{folder / DESCRIPTION}: factory {name!r} cannot be called ({error})") from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{folder / DESCRIPTION}: factory {name!r} returned {type(module).__name__}, not a torch module"
        )
    return module
