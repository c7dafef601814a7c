"""The quality model of a run as an MLflow model, for those who serve models with MLflow."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

from medfm_rl.adapters.kinds import kind_of
from medfm_rl.adapters.loading import (
    adapted_settings,
    load_segmenter,
    portable_settings,
    settings_at,
    without_prompts,
)
from medfm_rl.errors import DataError, MissingExtraError
from medfm_rl.networks import choose_device
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.model import QUALITY_FILE
from medfm_rl.settings import Segmenter
from medfm_rl.settings.kinds import package_of
from medfm_rl.tracking.environment import stay_quiet
from medfm_rl.version import __version__

_SETTINGS: Final = "segmenter-settings.json"


def save_quality_model(run: Path, folder: Path) -> None:
    """Writes an MLflow model that assesses masks: `mlflow.pyfunc.load_model(folder).predict(table)`.

    The table has the columns `image` and `mask`, paths of files, and `patient` where it is known. Segmenter, reward
    networks and `quality.json` are copied into the model; what the run learned from is not. Where the segmenter is of
    another tool, that has to be installed where the model is served.

    Args:
        run: Finished run of `adapt` with a quality model.
        folder: New folder.

    Raises:
        ModelError: The run has no usable quality model, or its segmenter cannot be loaded.
        ConfigError: The settings of the run cannot be read.
        DataError: The folder exists and is not empty.
        MissingExtraError: MLflow is not installed.
    """
    QualityController.load(run)
    settings = adapted_settings(run / "config.yaml", run / "model")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: already exists and is not empty; give a new folder")
    stay_quiet()
    try:
        from mlflow import pyfunc
    except ImportError as error:
        raise MissingExtraError("MLflow is not installed: pip install 'medfm-rl[tracking]'") from error
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "run"
        for part in ("model", "reward"):
            shutil.copytree(run / part, copy / part)
        shutil.copy(run / QUALITY_FILE, copy / QUALITY_FILE)
        (copy / _SETTINGS).write_text(portable_settings(settings), encoding="utf-8")
        pyfunc.save_model(
            str(folder),
            python_model=str(Path(__file__).with_name("quality_pyfunc.py")),
            artifacts={"run": str(copy)},
            pip_requirements=_requirements(settings),
        )


def load_served(folder: Path, device: str = "cpu") -> QualityController:
    """The controller of the copy of a run in an MLflow model.

    Args:
        folder: The copy.
        device: Where the networks run: auto (cuda, then mps, then cpu), cpu, cuda or mps.

    Raises:
        ModelError: A part is missing, damaged, or does not belong to the others.
    """
    text = (folder / _SETTINGS).read_text(encoding="utf-8")
    segmenter = load_segmenter(without_prompts(settings_at(text, folder / "model", folder)))
    return QualityController.load(folder, segmenter, choose_device(device))


def _requirements(settings: Segmenter) -> list[str]:
    """What has to be installed where the model is served."""
    extra, package = kind_of(settings).extra, package_of(settings.kind)
    extras = ["tracking", *([] if extra is None else [extra])]
    own = f"medfm-rl[{','.join(extras)}]=={__version__}"
    return [own] if package is None else [own, f"{package.name}=={package.version}"]
