"""The protocol that workflows log to, and where a run keeps the name of its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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


def run_id_path(run_folder: Path) -> Path:
    """The file of a run folder that names its MLflow run."""
    return run_folder / _RUN_ID_FILE


def read_run_id(run_folder: Path) -> str | None:
    """The MLflow run of a run folder; None where it was not recorded."""
    path = run_id_path(run_folder)
    return path.read_text(encoding="utf-8").strip() if path.exists() else None
