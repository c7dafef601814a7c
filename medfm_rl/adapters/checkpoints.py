"""Files of other tools: read as data, checked, and put into a network without a tensor left over."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from medfm_rl.data.json_text import parse_json
from medfm_rl.errors import ModelError
from medfm_rl.networks import fits_in, is_finite

CONTAINERS: Final = ("state_dict", "model_state_dict", "model")
"""Keys under which a checkpoint may hold its state dict."""
_SUFFIXES: Final = (".pth", ".pt", ".safetensors")
NO_CHECKPOINT: Final = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    EOFError,
    MemoryError,
    struct.error,
    pickle.UnpicklingError,
    SafetensorError,
)
"""What bytes that are no checkpoint make the readers raise; the safe unpickler fails in many ways."""


def read_checkpoint(
    path: Path,
    trusted: bool = False,
    remedy: str = "Save the state dict alone into another file: torch.save(model.state_dict(), 'weights.pt')",
) -> dict[str, Any]:
    """Reads a .pth file of tensors, plain values, NumPy numbers and devices.

    Args:
        path: The file.
        trusted: Unpickle whatever it holds. That runs code of whoever made the file.
        remedy: What a person can do about a file that holds other objects.

    Raises:
        ModelError: It is missing, damaged, no dictionary, or holds other objects and is not trusted.
    """
    _require_file(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error) and "global" not in str(error):
            raise ModelError(f"{path}: a damaged or truncated checkpoint") from error
        raise ModelError(
            f"{path}: holds more than tensors and numbers, and reading that would run code of whoever made the file "
            f"({_blocked(error)}). {remedy}"
        ) from error
    except NO_CHECKPOINT as error:
        raise ModelError(f"{path}: a damaged or truncated checkpoint ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds {type(content).__name__}, a dictionary is needed")
    return content


def read_state(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Reads the weights of a .safetensors file, or of a .pth file as they are or under one of `CONTAINERS`.

    Nothing is unpickled that could run code.

    Returns:
        The tensors by name, and the key that they are under; None where there is none.

    Raises:
        ModelError: It is missing, damaged or holds something else.
    """
    content = read_content(path)
    if path.suffix == ".safetensors":
        return content, None
    container = next((key for key in CONTAINERS if isinstance(content.get(key), dict)), None)
    state = content[container] if container else content
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise ModelError(
            f"{path}: not a state dict: tensors by name are needed, as they are or within one of "
            f"{', '.join(CONTAINERS)}"
        )
    return dict(state), container


def content_bytes(content: Mapping[str, Any], name: str) -> bytes:
    """A file of weights as bytes: the writers of torch end the process where the disk is full.

    Args:
        content: What is to stand in it; in a .safetensors file tensors by name, of which no two share memory.
        name: Name of the file; its suffix says the format.
    """
    if Path(name).suffix == ".safetensors":
        return bytes(save(dict(content)))
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def read_json_object(path: Path, missing: str) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
        path: The file.
        missing: What to say where there is none.

    Raises:
        ModelError: There is none, it cannot be read, or holds something else.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(missing) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds {type(content).__name__}, an object is needed")
    return content


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Loads a state dict: every tensor has its place, every place its tensor, and all are finite.

    Raises:
        ModelError: They do not fit, or one holds NaN or infinite values.
    """
    refuse_misfit(module.state_dict(), state, path)
    module.load_state_dict(state)


def refuse_misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """Raises ModelError where names or shapes differ from a network's own, or a tensor is damaged."""
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    misshapen = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    fitting = sorted(key for key in own.keys() & state.keys() if key not in misshapen)
    other = [key for key in fitting if not fits_in(state[key], own[key])]
    problems = (
        *(("misses", missing), ("has the unknown", unexpected), ("has other shapes for", misshapen)),
        ("has other kinds of numbers for", other),
    )
    found = [f"{problem} {name_tensors(keys)}" for problem, keys in problems if keys]
    if found:
        raise ModelError(f"{path}: does not fit the network: {'; '.join(found)}")
    refuse_damaged(state, path)


def name_tensors(names: Sequence[str]) -> str:
    """How many tensors, and the first."""
    return f"{len(names)} tensors, the first {names[0]}"


def refuse_damaged(state: Mapping[str, Tensor], path: Path) -> None:
    """Raises ModelError where a tensor holds NaN or infinite values."""
    for name, value in state.items():
        if not is_finite(value):
            raise ModelError(f"{path}: {name} holds NaN or infinite values; the checkpoint is damaged")


def first_line(error: Exception) -> str:
    """The first line of a message, short enough for one of ours."""
    return str(error).strip().split("\n")[0][:160]


def read_content(path: Path) -> dict[str, Any]:
    """What a .safetensors or .pth file holds, as it stands; nothing is unpickled that could run code.

    Raises:
        ModelError: It is missing, damaged or holds something else.
    """
    if path.suffix != ".safetensors":
        return read_checkpoint(path)
    _require_file(path)
    try:
        state: dict[str, Any] = load_file(path)
    except NO_CHECKPOINT as error:
        raise ModelError(f"{path}: a damaged or truncated checkpoint ({first_line(error)})") from error
    return state


def _require_file(path: Path) -> None:
    if not path.is_file():
        others = sorted(other.name for other in path.parent.glob("*") if other.suffix in _SUFFIXES and other.is_file())
        raise ModelError(f"{path}: there is no such checkpoint; there is {', '.join(others) or 'none'} in that folder")


def _blocked(error: Exception) -> str:
    words = str(error).split()
    return next((words[index + 1] for index, word in enumerate(words[:-1]) if word == "GLOBAL"), first_line(error))


def _harmless() -> list[Any]:
    """What training tools put beside the weights: NumPy numbers and arrays, their types, and devices."""
    reconstruct, scalar = np._core.multiarray._reconstruct, np._core.multiarray.scalar  # type: ignore[attr-defined]
    types = [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    # Files of NumPy 1 have the old name of the module.
    old = [(reconstruct, "numpy.core.multiarray._reconstruct"), (scalar, "numpy.core.multiarray.scalar")]
    return [reconstruct, scalar, np.ndarray, np.dtype, torch.device, *types, *old]


def save_state(content: dict[str, Any], path: Path) -> None:
    """Writes a file of weights in the format that its suffix says; the bytes do not depend on the rest of its name."""
    path.write_bytes(content_bytes(content, path.name))
