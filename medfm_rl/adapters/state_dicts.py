"""The tensors of a network in a file of weights, whatever training code has wrapped around them.

Checkpoints hold a state dict under keys (`net`, `model`, `state_dict`, one in the other), and wrappers put a prefix
before every name: `module.` (DataParallel), `_orig_mod.` (torch.compile), the attribute of a Lightning module. What
fits the network name by name and shape by shape is taken, where it is one set of weights alone.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from medfm_rl.adapters.checkpoints import name_tensors, read_content, refuse_misfit
from medfm_rl.errors import ModelError

_LOG = logging.getLogger(__name__)
KEYS, PREFIX = "weights_keys", "weights_prefix"
"""The fields of `segmenter.json` that say where the weights are."""
_WRAPPERS: Final = re.compile(r"((module|_orig_mod|model|net|network)\.)*")
"""What wrappers put before the names of a network; anything else can be a network beside the one that is meant."""
_DEEPEST = 4
_Tables = Mapping[tuple[str, ...], Mapping[str, Tensor]]
"""Tensors by name, by the keys that lead to them."""


@dataclass(frozen=True)
class Place:
    """Where the tensors of a network are in a file of weights.

    Attributes:
        keys: Keys of the dictionaries, from the outermost one, that lead to the tensors.
        prefix: What stands before the name of every tensor.
    """

    keys: tuple[str, ...] = ()
    prefix: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of `segmenter.json` that say it."""
        return {KEYS: list(self.keys), PREFIX: self.prefix}

    @property
    def line(self) -> str:
        """The same as a line to be written there."""
        return ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in self.fields.items())

    def put(self, state: Mapping[str, Tensor], content: Mapping[str, Any]) -> dict[str, Any]:
        """The content of a file with other tensors in this place; everything else stays."""
        if self.keys:
            first, inner = self.keys[0], Place(self.keys[1:], self.prefix)
            return {**content, first: inner.put(state, content.get(first, {}))}
        return {**content, **{self.prefix + name: value for name, value in state.items()}}


def load_weights(module: nn.Module, path: Path, place: Place | None = None, told_in: str | None = None) -> Place:
    """Loads the weights of a network: every tensor has its place, every place its tensor, and all are finite.

    Args:
        module: The network.
        path: A .safetensors file, or a .pth file, of which nothing is unpickled that could run code.
        place: Where the weights are; None to find them.
        told_in: The file that can say where they are, for the message; None where there is none.

    Returns:
        Where they are.

    Raises:
        ModelError: The file cannot be read, no tensors in it fit or several do, or one holds NaN or infinite values.
    """
    own = module.state_dict()
    tables = dict(_tables(read_content(path)))
    if not tables:
        raise ModelError(
            f"{path}: not a state dict: tensors by name are needed, as they are or under a key such as state_dict"
        )
    found = _find(own, tables, path, told_in) if place is None else place
    table = _table_at(found, tables, path)
    state = {name.removeprefix(found.prefix): table[name] for name in table if name.startswith(found.prefix)}
    refuse_misfit(own, state, path)
    beside = sorted(table.keys() - {found.prefix + name for name in state})
    if beside:
        _LOG.warning("%s: holds more than the network, which is left out: %s", path, name_tensors(beside))
    module.load_state_dict(state)
    return found


def _find(own: Mapping[str, Tensor], tables: _Tables, path: Path, told_in: str | None) -> Place:
    """The one place in a file whose tensors fit a network; where there is none, the one that comes closest."""
    fitting = [place for place in _places(own, tables) if _fits(own, place, tables[place.keys])]
    different = _without_repetitions(own, fitting, tables)
    if len(different) > 1:
        lines = "\n".join(place.line for place in different)
        remedy = f"by one of these lines in {told_in}:\n{lines}" if told_in else "by saving it into a file of its own"
        raise ModelError(
            f"{path}: holds {len(different)} sets of weights that fit the network; say which one is meant {remedy}"
        )
    usual = [place for place in fitting if _WRAPPERS.fullmatch(place.prefix)]
    if usual:
        return usual[0]
    if fitting:
        line = fitting[0].line
        remedy = f"write this line into {told_in}:\n{line}" if told_in else "save it into a file of its own"
        raise ModelError(
            f"{path}: {fitting[0].prefix!r} stands before the names of all tensors that fit the network, and can be "
            f"that of another network beside it; if it is the one that is meant, {remedy}"
        )
    places = [*_places(own, tables), *(Place(keys) for keys in tables)]
    return max(places, key=lambda place: sum(place.prefix + name in tables[place.keys] for name in own))


def _places(own: Mapping[str, Tensor], tables: _Tables) -> list[Place]:
    """Where the first tensor of a network can be, by its name."""
    first = min(own, default="")
    return [
        Place(keys, name.removesuffix(first))
        for keys, table in tables.items()
        for name in table
        if name == first or name.endswith(f".{first}")
    ]


def _fits(own: Mapping[str, Tensor], place: Place, table: Mapping[str, Tensor]) -> bool:
    """Whether the tensors in a place are those of the network, by name and shape, and no others."""
    found = {name.removeprefix(place.prefix): table[name] for name in table if name.startswith(place.prefix)}
    return found.keys() == own.keys() and all(found[name].shape == own[name].shape for name in own)


def _without_repetitions(own: Mapping[str, Tensor], places: Sequence[Place], tables: _Tables) -> list[Place]:
    """The places whose weights differ; a file can hold the same ones twice."""
    kept: list[Place] = []
    for place in places:
        known = any(
            all(
                torch.equal(tables[place.keys][place.prefix + name], tables[other.keys][other.prefix + name])
                for name in own
            )
            for other in kept
        )
        if not known:
            kept.append(place)
    return kept


def _tables(
    content: Mapping[Any, Any], keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """The dictionaries with tensors by name within a file, each with the keys that lead to it; the outer ones first."""
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield keys, tensors
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and len(keys) < _DEEPEST:
            yield from _tables(value, (*keys, key))


def _table_at(place: Place, tables: _Tables, path: Path) -> Mapping[str, Tensor]:
    if place.keys not in tables:
        there = ", ".join(json.dumps(list(keys)) for keys in tables)
        raise ModelError(f"{path}: there are no tensors under {json.dumps(list(place.keys))}; there are under {there}")
    return tables[place.keys]
