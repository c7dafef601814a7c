"""Where runs are recorded."""

from __future__ import annotations

from pydantic import Field

from medfm_rl.settings.base import Settings


class TrackingSettings(Settings):
    """MLflow."""

    uri: str | None = Field(
        "auto", description="MLflow tracking URI; auto: an SQLite store beside the run folder; null: no tracking."
    )
    experiment: str = Field("medfm-rl", description="MLflow experiment.")
