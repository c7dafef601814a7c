"""Which adapter a folder needs, and what `evaluate` and `predict` may be given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.errors import ConfigError, ModelError
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.settings import SegmenterSettings


@dataclass(frozen=True, eq=False)
class Model:
    """A segmenter, and the reward networks that judge it where there are any."""

    segmenter: SegmenterAdapter
    reward: RewardEnsemble | None


def load_segmenter(settings: SegmenterSettings) -> SegmenterAdapter:
    """Loads the segmenter of a config.

    Raises:
        ModelError: The folder cannot be used.
    """
    return TorchModuleAdapter.load(settings.folder)


def load_model(path: Path) -> Model:
    """Loads a run folder of `adapt` (segmenter and reward) or a segmenter folder (no reward).

    Raises:
        ModelError: It is neither.
    """
    if not path.is_dir():
        raise ModelError(f"{path}: there is no such folder; give a run of `medfm-rl adapt` or a segmenter folder")
    if (path / "model").is_dir():
        return Model(load_segmenter(SegmenterSettings(folder=path / "model")), RewardEnsemble.load(path / "reward"))
    if (path / "config.yaml").exists():
        raise ModelError(f"{path}: this run is not finished; go on with it by `medfm-rl adapt --resume`")
    return Model(load_segmenter(SegmenterSettings(folder=path)), None)


def choose_device(name: str) -> torch.device:
    """The device of that name; auto takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: It is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        raise ConfigError(f"device: {name} is not available on this machine; use auto or cpu")
    return torch.device(name)
