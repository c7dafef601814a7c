"""TorchScript files: loaded, copied, hashed and written."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from medfm_rl.adapters.checkpoints import first_line, refuse_damaged
from medfm_rl.errors import ModelError


@contextmanager
def _torchscript_allowed() -> Iterator[None]:
    """TorchScript is deprecated, torch says; the users' files are what they are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        yield


def load_script(path: Path) -> nn.Module:
    """Reads a TorchScript file onto the CPU.

    Raises:
        ModelError: It is none, or holds numbers that are not finite.
    """
    with _torchscript_allowed():
        try:
            module: nn.Module = torch.jit.load(str(path), map_location="cpu")
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{path}: not a TorchScript file that can be loaded ({first_line(error)})") from error
    refuse_damaged(module.state_dict(), path)
    return module


def is_script(module: nn.Module) -> bool:
    """Whether a module is a script."""
    return isinstance(module, torch.jit.ScriptModule)


def copy_script(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy that shares no weights: scripts know that of themselves alone, not through `copy.deepcopy`."""
    with _torchscript_allowed():
        twin: nn.Module = torch.jit.load(io.BytesIO(script_bytes(module)), map_location=device)
    return twin


def script_hash(module: nn.Module) -> str:
    """SHA-256 of a script. A frozen one has its weights in its code.

    Its bytes also name the device that it is on, its mode and what of it learns: here those of one at rest.
    """
    twin = copy_script(module, torch.device("cpu")).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return hashlib.sha256(script_bytes(twin)).hexdigest()


def script_bytes(module: nn.Module) -> bytes:
    """The content of a TorchScript file."""
    buffer = io.BytesIO()
    with _torchscript_allowed():
        torch.jit.save(module, buffer)
    return buffer.getvalue()
