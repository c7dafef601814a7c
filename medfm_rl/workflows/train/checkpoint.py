"""The checkpoint of a training: one file with all that the next step depends on, and what it was started with."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medfm_rl.data.files import replace_on_success
from medfm_rl.errors import ConfigError
from medfm_rl.networks import portable_state
from medfm_rl.workflows.train.supervised import Training, Validation

_SECONDS: Final = 30
"""How much work a kill may cost."""
_ADVICE: Final = "delete the file to start anew"


class TrainingCheckpoint:
    """Writes a training down now and then, and goes on with it.

    Args:
        path: The file.
        started_with: What the result depends on, as JSON values; a training that was started with other things is not
            gone on with.
        device: Where the network is.
        seconds: Between two writings; half a minute where not given.
    """

    def __init__(
        self, path: Path, started_with: Mapping[str, Any], device: torch.device, seconds: float | None = None
    ) -> None:
        self.path = path
        self.started_with = json.loads(json.dumps(started_with))
        self.device = device
        self.seconds = _SECONDS if seconds is None else seconds
        self._last = time.monotonic()

    def keep(self, training: Training) -> None:
        """Writes the training down where the last time is long enough ago."""
        if time.monotonic() - self._last < self.seconds:
            return
        content = {
            "started_with": json.dumps(self.started_with),
            "history": json.dumps([asdict(item) for item in training.history]),
        }
        with replace_on_success(self.path) as temporary:
            save_file(self._tensors(training), temporary, content)
        self._last = time.monotonic()

    def resume(self, training: Training) -> None:
        """Puts a training where the one was that was written down; without a file it stays at its start.

        Raises:
            ConfigError: That one was started with something else, or the file cannot be read.
        """
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                content = file.metadata() or {}
                self._require_the_same(json.loads(content["started_with"]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            history = [Validation(**{**item, "dice": tuple(item["dice"])}) for item in json.loads(content["history"])]
            self._put(training, tensors)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise ConfigError(f"{self.path}: not the checkpoint of this training ({error}); {_ADVICE}") from error
        training.history[:] = history

    def _require_the_same(self, started_with: Mapping[str, Any]) -> None:
        names = sorted({*started_with, *self.started_with})
        changed = [name for name in names if started_with.get(name) != self.started_with.get(name)]
        if changed:
            raise ConfigError(
                f"{self.path}: an interrupted training was started with other {' and '.join(changed)}; go on with "
                f"those, choose another output, or {_ADVICE}"
            )

    def _tensors(self, training: Training) -> dict[str, Tensor]:
        parts = {
            "segmenter": training.segmenter.state_dict(),
            "best": training.best,
            "optimiser": {
                f"{index}.{name}": value
                for index, entry in training.optimiser.state_dict()["state"].items()
                for name, value in entry.items()
            },
            "order": {"generator": training.generator.get_state(), "waiting": training.waiting},
            "dropout": {"cpu": torch.get_rng_state()},
        }
        if self.device.type == "cuda":
            parts["dropout"]["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            f"{part}/{name}": value for part, state in parts.items() for name, value in portable_state(state).items()
        }

    def _put(self, training: Training, tensors: Mapping[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = value
        training.segmenter.load_state_dict(parts["segmenter"])
        training.best = {name: value.to(self.device) for name, value in parts["best"].items()}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimiser"].items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        groups = training.optimiser.state_dict()["param_groups"]
        training.optimiser.load_state_dict({"state": state, "param_groups": groups})
        training.generator.set_state(parts["order"]["generator"])
        training.waiting = parts["order"]["waiting"]
        torch.set_rng_state(parts["dropout"]["cpu"])
        if self.device.type == "cuda" and "cuda" in parts["dropout"]:
            torch.cuda.set_rng_state(parts["dropout"]["cuda"], self.device)
