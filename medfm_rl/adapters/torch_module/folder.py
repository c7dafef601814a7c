"""What builds the module of a segmenter folder, and where its weights are."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from medfm_rl.adapters.description import DESCRIPTION, read_described
from medfm_rl.adapters.state_dicts import Place
from medfm_rl.errors import ModelError
from medfm_rl.settings import TorchDescription


def weights_file(folder: Path) -> Path:
    """The file that `segmenter.json` says the weights are read from, wherever that is.

    Raises:
        ModelError: There is no such description.
    """
    return folder / read_described(folder, TorchDescription).weights_file


def place_of_weights(described: TorchDescription) -> Place | None:
    """Where in their file the weights are; None to find them."""
    if described.weights_keys is None and described.weights_prefix is None:
        return None
    return Place(described.weights_keys or (), described.weights_prefix or "")


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
