"""Ray: its start on this machine or the way to a cluster, and processes there. Nothing else here imports it."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medfm_rl.errors import ConfigError, MissingExtraError
from medfm_rl.workflows.deploy.worker import WorkerError

_LOG = logging.getLogger(__name__)
CLUSTER = "ray://"
_CORES = 4
"""Of a worker in a cluster without GPUs: memory for a network comes with about so many."""
_SESSIONS = 3
"""As often is a cluster asked for a session before that is given up."""
_LONGEST_END = 10.0
"""Seconds that a worker may take to end once it has been told to."""
_OBJECT_STORE = 80 * 1024 * 1024
"""Bytes, about the least that Ray takes: what is sent are names and messages, not images."""
_LONGEST_FOLDER = 40
"""Characters: a socket in it has a name of at most 107 on Linux."""
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Beside other work Ray's workers would get a thirtieth of what this process gets.
    "RAY_worker_niceness": "0",
    # What Ray prints of a dead worker is said here, with the cases that it concerns.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",
}
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""The name that Ray has for listening at all addresses, on Linux too."""


class WorkerDiedError(Exception):
    """A worker's process is gone; the message is Ray's."""


@dataclass(frozen=True)
class Hire:
    """How workers are had.

    Attributes:
        count: How many.
        cpus: Cores for each, as Ray counts them.
        gpus: GPUs for each, or the share of one.
        threads: Threads for each.
    """

    count: int
    cpus: int
    gpus: float
    threads: int


