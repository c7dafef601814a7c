"""The quality model of a run as an MLflow model, for those who serve models with MLflow."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.loading import (
    PROMPTABLE,
    exported_settings,
    load_segmenter,
    portable_settings,
    recognise,
    settings_at,
    without_prompts,
)
from medfm_rl.errors import DataError, MissingExtraError
from medfm_rl.networks import choose_device
from medfm_rl.quality import QUALITY_FILE, QualityController
from medfm_rl.settings import AdaptConfig, Segmenter
from medfm_rl.settings.files import load_config
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
    settings = portable_settings(exported_settings(_segmenter_of(run), run / "model"))
    load_served(run, settings)
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: already exists and is not empty; give a new folder")
    # No usage statistics leave this machine.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    try:
        from mlflow import pyfunc
    except ImportError as error:
        raise MissingExtraError("MLflow is not installed: pip install 'medfm-rl[tracking]'") from error
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "run"
        for part in ("model", "reward"):
            shutil.copytree(run / part, copy / part)
        shutil.copy(run / QUALITY_FILE, copy / QUALITY_FILE)
        (copy / _SETTINGS).write_text(settings, encoding="utf-8")
        pyfunc.save_model(
            str(folder),
            python_model=str(Path(__file__).with_name("quality_pyfunc.py")),
            artifacts={"run": str(copy)},
            pip_requirements=[f"medfm-rl[{','.join(['tracking', *_extra(settings)])}]=={__version__}"],
        )


def load_served(folder: Path, settings: str | None = None, device: str = "cpu") -> QualityController:
    """The controller of a run, or of the copy of one in an MLflow model.

    Args:
        folder: The run or the copy.
        settings: Settings of the segmenter, as `portable_settings` gives them; None: as the copy has them.
        device: Where the networks run: auto (cuda, then mps, then cpu), cpu, cuda or mps.

    Raises:
        ModelError: A part is missing, damaged, or does not belong to the others.
    """
    text = (folder / _SETTINGS).read_text(encoding="utf-8") if settings is None else settings

    def load(segmenter: Path) -> SegmenterAdapter:
        return load_segmenter(without_prompts(settings_at(text, segmenter, folder)))

    return QualityController.load(folder, load, choose_device(device))


def _segmenter_of(run: Path) -> Segmenter:
    """Settings of the segmenter that a run adapted; without a config those that its folder tells."""
    path = run / "config.yaml"
    if not path.exists():
        return recognise(run / "model")
    return load_config(path, AdaptConfig).segmenter


def _extra(settings: str) -> list[str]:
    """The extra of the package that a kind of segmenter needs."""
    kind = json.loads(settings)["kind"]
    extras = {"nnunet": "nnunet", "totalsegmentator": "nnunet", "biomedparse": "biomedparse"}
    extras |= dict.fromkeys(PROMPTABLE, "medsam")
    return [extras[kind]] if kind in extras else []
