"""Tables that have a version: how they are made, and older ones brought to today's.

A store has such tables, and a desk has others in the same database.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import final

from sqlalchemy import MetaData, String, Table, func, insert, inspect, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Mapped, mapped_column

from medfm_rl.feedback.append_only import forbid_changes
from medfm_rl.feedback.connection import take_turn, writing
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.version import __version__

_LOG = logging.getLogger(__name__)
_ALONE = 0x6D656466
"""The key of PostgreSQL's advisory lock while tables are made; any number that others hardly use."""
Migration = Callable[[Connection], None]


class VersionColumns:
    """Columns of the table of versions that the tables have had; the highest is the present one."""

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    time: Mapped[str] = mapped_column(String(40))
    medfm_rl: Mapped[str] = mapped_column(String(40))


@final
@dataclass(frozen=True)
class VersionedTables:
    """Tables that are made together and brought to a newer version together.

    Attributes:
        name: What they are, in words.
        metadata: The tables of the newest version.
        versions: The one of them with `VersionColumns`.
        newest: The version that this package reads and writes.
        only_added_to: Those whose rows nobody may change, replace or delete.
        refusal: What the database says to who tries.
        migrations: What brings the tables of version n to version n + 1, by n.
    """

    name: str
    metadata: MetaData
    versions: Table
    newest: int
    only_added_to: Sequence[Table]
    refusal: str
    migrations: Mapping[int, Migration] = field(default_factory=dict)

    def prepare(self, engine: Engine, where: str) -> None:
        """Makes the tables where there are none, and brings older ones to the newest version, in one transaction.

        Args:
            engine: Connections to the database.
            where: Its name, for messages.

        Raises:
            FeedbackError: A newer version made them.
            SQLAlchemyError: The database does not answer.
        """
        with engine.begin() as connection:
            if self._version(connection, where) == self.newest:
                return
        with writing(engine).begin() as connection:
            take_turn(connection, _ALONE)
            found = self._version(connection, where)
            if found is None:
                self.metadata.create_all(connection)
                forbid_changes(connection, self.only_added_to, self.refusal)
                self._record(connection, self.newest)
                return
            for version in range(found, self.newest):
                _LOG.info("%s: bringing %s from version %d to %d", where, self.name, version, version + 1)
                self.migrations[version](connection)
                self._record(connection, version + 1)

    def _version(self, connection: Connection, where: str) -> int | None:
        """The version of the tables; None where there are none.

        Raises:
            FeedbackError: It is newer than this package.
        """
        if not inspect(connection).has_table(self.versions.name):
            return None
        column = self.versions.c.version
        version = connection.execute(select(func.max(column))).scalar_one()
        if version > self.newest:
            maker = connection.execute(select(self.versions.c.medfm_rl).where(column == version)).scalar_one()
            raise FeedbackError(
                f"{where}: {self.name} is of version {version}, made by medfm-rl {maker}, and medfm-rl {__version__} "
                f"reads up to version {self.newest}; update medfm-rl"
            )
        return int(version)

    def _record(self, connection: Connection, version: int) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        connection.execute(insert(self.versions).values(version=version, time=now, medfm_rl=__version__))
