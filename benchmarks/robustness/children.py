"""Work in processes that are forked from this one, where everything is imported already."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

FORK = get_context("fork")


def start(work: Callable[[], None], log: Path) -> BaseProcess:
    """Starts a child that does some work and whose words go to a file.

    The parent must not have computed anything with torch: threads do not survive a fork.
    """
    process: BaseProcess = FORK.Process(target=_logged, args=(work, log))
    process.start()
    return process


def run(work: Callable[[], None], log: Path) -> float:
    """Does some work in a child and waits for it; returns the seconds that it took.

    Raises:
        RuntimeError: It failed; the message has the end of its words.
    """
    began = time.perf_counter()
    process = start(work, log)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a child ended with {process.exitcode}:\n{log.read_text(errors='replace')[-3000:]}")
    return time.perf_counter() - began


def kill_after(work: Callable[[], None], log: Path, seconds: float) -> bool:
    """Does some work in a child and kills it by SIGKILL; returns whether it was still at work."""
    process = start(work, log)
    process.join(seconds)
    was_at_work = process.exitcode is None
    process.kill()
    process.join()
    return was_at_work


def _logged(work: Callable[[], None], log: Path) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work()
