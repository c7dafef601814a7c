"""Trackers, opened as the settings of a run ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfm_rl.settings import TrackingSettings
from medfm_rl.tracking.tracker import NullTracker, Tracker


@contextmanager
def open_tracker(settings: TrackingSettings, run_folder: Path, name: str | None = None) -> Iterator[Tracker]:
    """Opens the tracker that the settings ask for; going on with a run folder goes on with its MLflow run.

    Args:
        settings: `uri: null` records nothing.
        run_folder: MLflow's run id is kept in it, and "auto" puts its store beside it.
        name: Of a new run; that of the folder where it is not given.

    Raises:
        TrackingError: The store cannot be reached.
        MissingExtraError: MLflow is not installed.
    """
    if settings.uri is None:
        yield NullTracker()
        return
    from medfm_rl.tracking.mlflow_tracker import MLflowTracker

    with MLflowTracker.open(settings, run_folder, name) as tracker:
        yield tracker


def require_store(settings: TrackingSettings) -> None:
    """Finds out whether there is something to record to, and writes nothing.

    Raises:
        TrackingError: The address is none, or the server does not answer.
        MissingExtraError: MLflow is not installed.
    """
    if settings.uri is not None:
        from medfm_rl.tracking.mlflow_tracker import require_reachable

        require_reachable(settings.uri)


@contextmanager
def open_within(settings: TrackingSettings, run_folder: Path, name: str) -> Iterator[Tracker]:
    """Opens a tracker of a run within that of a finished run, for what is made with it later.

    Args:
        settings: Settings of the finished run.
        run_folder: Its folder.
        name: Name of the new run.

    Raises:
        TrackingError: The run was not recorded, or the store cannot be reached or does not know it.
        MissingExtraError: MLflow is not installed.
    """
    from medfm_rl.tracking.mlflow_tracker import MLflowTracker

    with MLflowTracker.open_within(settings, run_folder, name) as tracker:
        yield tracker
