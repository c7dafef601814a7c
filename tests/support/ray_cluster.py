"""A Ray cluster that somebody else has started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def running_cluster(seconds: float) -> Iterator[str]:
    """The address of a cluster of one core on this machine, started as an administrator would and ended afterwards.

    Args:
        seconds: How long its start may take.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # A socket within has a name of at most 107 characters.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    options = {
        "ray-client-server-port": port,
        "port": 0,
        "node-ip-address": "127.0.0.1",
        "num-cpus": 1,
        "object-store-memory": 80 * 1024 * 1024,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "include-dashboard": "false",
        "temp-dir": folder,
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--{name}={value}" for name, value in options.items()]
    # With it, some of the processes that a head forks for sessions die: https://github.com/ray-project/ray/issues/63202
    environment = {**without_tokens(), "GRPC_ENABLE_FORK_SUPPORT": "0"}
    quiet = subprocess.DEVNULL
    head = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment, start_new_session=True)
    try:
        _wait_for(head, port, seconds)
        yield f"ray://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def without_tokens() -> dict[str, str]:
    """The environment for a cluster that asks for no token, and for those who use it.

    Workers of this machine put theirs into the environment, and Ray finds what others left in the home folder.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    return {**kept, "RAY_AUTH_MODE": "disabled"}


def _wait_for(head: subprocess.Popen[bytes], port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert head.poll() is None, "ray start has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise TimeoutError(f"ray start does not answer within {seconds:.0f} s")
