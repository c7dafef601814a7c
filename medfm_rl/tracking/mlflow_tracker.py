"""Runs in MLflow."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import ParseResult, urlparse

from medfm_rl.data.files import write_text
from medfm_rl.data.locks import in_turn
from medfm_rl.errors import MissingExtraError, TrackingError
from medfm_rl.settings import TrackingSettings
from medfm_rl.tracking.environment import environment, stay_quiet
from medfm_rl.tracking.tracker import DataRecord, read_run_id, run_id_path

_LOG = logging.getLogger(__name__)
_LONGEST_PARAM = 500
_LONGEST_NAME = 250
_FORBIDDEN = re.compile(r"[^/\w.\- :]")
"""Characters that MLflow takes in no name of a setting or number; names of structures have such."""
_LONGEST_DIGEST = 36
_CONNECT_SECONDS = 5
_LOCKED_SECONDS = 60
"""How long SQLite waits for other processes that write into the same data base."""
_WITHOUT_SCHEME = ("auto", "databricks", "databricks-uc")
_NOT_INSTALLED = "MLflow is not installed: pip install 'medfm-rl[tracking]', or set tracking.uri to null"


@dataclass
class _Store:
    """The things that a run shares with the runs within it.

    Attributes:
        client: MLflow's client.
        experiment_id: Where the runs belong.
        lost: Whether it stopped answering; it is not asked again.
    """

    client: Any
    experiment_id: str
    lost: bool = False

    def attempt(self, call: Callable[[], object]) -> None:
        """Calls the store; where it refuses a record, warns; where it does not answer, warns once and goes on."""
        if self.lost:
            return
        try:
            call()
        except _failures() as error:
            if _refuses_a_value(error):
                _LOG.warning("MLflow does not take a record (%s); the run goes on without it", _first_line(error))
                return
            self.lost = True
            _LOG.warning("MLflow stopped answering (%s); the run goes on without records", _first_line(error))


class MLflowTracker:
    """Records one MLflow run and runs within it.

    A store that does not answer when the run starts is an error. One that stops answering later costs the records and a
    warning, not the run.

    Args:
        store: Where to record.
        run_id: The run to record to.
    """

    def __init__(self, store: _Store, run_id: str) -> None:
        self._store = store
        self.run_id = run_id

    @classmethod
    @contextmanager
    def open(cls, settings: TrackingSettings, run_folder: Path, name: str | None = None) -> Iterator[MLflowTracker]:
        """Starts a run, or goes on with the one that the run folder names; its end says how the block ended.

        Raises:
            TrackingError: The store does not answer.
            MissingExtraError: MLflow is not installed.
        """
        called = run_folder.name if name is None else name
        with cls._open(
            settings, run_folder, lambda client, at: _resume_or_create(client, at, run_folder, called)
        ) as tracker:
            yield tracker

    @classmethod
    @contextmanager
    def open_within(cls, settings: TrackingSettings, run_folder: Path, name: str) -> Iterator[MLflowTracker]:
        """Starts a new run within that of a run folder, which stays as it is, however the block ends.

        Raises:
            TrackingError: The store does not answer, or does not know the run of the folder.
            MissingExtraError: MLflow is not installed.
        """
        parent = read_run_id(run_folder)
        if settings.uri is None or parent is None:
            raise TrackingError(
                f"{run_folder}: this run was not recorded in MLflow, and nothing can be recorded within it; leave out "
                "--track"
            )
        store = _own_store(run_folder)
        if settings.uri == "auto" and not store.exists():
            raise TrackingError(
                f"{store}: is not there, and the records of {run_folder.name} are in it: the run was moved without it; "
                "put it beside the run, or leave out --track"
            )
        with cls._open(settings, run_folder, lambda client, at: _create_within(client, at, parent, name)) as tracker:
            yield tracker

    @classmethod
    @contextmanager
    def _open(
        cls, settings: TrackingSettings, run_folder: Path, choose: Callable[[Any, str], str]
    ) -> Iterator[MLflowTracker]:
        stay_quiet()
        # By default a server that went away costs minutes at every call.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise MissingExtraError(_NOT_INSTALLED) from error
        uri, artifacts = _location(settings, run_folder)
        require_reachable(uri)
        # Of several processes that make the same data base at once, each would meet tables that are there already.
        making = in_turn(_own_store(run_folder)) if settings.uri == "auto" else nullcontext()
        try:
            with making:
                client = MlflowClient(tracking_uri=uri)
                experiment = client.get_experiment_by_name(settings.experiment)
                experiment_id = (
                    experiment.experiment_id
                    if experiment
                    else client.create_experiment(settings.experiment, artifact_location=artifacts)
                )
                tracker = cls(_Store(client, experiment_id), choose(client, experiment_id))
        except _failures() as error:
            raise TrackingError(f"tracking.uri {uri}: MLflow refuses ({_first_line(error)})") from error
        tracker.log_params({"environment": environment()})
        with tracker._ended_as_the_block():
            yield tracker

    def log_params(self, params: Mapping[str, object]) -> None:
        """Records settings and hashes; nested mappings become dotted names, long values are cut.

        What MLflow takes in no name becomes an underscore.
        """
        for name, value in _flatten(params):
            self._store.attempt(lambda name=name, value=value: self._log_param(name, value))  # type: ignore[misc]

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records numbers at a step; their names are made ones that MLflow takes, as those of settings are."""
        for name, value in metrics.items():
            self._store.attempt(lambda name=name, value=value: self._log_metric(name, value, step))  # type: ignore[misc]

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Records a file."""
        self._store.attempt(lambda: self._store.client.log_artifact(self.run_id, str(path), folder))

    def log_data(self, role: str, data: DataRecord) -> None:
        """Records a data set as params `data.ROLE.*` and as one of MLflow's own data sets, whose digest is cut."""
        self.log_params({"data": {role: asdict(data)}})
        self._store.attempt(lambda: self._log_input(role, data))

    @contextmanager
    def child(self, name: str) -> Iterator[MLflowTracker]:
        """A run within this run; the one of that name where there is one, so that a resumed run goes on with it."""
        found: list[str] = []
        self._store.attempt(lambda: found.append(self._find_child(name) or self._create_child(name)))
        if not found:
            yield self
            return
        tracker = MLflowTracker(self._store, found[0])
        with tracker._ended_as_the_block():
            yield tracker

    def _log_param(self, name: str, value: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._store.client.log_param(self.run_id, _accepted(name), value)
        except MlflowException as error:
            if not _refuses_a_value(error) or "Changing param" not in str(error):
                raise
            # A run that is resumed with another version of a package, for instance.
            _LOG.warning("%s was recorded with another value before, which MLflow keeps; now it is %s", name, value)

    def _log_metric(self, name: str, value: float, step: int) -> None:
        self._store.client.log_metric(self.run_id, _accepted(name), value, step=step)

    def _log_input(self, role: str, data: DataRecord) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=role,
            digest=data.hash[:_LONGEST_DIGEST],
            source_type="local",
            source=json.dumps({"uri": Path(data.path).as_uri()}),
            profile=json.dumps({"sha256": data.hash, "cases": data.cases, "patients": data.patients}),
        )
        tags = [InputTag("mlflow.data.context", role)]
        self._store.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])

    def _find_child(self, name: str) -> str | None:
        query = f"tags.mlflow.parentRunId = '{self.run_id}' and attributes.run_name = '{name}'"
        runs = self._store.client.search_runs([self._store.experiment_id], query, max_results=1)
        if not runs:
            return None
        self._store.client.update_run(runs[0].info.run_id, status="RUNNING")
        return str(runs[0].info.run_id)

    def _create_child(self, name: str) -> str:
        return _create_within(self._store.client, self._store.experiment_id, self.run_id, name)

    @contextmanager
    def _ended_as_the_block(self) -> Iterator[None]:
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self._store.attempt(lambda: self._store.client.set_terminated(self.run_id, status))


