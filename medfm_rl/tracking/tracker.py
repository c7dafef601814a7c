"""The protocol that the pipeline logs to, and how a tracker is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from medfm_rl.settings import TrackingSettings


class Tracker(Protocol):
    """Records a run."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Records settings and hashes; nested mappings become dotted names."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records numbers at a step."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Records a file."""

    def child(self, name: str) -> AbstractContextManager[Tracker]:
        """A run within this run, closed when the block ends."""


class NullTracker:
    """Records nothing: what runs without MLflow."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Does nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Does nothing."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Does nothing."""

    @contextmanager
    def child(self, name: str) -> Iterator[Tracker]:
        """Itself."""
        del name
        yield self


@contextmanager
def open_tracker(settings: TrackingSettings, run_folder: Path) -> Iterator[Tracker]:
    """Opens the tracker that the settings ask for; going on with a run folder goes on with its MLflow run.

    Args:
        settings: `uri: null` records nothing.
        run_folder: Names the run; MLflow's run id is kept in it, and "auto" puts its store beside it.

    Raises:
        TrackingError: The store cannot be reached.
        MissingExtraError: MLflow is not installed.
    """
    if settings.uri is None:
        yield NullTracker()
        return
    from medfm_rl.tracking.mlflow_tracker import MLflowTracker

    with MLflowTracker.open(settings, run_folder) as tracker:
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
