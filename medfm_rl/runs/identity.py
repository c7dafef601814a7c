"""Who made a mask and who judged it: the names by which files, audit logs and MLflow can be joined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medfm_rl.data.files import hash_file, hash_folder
from medfm_rl.runs.folder import RunFolder
from medfm_rl.quality.run_hashes import hash_run
from medfm_rl.tracking.tracker import read_run_id


@dataclass(frozen=True)
class Identity:
    """A run, or a segmenter that is none, by content. What there is not, or is not known, is None.

    Attributes:
        model_hash: SHA-256 of the run's folder `model`, or of a segmenter's folder.
        reward_hash: SHA-256 of the run's folder `reward`.
        quality_hash: SHA-256 of the run's `quality.json`, as it is now.
        mlflow_run_id: Where the run was recorded.
    """

    model_hash: str | None = None
    reward_hash: str | None = None
    quality_hash: str | None = None
    mlflow_run_id: str | None = None


def identify(path: Path) -> Identity:
    """The identity of a run folder of `adapt`, or of a segmenter folder.

    Args:
        path: A folder that a model can be loaded from.
    """
    run = RunFolder(path)
    if not run.model.is_dir():
        return Identity(model_hash=hash_folder(path))
    quality = hash_file(run.quality) if run.quality.exists() else None
    return Identity(**hash_run(path), quality_hash=quality, mlflow_run_id=read_run_id(path))