def _failures() -> tuple[type[Exception], ...]:
    """The errors of MLflow where its store fails; a file that is no data base gets past its own exception."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def _refuses_a_value(error: Exception) -> bool:
    """Whether the store answered, and only does not take what it was given."""
    return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"


def _accepted(name: str) -> str:
    """A name that MLflow takes: an underscore for every character that it does not, cut where it is too long."""
    return _FORBIDDEN.sub("_", name)[:_LONGEST_NAME]


def _location(settings: TrackingSettings, run_folder: Path) -> tuple[str, str | None]:
    """The tracking URI, and where artifacts go when the store is our own."""
    if settings.uri != "auto":
        return str(settings.uri), None
    store = _own_store(run_folder)
    store.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{store}?timeout={_LOCKED_SECONDS}", (store.parent / "mlflow-artifacts").as_uri()


def _own_store(run_folder: Path) -> Path:
    """The data base beside a run folder."""
    return run_folder.resolve().parent / "mlflow.db"


def require_reachable(uri: str) -> None:
    """Raises TrackingError where a URI is none or its server does not answer; MLflow itself would try for minutes.

    Raises:
        TrackingError: As said.
        MissingExtraError: MLflow is not installed.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise MissingExtraError(_NOT_INSTALLED)
    if uri in _WITHOUT_SCHEME:
        return
    # MLflow takes what has no scheme for the name of a folder.
    if "://" not in uri and not uri.startswith("file:"):
        raise TrackingError(
            f"tracking.uri {uri}: does not say what it is; write http://{uri} for a server, sqlite:///{uri} for a data "
            "base in a file, auto for one beside the run, or null to run without records"
        )
    address = urlparse(uri)
    if address.scheme not in ("http", "https"):
        return
    try:
        with _connect(address) as connection:
            connection.sendall(f"GET /health HTTP/1.0\r\nHost: {address.hostname}\r\n\r\n".encode())
            if not connection.recv(1):
                raise OSError("it closed the connection")
    except OSError as error:
        raise TrackingError(
            f"tracking.uri {uri}: the MLflow server does not answer ({error}); start it, correct the address, "
            "or set tracking.uri to null (or leave out --track) to run without records"
        ) from error


