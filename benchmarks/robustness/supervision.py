"""Inputs judged in a worker process, which is started again when it dies, or takes too long or too much memory."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.robustness.children import FORK
from benchmarks.robustness.kind import ABORT, HANG, Kind, Outcome, judge

LIMIT_S = 20.0
"""Seconds after which an input counts as a hang; a sound one takes milliseconds."""
LIMIT_MIB = 400
"""Memory by which a process may grow on an input of a few KiB."""
_ADDRESS_SPACE = 6 << 30
"""Bytes that a worker may ask for beyond what it has; an input that wants more must not take the machine along."""


@dataclass(frozen=True)
class Job:
    """An input by its kind and number."""

    kind: Kind
    number: int


def judge_all(jobs: Sequence[Job], progress: Callable[[int, int], None]) -> Iterator[Outcome]:
    """The outcome of each job; one that kills its worker, or hangs, is named by it."""
    # In the parent: each worker would take seconds for it.
    import_module("monai.networks.nets")
    kinds = {job.kind.name: job.kind for job in jobs}
    worker = _Worker(kinds)
    try:
        for done, job in enumerate(jobs, 1):
            found = worker.judge(job)
            if found.result in (ABORT, HANG):
                worker.end()
                worker = _Worker(kinds)
            yield found
            progress(done, len(jobs))
    finally:
        worker.end()


class _Worker:
    """A forked process that judges one input after another. Kinds are handed over by the fork, jobs by a pipe."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="medfm-rl-robustness-")
        self.ours, theirs = FORK.Pipe()
        self.process = FORK.Process(target=_serve, args=(theirs, kinds, Path(self.place.name)), daemon=True)
        self.process.start()
        theirs.close()

    def judge(self, job: Job) -> Outcome:
        def lost(result: str, detail: str) -> Outcome:
            return Outcome(job.kind.name, job.number, (), result, detail)

        try:
            self.ours.send((job.kind.name, job.number))
            if not self.ours.poll(LIMIT_S):
                return lost(HANG, f"more than {LIMIT_S:g} s")
            found, grown = self.ours.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            return lost(ABORT, signal.Signals(-code).name if code < 0 else f"exit code {code}")
        outcome: Outcome = found
        if grown > LIMIT_MIB:
            return lost(HANG, f"{grown} MiB of memory; {outcome.result}: {outcome.detail}")
        return outcome

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.ours.close()
        self.place.cleanup()


def _serve(pipe: Connection, kinds: Mapping[str, Kind], place: Path) -> None:
    warnings.simplefilter("ignore")
    # Libraries in C write what they think of an input to the error output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    logging.disable(logging.CRITICAL)
    limit = _used_address_space() + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        try:
            name, number = pipe.recv()
        except EOFError:
            return
        folder = place / "input"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        before = _peak_mib()
        outcome = judge(kinds[name], number, folder)
        pipe.send((outcome, _peak_mib() - before))


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _used_address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
