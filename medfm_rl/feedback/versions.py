"""Versions of a store's tables: how a new store is made, and an older one is brought to today's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from sqlalchemy import func, insert, inspect, select, text
from sqlalchemy.engine import Connection, Engine

from medfm_rl.feedback.connection import writing
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.tables import Tables, VersionRow, forbid_changes
from medfm_rl.version import __version__

_LOG = logging.getLogger(__name__)
NEWEST = 1
"""Version of the tables that this package reads and writes."""
Migration = Callable[[Connection], None]
MIGRATIONS: Mapping[int, Migration] = {}
"""What brings the tables of version n to version n + 1, by n."""
_ALONE = 0x6D656466
"""The key of PostgreSQL's advisory lock while tables are made; any number that others hardly use."""


def prepare(engine: Engine, where: str, create: bool) -> None:
    """Brings a store to the newest version, in one transaction.

    Args:
        engine: Connections to it.
        where: Its name, for messages.
        create: Make the tables where there are none.

    Raises:
        FeedbackError: There is no store and none is to be made, it is something else, or a newer version made it.
        SQLAlchemyError: The database does not answer.
    """
    with engine.begin() as connection:
        if _version(connection, where) == NEWEST:
            return
    with writing(engine).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ALONE})
        found = _version(connection, where)
        if found is None:
            if not create:
                raise FeedbackError(f"{where}: holds no feedback; `medfm-rl feedback add` makes a store")
            _make(connection)
            return
        for version in range(found, NEWEST):
            _LOG.info("%s: bringing the store from version %d to %d", where, version, version + 1)
            MIGRATIONS[version](connection)
            _record(connection, version + 1)


def _version(connection: Connection, where: str) -> int | None:
    """The version of a store; None where the database has no tables of one.

    Raises:
        FeedbackError: It is newer than this package, or the database is a file that something else uses.
    """
    tables = inspect(connection).get_table_names()
    if VersionRow.__tablename__ not in tables:
        if tables and connection.dialect.name == "sqlite":
            raise FeedbackError(
                f"{where}: is a database of something else (it has a table {tables[0]}); give a file of its own"
            )
        return None
    version = connection.execute(select(func.max(VersionRow.version))).scalar_one()
    if version > NEWEST:
        maker = connection.execute(select(VersionRow.medfm_rl).where(VersionRow.version == version)).scalar_one()
        raise FeedbackError(
            f"{where}: this store is of version {version}, made by medfm-rl {maker}, and medfm-rl {__version__} reads "
            f"up to version {NEWEST}; update medfm-rl"
        )
    return int(version)


def _make(connection: Connection) -> None:
    Tables.metadata.create_all(connection)
    forbid_changes(connection)
    _record(connection, NEWEST)


def _record(connection: Connection, version: int) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    connection.execute(insert(VersionRow).values(version=version, time=now, medfm_rl=__version__))
