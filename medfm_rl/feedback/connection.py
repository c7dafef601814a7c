"""Connections to the database of a store: a SQLite file or a PostgreSQL server, and what they answer, in our words."""

from __future__ import annotations

import importlib.util
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool

from medfm_rl.errors import ConfigError, MissingExtraError
from medfm_rl.feedback.errors import FeedbackError

LONGEST_WAIT = 60
"""Seconds that a writer waits for the others."""
_REPEAT = "nothing of this call was added; repeat it, and what is already there is not added twice"
_POSTGRESQL_FULL = "53100"


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
    return make_url(str(where)).render_as_string(hide_password=True) if is_url(where) else str(where)


def writing(engine: Engine) -> Engine:
    """The same, for transactions that write: one at a time, the others wait."""
    return engine.execution_options(writes=True)


@contextmanager
def answering(where: str) -> Iterator[None]:
    """Says in our words what a database answers in its own.

    Raises:
        FeedbackError: In place of an error of SQLAlchemy.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise FeedbackError(f"{where}: {_in_words(error)}") from error


def _in_words(error: SQLAlchemyError) -> str:
    origin: Any = error.orig if isinstance(error, DBAPIError) else error
    text = str(origin).strip().splitlines()[0] if str(origin).strip() else type(origin).__name__
    name = getattr(origin, "sqlite_errorname", "")
    state = getattr(origin, "sqlstate", None)
    if name == "SQLITE_FULL" or state == _POSTGRESQL_FULL:
        return f"the disk is full ({text}); make room. {_REPEAT.capitalize()}"
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or state == "55P03":
        return f"another process has kept the store for {LONGEST_WAIT} s ({text}); {_REPEAT}"
    if name.startswith("SQLITE_NOTADB"):
        return "is no SQLite file, or an encrypted one; give the store that `medfm-rl feedback add` made"
    if name.startswith("SQLITE_CORRUPT"):
        return f"the file is damaged ({text}); put it back from a copy"
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")) or state in ("42501", "25006"):
        return f"cannot be opened or written ({text}); ask who owns it, or change its mode. {_REPEAT.capitalize()}"
    if isinstance(error, DBAPIError) and (error.connection_invalidated or _went_away(origin, state)):
        return f"the database went away, or cannot be reached ({text}); see that it runs. {_REPEAT.capitalize()}"
    return f"the database refuses ({text}); {_REPEAT}"


def _went_away(origin: Any, state: str | None) -> bool:
    """Whether a server shut down or was never there: classes 08 and 57P of its states, or no state at all."""
    if isinstance(origin, sqlite3.Error):
        return getattr(origin, "sqlite_errorname", "").startswith("SQLITE_IOERR")
    return type(origin).__name__ == "OperationalError" and (state is None or state.startswith(("08", "57P")))


def _sqlite(path: Path, keep: bool) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
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


def _postgresql(url: URL, keep: bool) -> Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return create_engine(
        url,
        poolclass=QueuePool if keep else NullPool,
        pool_pre_ping=keep,
        connect_args={"connect_timeout": LONGEST_WAIT},
    )
