"""The protocol that the pipeline logs to, and how a tracker is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from medfm_rl.settings import TrackingSettings

_RUN_ID_FILE = "mlflow_run_id"


@dataclass(frozen=True)
class DataRecord:
    """A data set without a name of a file, case or patient.

    Attributes:
        path: Where it lies, absolute.
        hash: SHA-256 over the names and contents of the files that were read.
        cases: How many.
        patients: How many.
    """

    path: str
    hash: str
    cases: int
    patients: int


class Tracker(Protocol):
    """Records a run."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Records settings and hashes; nested mappings become dotted names."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records numbers at a step."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Records a file."""

    def log_data(self, role: str, data: DataRecord) -> None:
        """Records a data set that the run reads, and what for."""

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

    def log_data(self, role: str, data: DataRecord) -> None:
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


def run_id_path(run_folder: Path) -> Path:
    """The file of a run folder that names its MLflow run."""
    return run_folder / _RUN_ID_FILE


def read_run_id(run_folder: Path) -> str | None:
    """The MLflow run of a run folder; None where it was not recorded."""
    path = run_id_path(run_folder)
    return path.read_text(encoding="utf-8").strip() if path.exists() else None
