"""Starts a command in several processes on this machine, and ends all of them when one fails.

They find each other as those of torchrun do, which starts the same command on several machines. What it does otherwise:
the first process has the terminal, and of a failure there is one message.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from medfm_rl.errors import ConfigError

RENDEZVOUS: Final = "MEDFM_RL_RENDEZVOUS"
"""The file by which the processes find each other; who has it in his environment is supervised."""
PEER_LOST: Final = 75
"""What a process ends with that has lost another one: that one is at fault."""
_POLL: Final = 0.1
_GRACE: Final = 3.0
"""Seconds after the first failure in which it is seen who else failed, and those that the others have after the first
has ended."""
_FAREWELL: Final = 15.0
"""Seconds that a process has to end, once it has been asked to."""
_SHOWN: Final = 20_000
"""Characters of what a process said last."""


@dataclass(frozen=True)
class Failure:
    """The process over which the others were ended.

    Attributes:
        rank: Its place, counted from 0; the first has shown on the terminal what it had to say.
        size: How many there were.
        pid: Its number in the system.
        code: What it ended with; negative for a signal.
        said: What it wrote to standard error; empty for the first.
    """

    rank: int
    size: int
    pid: int
    code: int
    said: str

    @property
    def signal(self) -> str | None:
        """The name of the signal that ended it."""
        return None if self.code >= 0 else signal.Signals(-self.code).name


def processes_here(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes torchrun or `--devices` has started beside and with this one; 1 elsewhere.

    Raises:
        ConfigError: WORLD_SIZE is no number.
    """
    text = environment.get("WORLD_SIZE", "1")
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"WORLD_SIZE is {text!r} and must be a number of processes; unset it, or use torchrun")
    return int(text)


def is_supervised(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether another process of this package has started this one, and says what became of it."""
    return RENDEZVOUS in environment


def end_with_supervisor() -> None:
    """Ends this process when the one that started it has ended, however that ended: it holds the other end of a pipe.

    And has it interrupted as from a terminal: a job in the background ignores that, and its children would too.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch() -> None:
        # Not by sys.stdin, whose lock Python wants when it ends.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch-supervisor", daemon=True).start()


def run_side_by_side(command: Sequence[str], count: int) -> Failure | None:
    """Runs a command in so many processes, which share its work, until all have ended.

    The first has the output of this process; the others are heard where they fail. None outlives this one.

    Args:
        command: A program and its arguments.
        count: How many processes.

    Returns:
        The process that failed first, where one did; the others were ended then.
    """
    with tempfile.TemporaryDirectory(prefix="medfm-rl-") as folder:
        processes: list[subprocess.Popen[bytes]] = []
        said = [Path(folder, f"said-{rank}") for rank in range(count)]
        try:
            for rank in range(count):
                with said[rank].open("wb") as output:
                    processes.append(_start(command, rank, count, Path(folder, "rendezvous"), output))
            failed = _wait(processes)
        finally:
            _end(processes)
        if failed is None:
            return None
        process = processes[failed]
        last = said[failed].read_text(encoding="utf-8", errors="replace")[-_SHOWN:].strip()
        return Failure(failed, count, process.pid, process.returncode, last)


def _start(command: Sequence[str], rank: int, count: int, rendezvous: Path, said: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        RENDEZVOUS: str(rendezvous),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    # All threads of all processes together are as many as there are cores.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    if loopback := _loopback():
        # They listen on this machine alone.
        environment.setdefault("GLOO_SOCKET_IFNAME", loopback)
    output = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": said}
    # A session of its own: Ctrl-C reaches this process, which asks each of them once.
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True, **output)  # type: ignore[call-overload, no-any-return]


def _loopback() -> str | None:
    """The network interface that reaches this machine alone, where it has one of the usual names."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    return next((name for name in ("lo", "lo0") if name in names), None)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Waits until all have ended well, or one has not; returns that one."""
    since: float | None = None
    while True:
        codes = [process.poll() for process in processes]
        if since is None and any(codes):
            since = time.monotonic()
        failed = _at_fault(codes, since is None or time.monotonic() - since < _GRACE)
        if failed is not None or None not in codes:
            return failed
        time.sleep(_POLL)


def _at_fault(codes: Sequence[int | None], patient: bool) -> int | None:
    """The process over which the others are to be ended; None where there is none yet.

    Args:
        codes: What each has ended with; None where it has not.
        patient: Whether one that may have more to say is waited for: the first, which tells what all find.
    """
    failed = [rank for rank, code in enumerate(codes) if code]
    killed = [rank for rank in failed if (codes[rank] or 0) < 0]
    told = [rank for rank in failed if codes[rank] != PEER_LOST]
    settled = None not in codes or not patient
    if killed:
        return killed[0]
    if told and (settled or codes[0] is not None):
        return told[0]
    return failed[0] if failed and settled else None


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends those that are still there: as by Ctrl-C, and those that do not listen at once."""
    try:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        # The others wait for the first, and end with it.
        _await(processes[:1], _FAREWELL)
        _await(processes[1:], _GRACE)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _await(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Waits until all have ended, or so long."""
    until = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        time.sleep(_POLL)


def this_program(arguments: Sequence[str]) -> list[str]:
    """The command of this package with these arguments, as another process runs it."""
    return [sys.executable, "-m", "medfm_rl", *arguments]
