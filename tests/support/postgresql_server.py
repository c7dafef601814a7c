"""A PostgreSQL server of a test's own, from the programs that Debian installs."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

_USER = "postgres"
"""Who runs it where the tests run as root, whom PostgreSQL refuses."""


def programs() -> Path | None:
    """The folder of the newest server that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def obstacle() -> str | None:
    """Why no server can be started here."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed (extra postgresql)"
    if programs() is None:
        return "the programs of a PostgreSQL server are not installed (apt-get install postgresql)"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(_USER)
        except KeyError:
            return f"root may not run PostgreSQL, and there is no user {_USER}"
        if shutil.which("runuser") is None:
            return "root may not run PostgreSQL, and there is no runuser"
    return None


class Server:
    """A server that listens on a socket in its own folder alone."""

    def __init__(self) -> None:
        # Not pytest's folders, which nobody but their owner may enter; and paths of sockets have to be short.
        self.folder = Path(tempfile.mkdtemp(prefix="medfm-pg-", dir="/tmp"))
        if os.geteuid() == 0:
            shutil.chown(self.folder, _USER, _USER)
        self._call("initdb", "-D", str(self.folder / "data"), "-U", "medfm", "-A", "trust", "-N", "-E", "UTF8")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c fsync=off"
        log = str(self.folder / "log")
        self._call("pg_ctl", "-D", str(self.folder / "data"), "-l", log, "-w", "-o", options, "start")

    def stop(self) -> None:
        """Stops it as a power cut would."""
        self._call("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def new_database(self, name: str) -> str:
        """Makes a database; returns its URL."""
        self._call("createdb", "-h", str(self.folder), "-U", "medfm", name)
        return f"postgresql://medfm@/{name}?host={self.folder}"

    def _call(self, program: str, *arguments: str) -> None:
        folder = programs()
        assert folder is not None
        command = [str(folder / program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", _USER, "--", *command]
        # Its output goes to a file: a server that keeps a pipe open would never let go of it.
        with (self.folder / "calls.log").open("ab") as log:
            subprocess.run(command, check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
