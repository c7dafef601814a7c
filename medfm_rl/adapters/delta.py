"""What adaptation changed, alone: a file that is much smaller than the weights where the changes are of low rank."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from medfm_rl.adapters.base import SegmenterAdapter
from medfm_rl.adapters.checkpoints import first_line
from medfm_rl.data.files import replace_on_success
from medfm_rl.data.json_text import parse_json
from medfm_rl.errors import ModelError

_FORMAT: Final = "1"
_ENTRY: Final = "medfm_rl_delta"
_UP, _DOWN, _WHOLE = ":up", ":down", ":whole"


@dataclass(frozen=True)
class Delta:
    """Changes of weights, and of which weights.

    Attributes:
        base_hash: `state_hash` of the segmenter before.
        settings: Settings of that segmenter, as JSON, without its folder.
        changes: By name, `(N, ...)` float32: what is added. What is not here did not change.
    """

    base_hash: str
    settings: str
    changes: Mapping[str, Tensor]


def state_hash(module: nn.Module) -> str:
    """SHA-256 of names and values of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        # As bytes: NumPy has no bfloat16.
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_delta(path: Path, before: SegmenterAdapter, after: SegmenterAdapter, settings: str) -> None:
    """Writes what changed as factors, `up @ down`, where they are smaller than the change itself.

    The rank of a change is the number of its singular values above what rounding of the weights alone could make:
    averages of several low-rank changes have more than each. So `before` and the file give `after` to within a few
    units in the last place of the largest weight of a layer.

    Args:
        path: A .safetensors file.
        before: The segmenter that was adapted.
        after: The adapted one.
        settings: Settings of the segmenter, as JSON, without its folder.

    Raises:
        ModelError: The two are not of one network.
    """
    old, new = before.state_dict(), after.state_dict()
    if {name: value.shape for name, value in old.items()} != {name: value.shape for name, value in new.items()}:
        raise ModelError(f"{path}: the segmenter before and the one after adaptation are not of one network")
    tensors: dict[str, Tensor] = {}
    for name, value in new.items():
        start = old[name].detach().cpu()
        value = value.detach().cpu()
        if torch.equal(start, value):
            continue
        if not value.is_floating_point():
            raise ModelError(f"{path}: {name} is no floating-point number and has changed; export the whole segmenter")
        tensors |= _factors(name, value.double() - start.double(), float(value.abs().max()))
    entry = {"format": _FORMAT, "base_hash": state_hash(before), "settings": settings}
    with replace_on_success(path) as temporary:
        temporary.write_bytes(save(tensors, {_ENTRY: json.dumps(entry)}))


def read_delta(path: Path) -> Delta:
    """Reads what `write_delta` wrote.

    Raises:
        ModelError: It is missing, damaged or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            entry = parse_json((file.metadata() or {}).get(_ENTRY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: not a file of changes ({first_line(error)})") from error
    if not isinstance(entry, dict) or entry.get("format") != _FORMAT:
        raise ModelError(f"{path}: not a file of changes that `medfm-rl export --delta` of this version wrote")
    changes = {}
    for name in sorted({name.rpartition(":")[0] for name in tensors}):
        if name + _WHOLE in tensors:
            changes[name] = tensors[name + _WHOLE]
        else:
            # The product in double precision: the factors hold the change to the last place of the weights.
            changes[name] = tensors[name + _UP].double() @ tensors[name + _DOWN].double()
    return Delta(str(entry["base_hash"]), str(entry["settings"]), changes)


def apply_delta(segmenter: SegmenterAdapter, delta: Delta, path: Path) -> None:
    """Adds the changes to the weights, in place.

    Args:
        segmenter: The one that was adapted.
        delta: The changes.
        path: Where they were read from, for errors.

    Raises:
        ModelError: They are of another segmenter.
    """
    if state_hash(segmenter) != delta.base_hash:
        raise ModelError(
            f"{path}: these changes are of other weights; give the segmenter that was adapted, as it was then"
        )
    state = dict(segmenter.state_dict())
    for name, change in delta.changes.items():
        value = state[name]
        state[name] = (value.double() + change.reshape(value.shape).to(value.device)).to(value.dtype)
    segmenter.load_state_dict(state)


def _factors(name: str, change: Tensor, largest: float) -> dict[str, Tensor]:
    if change.ndim > 1:
        matrix = change.flatten(1)
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
        # The largest singular value that independent rounding errors of the elements can have.
        rounding = torch.finfo(torch.float32).eps * largest * sum(side**0.5 for side in matrix.shape)
        rank = max(1, int((sizes > rounding).sum()))
        if rank * sum(matrix.shape) < matrix.numel():
            root = sizes[:rank].sqrt()
            up, down = left[:, :rank] * root, root[:, None] * right[:rank]
            return {name + _UP: up.float().contiguous(), name + _DOWN: down.float().contiguous()}
    return {name + _WHOLE: change.float().contiguous()}
