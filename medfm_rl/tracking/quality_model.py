"""The quality model of a run as an MLflow model, for who serves models with MLflow."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from medfm_rl import __version__
from medfm_rl.adapters.torch_module import DESCRIPTION
from medfm_rl.errors import DataError, MissingExtraError, ModelError
from medfm_rl.quality import QUALITY_FILE, QualityController


def save_quality_model(run: Path, folder: Path) -> None:
    """Writes an MLflow model that judges masks: `mlflow.pyfunc.load_model(folder).predict(table)`.

    The table has the columns `image` and `mask`, paths of files, and `patient` where it is known. Segmenter, reward
    networks and `quality.json` are copied into the model; what the run learned from is not.

    Args:
        run: Finished run of `adapt` with a quality model.
        folder: New folder.

    Raises:
        ModelError: The run has no usable quality model, or its segmenter is not a torch segmenter.
        DataError: The folder exists and is not empty.
        MissingExtraError: MLflow is not installed.
    """
    if (run / "model").is_dir() and not (run / "model" / DESCRIPTION).exists():
        raise ModelError(
            f"{run}: the segmenter is of another tool, which an MLflow model cannot bring along; only torch segmenters "
            "can be served. Use `medfm-rl score`, or load_controller of medfm_rl.pipeline.score in a model of your own"
        )
    QualityController.load(run)
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
        pyfunc.save_model(
            str(folder),
            python_model=str(Path(__file__).with_name("quality_pyfunc.py")),
            artifacts={"run": str(copy)},
            pip_requirements=[f"medfm-rl[tracking]=={__version__}"],
        )
