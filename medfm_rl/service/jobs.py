"""Long work: each job a process of its own that no restart of the service ends, recorded in the database.

No queue library keeps it, on purpose: a worker of one ends with the service or is a service of its own to be watched,
and what has to be kept of a job (who started it, its state, its process) is a row. One job runs at a time; when it ends
it starts the next that waits.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Connection

from medfm_rl.service.database import Database, add_note
from medfm_rl.service.errors import DeskError, not_found
from medfm_rl.service.tables import JobRow, now_text

Kind = Literal["adapt", "compare"]
State = Literal["waiting", "running", "done", "failed", "stopped"]
LOG, REPORT = "log.txt", "report.html"
_STEP = re.compile(r"^(.+): (\d+) of (\d+)")
_LAST_BYTES = 64 << 10
_MOST_LINES = 100


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        id: Its name, and that of its folder.
        kind: What is done.
        arguments: With what.
        reviewer: Who started it.
        state: How it stands.
        process: Which process does it: its number and when it started, as the system has it.
        created: When it was asked for, ISO 8601.
        started: When it began.
        ended: When it ended.
        error: Why it failed.
    """

    id: str
    kind: Kind
    arguments: Mapping[str, Any]
    reviewer: str
    state: State
    process: str | None
    created: str
    started: str | None
    ended: str | None
    error: str | None

    @classmethod
    def of_row(cls, row: Any) -> Job:
        """The job of a row of the table."""
        fields = {name: row[name] for name in cls.__dataclass_fields__ if name != "arguments"}
        return cls(arguments=json.loads(row["arguments"]), **fields)


@final
class Jobs:
    """The jobs of a desk.

    Args:
        database: Where they are recorded.
        store: How the store is named to a process.
        folder: Where they write, each into a folder of its own.
    """

    def __init__(self, database: Database, store: Path | str, folder: Path) -> None:
        self._database = database
        self._store = store
        self.folder = folder.absolute()

    def add(self, kind: Kind, arguments: Mapping[str, Any], reviewer: str, key_digest: str | None = None) -> Job:
        """Adds a job, and starts it unless another one runs. The same key gives the same job again."""
        name = uuid.uuid4().hex[:16]
        table = JobRow.__table__
        with self._database.writing() as connection:
            if key_digest is not None:
                known = connection.execute(select(table).where(table.c.key_digest == key_digest)).mappings().first()
                if known is not None:
                    return Job.of_row(known)
            row = {
                "id": name,
                "kind": kind,
                "arguments": json.dumps(dict(arguments)),
                "reviewer": reviewer,
                "state": "waiting",
                "created": now_text(),
                "key_digest": key_digest,
            }
            connection.execute(insert(JobRow).values(**row))
            add_note(connection, reviewer, f"start job {kind}", job=name)
        self.start_next()
        return self.job(name)

    def all(self) -> list[Job]:
        """All jobs, the newest first; one whose process died without a word has failed."""
        self._bury()
        table = JobRow.__table__
        with self._database.reading() as connection:
            rows = connection.execute(select(table).order_by(table.c.number.desc())).mappings()
            return [Job.of_row(row) for row in rows]

    def job(self, name: str) -> Job:
        """A job.

        Raises:
            DeskError: There is none.
        """
        found = next((job for job in self.all() if job.id == name), None)
        if found is None:
            raise not_found("job", "see GET /api/v1/jobs")
        return found

    def stop(self, name: str, reviewer: str) -> Job:
        """Ends a job that waits or runs.

        Raises:
            DeskError: There is none, or it has ended.
        """
        found = self.job(name)
        if found.state not in ("waiting", "running"):
            raise DeskError(409, "ended", f"job {name} has ended already ({found.state})", "see GET /api/v1/jobs")
        with self._database.writing() as connection:
            table = JobRow.__table__
            changed = connection.execute(
                update(JobRow)
                .where(table.c.id == name, table.c.state.in_(("waiting", "running")))
                .values(state="stopped", ended=now_text())
            )
            if changed.rowcount:
                add_note(connection, reviewer, "stop job", job=name)
        if found.process is not None and is_alive(found.process):
            # Its group: the process that the job started ends too.
            with suppress(ProcessLookupError):
                os.killpg(int(found.process.partition(":")[0]), signal.SIGTERM)
        self.start_next()
        return self.job(name)

    def start_next(self) -> None:
        """Starts the job that waits longest, unless one runs."""
        self._bury()
        with self._database.writing() as connection:
            table = JobRow.__table__
            if connection.execute(select(table.c.id).where(table.c.state == "running")).first() is not None:
                return
            row = (
                connection.execute(select(table).where(table.c.state == "waiting").order_by(table.c.number).limit(1))
                .mappings()
                .first()
            )
            if row is None:
                return
            process = self._start(Job.of_row(row))
            connection.execute(
                update(JobRow)
                .where(table.c.id == row["id"])
                .values(state="running", started=now_text(), process=process)
            )

    def log(self, job: Job) -> list[str]:
        """The last lines that a job told."""
        path = self.folder / job.id / LOG
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LAST_BYTES))
            return file.read().decode(errors="replace").splitlines()[-_MOST_LINES:]

    def _start(self, job: Job) -> str:
        place = self.folder / job.id
        place.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "medfm_rl.service.job_process", str(self._store), job.id, str(self.folder)]
        writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        number = os.posix_spawn(
            sys.executable,
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(place / LOG), writing, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            # A session of its own: what ends the service, or its terminal, does not end the job.
            setsid=True,
        )
        return f"{number}:{_birth(number)}"

    def _bury(self) -> None:
        """Records of jobs whose process is gone that they failed."""
        table = JobRow.__table__
        with self._database.reading() as connection:
            running = connection.execute(select(table).where(table.c.state == "running")).mappings().all()
        dead = [row["id"] for row in running if not is_alive(row["process"])]
        if not dead:
            return
        with self._database.writing() as connection:
            for name in dead:
                bury(connection, name)


def bury(connection: Connection, name: str) -> None:
    """Records that a job ended without saying how, unless it has said it by now."""
    table = JobRow.__table__
    connection.execute(
        update(JobRow)
        .where(table.c.id == name, table.c.state == "running")
        .values(
            state="failed",
            ended=now_text(),
            error="its process ended without a word: it was killed, or the machine went down; start it again, and it "
            "goes on with what is finished",
        )
    )


def progress_of(lines: list[str]) -> tuple[str, float | None]:
    """The step that a job is at, and how far it is with it, by what it told last."""
    for line in reversed(lines):
        found = _STEP.match(line)
        if found is not None and int(found[3]) > 0:
            return found[1], min(1.0, int(found[2]) / int(found[3]))
    return (lines[-1] if lines else ""), None


def is_alive(process: str) -> bool:
    """Whether a process still runs: that one, and not another that has its number by now."""
    number, _, birth = process.partition(":")
    # One of our own that has ended stays until somebody asks how.
    with suppress(ChildProcessError):
        os.waitpid(int(number), os.WNOHANG)
    return birth != "" and _birth(int(number)) == birth


def _birth(number: int) -> str:
    """When a process was started, in ticks since the machine was; empty where there is none.

    Where the system does not say it, a process of that number is taken for the one that is meant.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return ""
        return "unknown"
    try:
        status = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = status.rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[19]
