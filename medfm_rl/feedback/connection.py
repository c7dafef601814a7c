"""Connections to the database of a store: a SQLite file or a PostgreSQL server, and what they answer, in our words."""

from __future__ import annotations

import importlib.util
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import DataError as DatabaseDataError
from sqlalchemy.pool import NullPool, QueuePool

from medfm_rl.errors import ConfigError, MissingExtraError
from medfm_rl.feedback.errors import FeedbackError, StoreError

LONGEST_WAIT = 60
"""Seconds that a writer waits for the others."""
_REPEAT = "nothing of this call was added; repeat it, and what is already there is not added twice"
_REPEAT_READING = "then repeat the command"
_POSTGRESQL_FULL = "53100"
_NO_DATABASE = "3D000"
_NO_SUCH_DATABASE = re.compile(r'database "[^"]*" does not exist')
"""What a server says to whom it does not connect: the driver gives no state then."""


def is_url(where: Path | str) -> bool:
    """Whether a place is the URL of a server, and not a file."""
    return "://" in str(where)


def connect(where: Path | str, keep: bool = False) -> Engine:
    """Prepares connections to a store, one for each transaction: none outlives it, and forks share none.

    Args:
        where: A SQLite file, or the URL of a PostgreSQL database (`postgresql://USER@HOST/DATABASE`).
        keep: Keep connections for the next transactions, in a process that makes many and does not fork.

    Raises:
        ConfigError: The URL is of another kind of database, or none.
        MissingExtraError: It is PostgreSQL's, and its driver is not installed.
    """
    if not is_url(where):
        return _sqlite(Path(where), keep)
    try:
        url = make_url(str(where))
    except (ArgumentError, ValueError) as error:
        raise ConfigError("store: this is no URL of a database; write postgresql://USER@HOST/DATABASE") from error
    if url.get_backend_name() != "postgresql":
        raise ConfigError(
            f"store {url.get_backend_name()}://...: only postgresql:// is known; a SQLite store is given by its path"
        )
    if importlib.util.find_spec("psycopg") is None:
        raise MissingExtraError("a store in PostgreSQL needs psycopg: pip install 'medfm-rl[postgresql]'")
    return _postgresql(url, keep)


def shown(where: Path | str) -> str:
    """A place without the password in it."""
    if not is_url(where):
        return str(where)
    return make_url(str(where)).difference_update_query(["password"]).render_as_string(hide_password=True)


def writing(engine: Engine) -> Engine:
    """The same, for transactions that write: one at a time, the others wait."""
    return engine.execution_options(writes=True)


def take_turn(connection: Connection, key: int) -> None:
    """Lets one transaction at a time go on that asks by this number; SQLite does so with every one that writes."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


@contextmanager
def answering(where: str, writes: bool = True) -> Iterator[None]:
    """Says in our words what a database answers in its own.

    Args:
        where: Name of the store.
        writes: Whether something was to be added, of which is said then that it was not.

    Raises:
        StoreError: In place of an error of SQLAlchemy.
        FeedbackError: The same, where the database does not take these values.
    """
    try:
        yield
    except SQLAlchemyError as error:
        kind = FeedbackError if isinstance(error, (DatabaseDataError, IntegrityError)) else StoreError
        raise kind(f"{where}: {_in_words(error, _REPEAT if writes else _REPEAT_READING)}") from error


def _in_words(error: SQLAlchemyError, repeat: str) -> str:
    origin: Any = error.orig if isinstance(error, DBAPIError) else error
    said = str(origin).strip().splitlines()[0] if str(origin).strip() else type(origin).__name__
    name = getattr(origin, "sqlite_errorname", "")
    state = getattr(origin, "sqlstate", None)
    if name == "SQLITE_FULL" or state == _POSTGRESQL_FULL:
        return f"the disk is full ({said}); make room. {_sentence(repeat)}"
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or state == "55P03":
        return f"another process has kept the store for {LONGEST_WAIT} s ({said}); {repeat}"
    if name.startswith("SQLITE_NOTADB"):
        return "is no SQLite file, or an encrypted one; give the store that `medfm-rl feedback add` made"
    if name.startswith("SQLITE_CORRUPT"):
        return f"the file is damaged ({said}); put it back from a copy"
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")) or state in ("42501", "25006"):
        return f"cannot be opened or written ({said}); ask who owns it, or change its mode. {_sentence(repeat)}"
    if name.startswith("SQLITE_IOERR"):
        return (
            f"the file, or those that SQLite writes beside it, cannot be read or written ({said}); see whether the "
            f"disk is full, or gone. {_sentence(repeat)}"
        )
    if state == _NO_DATABASE or _NO_SUCH_DATABASE.search(str(origin)):
        return f"the server has no such database ({said}); make it (`createdb`), or correct the name"
    if isinstance(error, DBAPIError) and (error.connection_invalidated or _went_away(origin, state)):
        return f"the database went away, or cannot be reached ({said}); see that it runs. {_sentence(repeat)}"
    return f"the database refuses ({said}); {repeat}"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _went_away(origin: Any, state: str | None) -> bool:
    """Whether a server shut down or was never there: classes 08 and 57P of its states, or no state at all."""
    return type(origin).__name__ == "OperationalError" and (state is None or state.startswith(("08", "57P")))


def _sqlite(path: Path, keep: bool) -> Engine:
    engine = create_engine(
        _url_of(path),
        poolclass=QueuePool if keep else NullPool,
        # A connection that is kept goes from thread to thread, to one at a time.
        connect_args={"check_same_thread": not keep},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _: object) -> None:
        # Transactions begin where SQLAlchemy says so, and not where the driver thinks of it.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {1000 * LONGEST_WAIT}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _url_of(path: Path) -> URL:
    """A SQLite file; as one that nobody changes where nobody can.

    Who reads a file with a write-ahead log makes further files beside it, which cannot be where the folder is not to be
    written. With a log there, the file alone does not hold everything, and SQLite has to say so.
    """
    log = path.with_name(f"{path.name}-wal")
    if not path.exists() or os.access(path.parent, os.W_OK) or log.exists():
        return URL.create("sqlite", database=str(path))
    query = {"mode": "ro", "immutable": "1", "uri": "true"}
    return URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query=query)


def _postgresql(url: URL, keep: bool) -> Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return create_engine(
        url,
        poolclass=QueuePool if keep else NullPool,
        pool_pre_ping=keep,
        connect_args={"connect_timeout": LONGEST_WAIT},
    )
