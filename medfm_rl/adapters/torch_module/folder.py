"""`segmenter.json` of a torch module: what the folder holds, and the module that it describes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from torch import nn

from medfm_rl.adapters.checkpoints import read_json_object
from medfm_rl.adapters.description import DESCRIPTION
from medfm_rl.adapters.state_dicts import KEYS, PREFIX, Place
from medfm_rl.adapters.torch_module.outputs import Output
from medfm_rl.errors import ModelError
from medfm_rl.settings import IntensitySettings, NetworkSettings, PreprocessingSettings
from medfm_rl.settings.problems import describe_problem, field_of
from medfm_rl.types import LabelSchema

DEFAULT_WEIGHTS: Final = "weights.safetensors"
OVERLAP: Final = "structures_overlap"
"""The field that says that a pixel can lie in several structures, and that the network gives a logit for each."""
_FIELDS: Final = frozenset(
    {
        "format",
        "kind",
        "network",
        "weights",
        "output",
        "in_channels",
        "schema",
        "preprocessing",
        "decoder_prefixes",
        OVERLAP,
        KEYS,
        PREFIX,
    }
)
"""What `segmenter.json` may hold."""


@dataclass(frozen=True)
class Described:
    """What `segmenter.json` says of a torch module.

    Attributes:
        schema: The structures.
        preprocessing: How an image becomes the network's input.
        in_channels: Channels of an image.
        network: How to build the module: one of `unet`, `factory` (with `arguments`) or `torchscript`.
        weights: Name of the weights file in the folder; of a TorchScript network the file is its weights too.
        decoder_prefixes: Where the names of the decoder's parameters start.
        place: Where in the file the weights are; None to find them.
        output: Which of the network's outputs are the logits; None where it returns one tensor.
    """

    schema: LabelSchema
    preprocessing: PreprocessingSettings
    in_channels: int
    network: Mapping[str, Any]
    weights: str
    decoder_prefixes: tuple[str, ...]
    place: Place | None
    output: Output | None = None


def read_description(folder: Path) -> Described:
    """Reads `segmenter.json`.

    Raises:
        ModelError: It is missing, is of something else, or a field is missing or wrong.
    """
    path = folder / DESCRIPTION
    content = _read(folder)
    try:
        found = Described(
            _schema(content["schema"], content.get(OVERLAP, False)),
            PreprocessingSettings(**content["preprocessing"]),
            int(content.get("in_channels", 1)),
            dict(content["network"]),
            _weights_name(content),
            tuple(content.get("decoder_prefixes", ())),
            _place(content),
            _output(content),
        )
        if isinstance(found.preprocessing.intensity, IntensitySettings):
            found.preprocessing.intensity.require_channels(found.in_channels)
    except ValidationError as error:
        problems = "; ".join(f"{field_of(item['loc'])}: {describe_problem(item)}" for item in error.errors())
        raise ModelError(f"{path}: preprocessing: {problems}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: field missing or wrong ({error})") from error
    _require_network(found.network, path)
    return found


def weights_file(folder: Path) -> Path:
    """The file that `segmenter.json` says the weights are read from, wherever that is.

    Raises:
        ModelError: There is no such description.
    """
    return folder / _weights_name(_read(folder))


def _read(folder: Path) -> dict[str, Any]:
    """The content of `segmenter.json`: of a torch module, and with no field that is not known."""
    path = folder / DESCRIPTION
    content = read_json_object(path, f"{folder}: not a segmenter folder, there is no {DESCRIPTION}")
    if content.get("kind") != "torch" or content.get("format") != 1:
        raise ModelError(f'{path}: "kind" must be "torch" and "format" 1')
    unknown = sorted(content.keys() - _FIELDS)
    if unknown:
        raise ModelError(
            f"{path}: there is no field {', '.join(unknown)}; correct its name or remove it (fields are "
            f"{', '.join(sorted(_FIELDS))})"
        )
    return content


def _schema(content: Mapping[str, Any], overlap: Any) -> LabelSchema:
    if type(overlap) is not bool:
        raise TypeError(f"{OVERLAP} is true or false")
    names = tuple(content["names"])
    ids = None if overlap and "ids" not in content else tuple(content["ids"])
    if not all(isinstance(name, str) for name in names) or not all(type(number) is int for number in ids or ()):
        raise TypeError("schema has names, which are texts, and ids, which are integers")
    if not overlap:
        return LabelSchema(names, ids or ())
    by_bits = LabelSchema.of_regions(names[1:])
    if ids is None:
        return replace(by_bits, names=names)
    if len(set(ids)) != len(ids) or len(ids) != by_bits.num_classes:
        raise ValueError(
            f"schema.ids: {', '.join(by_bits.structures)} overlap, and {by_bits.num_classes} distinct integers are "
            f"needed, one for each of {', '.join(by_bits.class_names)}; leave ids out to have bit masks"
        )
    return LabelSchema(names, ids, tuple(tuple(ids[index] for index in own) for own in by_bits.classes))


def _weights_name(content: Mapping[str, Any]) -> str:
    network = content.get("network")
    script = network.get("torchscript") if isinstance(network, Mapping) else None
    return str(script or content.get("weights", DEFAULT_WEIGHTS))


def _output(content: Mapping[str, Any]) -> Output | None:
    output = content.get("output")
    if output is not None and (isinstance(output, bool) or not isinstance(output, str | int)):
        raise ValueError(f"output is the key or the place of one of the network's outputs, not {output!r}")
    return output


def _place(content: Mapping[str, Any]) -> Place | None:
    if not content.keys() & {KEYS, PREFIX}:
        return None
    keys, prefix = content.get(KEYS, []), content.get(PREFIX, "")
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys) and isinstance(prefix, str)):
        raise ValueError(f"{KEYS} is a list of names and {PREFIX} a text")
    return Place(tuple(keys), prefix)


def _require_network(network: Mapping[str, Any], path: Path) -> None:
    """Raises ModelError where a network is not given in exactly one of the known ways."""
    arguments = {"arguments"} if "factory" in network else set()
    if network.keys() - arguments not in ({"unet"}, {"factory"}, {"torchscript"}):
        raise ModelError(
            f"{path}: network is one of unet, factory (with arguments), torchscript; not {sorted(network)}"
        )


def network_settings(settings: Any, folder: Path) -> NetworkSettings:
    """The settings of a UNet.

    Raises:
        ModelError: They are none.
    """
    try:
        return NetworkSettings(**settings)
    except (TypeError, ValidationError) as error:
        raise ModelError(f"{folder / DESCRIPTION}: network.unet: {error}") from error


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