def _connect(address: ParseResult) -> socket.socket:
    """A connection to a server, each step of which takes seconds at most.

    Of one by https it is asked whether it speaks at all; whether its certificate is right is MLflow's to say.
    """
    encrypted, host = address.scheme == "https", address.hostname or ""
    plain = socket.create_connection((host, address.port or (443 if encrypted else 80)), _CONNECT_SECONDS)
    if not encrypted:
        return plain
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except OSError:
        plain.close()
        raise


def _resume_or_create(client: Any, experiment_id: str, run_folder: Path, name: str) -> str:
    from mlflow.exceptions import MlflowException

    run_id = read_run_id(run_folder)
    if run_id is not None:
        try:
            client.update_run(run_id, status="RUNNING")
            return run_id
        except MlflowException:
            _LOG.warning("MLflow does not know run %s of %s; a new one is started", run_id, run_folder)
    run_id = str(client.create_run(experiment_id, run_name=name).info.run_id)
    write_text(run_id_path(run_folder), run_id + "\n")
    return run_id


def _create_within(client: Any, experiment_id: str, parent: str, name: str) -> str:
    # Raises where there is no such run: nobody would find a run within it.
    client.get_run(parent)
    return str(client.create_run(experiment_id, run_name=name, tags={"mlflow.parentRunId": parent}).info.run_id)


def _flatten(params: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            text = str(value)
            yield f"{prefix}{name}", text if len(text) <= _LONGEST_PARAM else text[: _LONGEST_PARAM - 3] + "..."


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
