"""MLflow. The only module that imports it."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from medfm_rl.data.files import write_text
from medfm_rl.errors import MissingExtraError, TrackingError
from medfm_rl.settings import TrackingSettings

_LOG = logging.getLogger(__name__)
_RUN_ID_FILE = "mlflow_run_id"
_LONGEST_PARAM = 500
_CONNECT_SECONDS = 5
_PACKAGES = ("medfm-rl", "torch", "monai", "stable-baselines3", "gymnasium", "numpy", "SimpleITK", "mlflow")


class MLflowTracker:
    """Records one MLflow run and runs within it.

    A store that does not answer when the run starts is an error. One that stops answering later costs the records and a
    warning, not the run.

    Args:
        client: MLflow's client.
        experiment_id: Where runs belong.
        run_id: The run to record to.
    """

    def __init__(self, client: Any, experiment_id: str, run_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self.run_id = run_id
        self._lost = False

    @classmethod
    @contextmanager
    def open(cls, settings: TrackingSettings, run_folder: Path) -> Iterator[MLflowTracker]:
        """Starts a run, or goes on with the one that the run folder names; its end says how the block ended.

        Raises:
            TrackingError: The store does not answer.
            MissingExtraError: MLflow is not installed.
        """
        # No usage statistics leave this machine.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise MissingExtraError(
                "MLflow is not installed: pip install 'medfm-rl[tracking]', or set tracking.uri to null"
            ) from error
        uri, artifacts = _store(settings, run_folder)
        _check_reachable(uri)
        try:
            client = MlflowClient(tracking_uri=uri)
            experiment = client.get_experiment_by_name(settings.experiment)
            experiment_id = (
                experiment.experiment_id
                if experiment
                else client.create_experiment(settings.experiment, artifact_location=artifacts)
            )
            tracker = cls(client, experiment_id, _resume_or_create(client, experiment_id, run_folder))
        except (MlflowException, OSError) as error:
            raise TrackingError(f"tracking.uri {uri}: MLflow refuses ({_first_line(error)})") from error
        tracker.log_params({"environment": _environment()})
        with tracker._ended_as_the_block(tracker.run_id):
            yield tracker

    def log_params(self, params: Mapping[str, object]) -> None:
        """Records settings and hashes; nested mappings become dotted names, long values are cut."""
        for name, value in _flatten(params):
            self._attempt(lambda name=name, value=value: self._client.log_param(self.run_id, name, value))  # type: ignore[misc]

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records numbers at a step."""
        for name, value in metrics.items():
            self._attempt(lambda name=name, value=value: self._client.log_metric(self.run_id, name, value, step=step))  # type: ignore[misc]

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Records a file."""
        self._attempt(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    @contextmanager
    def child(self, name: str) -> Iterator[MLflowTracker]:
        """A run within this run."""
        created: list[Any] = []
        tags = {"mlflow.parentRunId": self.run_id}
        self._attempt(lambda: created.append(self._client.create_run(self._experiment_id, run_name=name, tags=tags)))
        run_id = created[0].info.run_id if created else self.run_id
        tracker = MLflowTracker(self._client, self._experiment_id, run_id)
        tracker._lost = self._lost
        if not created:
            yield tracker
            return
        with tracker._ended_as_the_block(run_id):
            yield tracker

    @contextmanager
    def _ended_as_the_block(self, run_id: str) -> Iterator[None]:
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self._attempt(lambda: self._client.set_terminated(run_id, status))

    def _attempt(self, call: Callable[[], object]) -> None:
        from mlflow.exceptions import MlflowException

        if self._lost:
            return
        try:
            call()
        except (MlflowException, OSError) as error:
            self._lost = True
            _LOG.warning("MLflow stopped answering (%s); the run goes on without records", _first_line(error))


def _store(settings: TrackingSettings, run_folder: Path) -> tuple[str, str | None]:
    """The tracking URI, and where artifacts go when the store is our own."""
    if settings.uri != "auto":
        return str(settings.uri), None
    parent = run_folder.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{parent / 'mlflow.db'}", (parent / "mlflow-artifacts").as_uri()


def _check_reachable(uri: str) -> None:
    """MLflow itself would try for minutes."""
    address = urlparse(uri)
    if address.scheme not in ("http", "https"):
        return
    try:
        with socket.create_connection(
            (address.hostname or "", address.port or (443 if address.scheme == "https" else 80)), _CONNECT_SECONDS
        ) as connection:
            if address.scheme == "http":
                connection.settimeout(_CONNECT_SECONDS)
                connection.sendall(f"GET /health HTTP/1.0\r\nHost: {address.hostname}\r\n\r\n".encode())
                if not connection.recv(1):
                    raise OSError("it closed the connection")
    except OSError as error:
        raise TrackingError(
            f"tracking.uri {uri}: the MLflow server does not answer ({error}); start it, correct the address, "
            "or set tracking.uri to null to run without records"
        ) from error


def _resume_or_create(client: Any, experiment_id: str, run_folder: Path) -> str:
    from mlflow.exceptions import MlflowException

    path = run_folder / _RUN_ID_FILE
    if path.exists():
        run_id = path.read_text().strip()
        try:
            client.update_run(run_id, status="RUNNING")
            return run_id
        except MlflowException:
            _LOG.warning("MLflow does not know run %s of %s; a new one is started", run_id, run_folder)
    run_id = str(client.create_run(experiment_id, run_name=run_folder.name).info.run_id)
    write_text(path, run_id + "\n")
    return run_id


def _environment() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["python"] = platform.python_version()
    versions["git_commit"] = _git_commit()
    return versions


def _git_commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"


def _flatten(params: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            text = str(value)
            yield f"{prefix}{name}", text if len(text) <= _LONGEST_PARAM else text[: _LONGEST_PARAM - 3] + "..."


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
