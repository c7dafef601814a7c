"""The names by which masks, files, audit logs and MLflow can be joined."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Identity:
    """A run, or a segmenter that is none, by content; None stands for a part that is missing or not known.

    Attributes:
        model_hash: SHA-256 of the run's folder `model`, or of a segmenter's folder. It is also that of what `export`
            writes, for that is a copy.
        reward_hash: SHA-256 of the run's folder `reward`: of its networks, and of how they are put together.
        quality_hash: SHA-256 of the run's `quality.json`, as it is now.
        mlflow_run_id: Where the run was recorded.
    """

    model_hash: str | None = None
    reward_hash: str | None = None
    quality_hash: str | None = None
    mlflow_run_id: str | None = None
