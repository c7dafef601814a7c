"""The process of a job: it runs the commands that anybody could run, and records how they ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from sqlalchemy import update

from medfm_rl.errors import UserError
from medfm_rl.service.database import Database
from medfm_rl.service.jobs import LOG, Job, Jobs
from medfm_rl.service.learning import commands_of
from medfm_rl.service.tables import JobRow, now_text

_STOPPED = 143
_ERROR = "Error: "


def main(store: str, name: str, folder: str) -> int:
    """Does a job.

    Args:
        store: The store.
        name: The job.
        folder: Where jobs write.

    Returns:
        The code to end with.
    """
    signal.signal(signal.SIGTERM, _stop)
    place = Path(folder) / name
    database = Database(store if "://" in store else Path(store))
    jobs = Jobs(database, store, Path(folder))
    job = jobs.job(name)
    try:
        error = _run(job, place, database, store)
    except UserError as problem:
        error = str(problem)
    with database.writing() as connection:
        table = JobRow.__table__
        state = "done" if error is None else "failed"
        # One that was stopped stays so.
        connection.execute(
            update(JobRow)
            .where(table.c.id == name, table.c.state == "running")
            .values(state=state, ended=now_text(), error=error)
        )
    jobs.start_next()
    return 0 if error is None else 1


def _run(job: Job, place: Path, database: Database, store: str) -> str | None:
    """Runs the commands of a job one after the other; why one failed."""
    for command in commands_of(job, place, database.store, store):
        sys.stderr.write(f"medfm-rl {' '.join(command)}\n")
        sys.stderr.flush()
        done = subprocess.run([sys.executable, "-m", "medfm_rl", *command], check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            return _said(place / LOG) or f"medfm-rl {command[0]} ended with code {done.returncode}; the log says why"
    return None


def _said(log: Path) -> str | None:
    """What a command said was wrong; None where it ended without a word."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return next((line.removeprefix(_ERROR) for line in reversed(lines) if line.startswith(_ERROR)), None)


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    sys.exit(_STOPPED)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
