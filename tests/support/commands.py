"""`medfm-rl` in processes of their own, forked from one that has imported everything.

To start Python and import torch and the package takes ten seconds of a processor, to fork takes none. Such a process
has its own memory, exit code, signals and locks as any other has; only what is said of the start itself needs
`python -m medfm_rl`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

_LONGEST_COMMAND = 200
_FORKING = multiprocessing.get_context("forkserver")


def start_command(
    *arguments: object, folder: Path, variables: Mapping[str, str] | None = None
) -> multiprocessing.process.BaseProcess:
    """Starts `medfm-rl ARGUMENTS` with one thread.

    Args:
        arguments: What follows `medfm-rl`.
        folder: Where it runs, and `stdout` and `stderr` become what it prints.
        variables: Environment variables besides those of the tests.
    """
    return _start(arguments, folder, folder, variables)


def run_command(*arguments: object, folder: Path, variables: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Runs `medfm-rl ARGUMENTS` in a folder with one thread, to its end."""
    with tempfile.TemporaryDirectory() as name:
        printed = Path(name)
        process = _start(arguments, folder, printed, variables)
        process.join(_LONGEST_COMMAND)
        if process.exitcode is None:
            process.kill()
            process.join()
        out, err = ((printed / stream).read_text(encoding="utf-8") for stream in ("stdout", "stderr"))
    assert process.exitcode is not None
    return CompletedProcess(["medfm-rl", *map(str, arguments)], process.exitcode, out, err)


def _start(
    arguments: tuple[object, ...], folder: Path, printed: Path, variables: Mapping[str, str] | None
) -> multiprocessing.process.BaseProcess:
    _ensure_started()
    process = _FORKING.Process(
        target=_run, args=([str(argument) for argument in arguments], folder, printed, dict(variables or {}))
    )
    process.start()
    return process


def _ensure_started() -> None:
    _FORKING.set_forkserver_preload(["support.preloaded"])
    # Python 3.11 forgets its path when it imports what is to be loaded before.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    with mock.patch.dict(os.environ, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()


def _run(arguments: list[str], folder: Path, printed: Path, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    os.chdir(folder)
    for number, stream in ((1, "stdout"), (2, "stderr")):
        with (printed / stream).open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["medfm-rl", *arguments]
    from medfm_rl import cli

    cli.main()