class Cluster:
    """Ray on this machine, or a cluster that runs already.

    Args:
        where: How many workers on this machine, such as "4", or the address of a cluster, ray://HOST:PORT.
        device: Where the networks run: auto, cpu, cuda or mps.

    Raises:
        ConfigError: `where` is neither.
        MissingExtraError: Ray is not installed.
        WorkerError: No cluster answers.
    """

    def __init__(self, where: str, device: str) -> None:
        count = _count_of(where)
        _set_environment(alone=count is not None)
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("--workers needs Ray: pip install 'medfm-rl[ray]'") from error
        self._ray = ray
        self._folder: Path | None = None
        self._ours = not ray.is_initialized()
        self.name = "this machine" if count is not None else where
        if count is None:
            _connect(where)
            self.hire = _hire_there(ray.cluster_resources(), device)
        else:
            gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
            self.hire = _hire_here(count, gpus)
            if self._ours:
                self._start(count, gpus)
        self._worker = ray.remote(num_cpus=self.hire.cpus, num_gpus=self.hire.gpus, max_restarts=0)(_worker_class())

    def _start(self, count: int, gpus: int) -> None:
        # Its logs name files and cases: nobody else may read them, and they go with it.
        place = tempfile.gettempdir()
        self._folder = Path(tempfile.mkdtemp(prefix="medfm-", dir=place if len(place) < _LONGEST_FOLDER else "/tmp"))
        try:
            self._ray.init(
                address="local",
                num_cpus=count,
                num_gpus=gpus,
                object_store_memory=_OBJECT_STORE,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(self._folder),
            )
        except Exception as error:
            # Ray has no narrower one for a start that takes too long.
            self.close()
            raise WorkerError(
                f"--workers {count}: Ray does not start ({_in_a_line(error)}); repeat the command where this machine "
                "is less busy, or leave out --workers"
            ) from error

    def start_worker(self) -> Any:
        """A new worker; it has said nothing yet."""
        return self._worker.remote()

    def wait(self, pending: Sequence[Any], seconds: float | None) -> list[Any]:
        """Those of some answers that are there, after so many seconds at most; None: until there is one."""
        ready, _ = self._ray.wait(list(pending), num_returns=1, timeout=seconds)
        found: list[Any] = ready
        return found

    def answer(self, pending: Any) -> Any:
        """What a worker has answered.

        Raises:
            WorkerDiedError: It died before.
            Exception: What it raised itself.
        """
        try:
            return self._ray.get(pending)
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.WorkerCrashedError) as error:
            raise WorkerDiedError(str(error)) from error

    def kill(self, worker: Any, pending: Any = None, process: int | None = None) -> None:
        """Ends a worker, whatever it does.

        Args:
            worker: The worker.
            pending: What it is doing; it is waited for until Ray has given that up.
            process: Its number, where it is on this machine: it is waited for until it is gone.
        """
        self._ray.kill(worker, no_restart=True)
        if pending is not None:
            self._ray.wait([pending], timeout=_LONGEST_END)
        self.await_end(process)

    def await_end(self, process: int | None) -> None:
        """Waits until a process of this machine is gone, if not for ever.

        Ray gives up what a worker was doing before its process has ended, which may still be writing.

        Args:
            process: Its number; None where it is elsewhere, and cannot be waited for.
        """
        end = time.monotonic() + _LONGEST_END
        while process is not None and _is_there(process):
            if time.monotonic() > end:
                _LOG.warning("the worker of process %d was ended and is still there; it may still be writing", process)
                return
            time.sleep(0.01)

    def close(self) -> None:
        """Ends Ray where it was started here."""
        if self._ours:
            self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _is_there(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It is somebody else's.
    return True


def _worker_class() -> type:
    """What runs in a worker. It is sent as it stands here, so that it can say which version is installed there."""

    class Worker:
        def look(self, threads: int) -> dict[str, Any]:
            import os
            import platform

            # Read when NumPy, torch and ITK are imported, which nothing here has done yet.
            for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
                os.environ[f"{name}_NUM_THREADS"] = str(threads)
            os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
            found = {"host": platform.node(), "pid": os.getpid(), "medfm_rl": None}
            try:
                from medfm_rl.version import __version__
                from medfm_rl.workflows.deploy.worker import Servant
            except ImportError as error:
                return {**found, "problem": str(error)}
            self._servant = Servant()
            return {**found, "medfm_rl": __version__}

        def prepare(self, *order: Any) -> Any:
            return self._servant.prepare(*order)

        def handle(self, pieces: Any) -> Any:
            return self._servant.handle(pieces)

    return Worker


def _set_environment(alone: bool) -> None:
    """Says to Ray what it reads when it is imported, and to its processes: what is set already stays.

    Args:
        alone: Whether it is for this machine: then nobody else may reach it.
    """
    os.environ.update({name: value for name, value in _SETTINGS.items() if name not in os.environ})
    if not alone or _LOOPBACK in os.environ:
        return
    if "ray" in sys.modules:
        _LOG.warning(
            "Ray was imported before workers were asked for: it will listen at all addresses of this machine, and take "
            "whoever has its token; to have it listen here alone, set %s=0 before the import",
            _LOOPBACK,
        )
        return
    # The token is in the environment of this process and its children alone: Ray would keep one in a file otherwise.
    os.environ |= {_LOOPBACK: "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _in_a_line(error: Exception) -> str:
    """The beginning of a message of Ray, which may be pages long, and what a traceback in it ends with."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = lines[0].rstrip(".: ")
    return f"{said}: {lines[-1].strip()}" if any(line.startswith("Traceback") for line in lines) else said


def _count_of(where: str) -> int | None:
    """How many workers on this machine; None for a cluster.

    Raises:
        ConfigError: It says neither.
    """
    if where.startswith(CLUSTER):
        return None
    try:
        count = int(where)
    except ValueError as error:
        raise ConfigError(
            f"--workers {where}: must be a number of processes on this machine, such as 4, or the address of a Ray "
            "cluster, such as ray://HOST:10001"
        ) from error
    if count < 1:
        raise ConfigError(f"--workers {where}: must be 1 or more; without --workers this process does the work itself")
    return count


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _hire_here(count: int, gpus: int) -> Hire:
    cores = _cores()
    if count > cores:
        _LOG.warning("%d workers share %d cores, and are no faster than %d", count, cores, cores)
    return Hire(count, 1, _share(count, gpus), max(1, cores // count))


def _hire_there(resources: Mapping[str, float], device: str) -> Hire:
    """As many workers as a cluster has GPUs, or one for every four of its cores."""
    cores = max(1, int(resources.get("CPU", 0)))
    gpus = int(resources.get("GPU", 0)) if device in ("auto", "cuda") else 0
    if gpus:
        each = max(1, min(_CORES, cores // gpus))
        return Hire(gpus, each, 1.0, each)
    each = min(_CORES, cores)
    return Hire(cores // each, each, 0.0, each)


def _share(count: int, gpus: int) -> float:
    """Of a GPU, for each of some workers that have to find room on some GPUs; a worker is on one of them."""
    return 0.0 if gpus == 0 else min(1.0, 1 / -(-count // gpus))


def _connect(address: str) -> None:
    """Connects to a cluster.

    Raises:
        MissingExtraError: What Ray needs for that is not installed.
        WorkerError: Nothing answers, or not in our language.
    """
    try:
        import grpc  # noqa: F401 -- Ray says no more than that a module is missing
    except ImportError as error:
        raise MissingExtraError(f"--workers {address} needs Ray's client: pip install 'medfm-rl[ray]'") from error
    try:
        _begin_session(address)
    except (OSError, RuntimeError, ValueError) as error:
        raise WorkerError(
            f"--workers {address}: no Ray cluster answers there that this process can use ({_in_a_line(error)}); it is "
            "started by `ray start --head --ray-client-server-port 10001`, with the same versions of Python and Ray as "
            "here; one that asks for a token wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here"
        ) from error


def _begin_session(address: str) -> None:
    """Connects to a cluster, once more where its head has failed to start the process of a session.

    About one such process in fourteen dies as it is forked, by a race in gRPC:
    https://github.com/ray-project/ray/issues/63202

    Raises:
        OSError: Nothing answers, or no session can be started.
        RuntimeError: Versions differ.
        ValueError: It is no address.
    """
    import ray

    for left in reversed(range(_SESSIONS)):
        try:
            ray.init(address, log_to_driver=False, configure_logging=False)
            return
        except ConnectionAbortedError as error:
            if not left:
                raise
            _LOG.warning("%s has not started a session (%s); trying again", address, _in_a_line(error))
