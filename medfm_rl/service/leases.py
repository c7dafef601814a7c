"""Leases: an item belongs to who opened it until he gives it back, decides, or falls silent."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import final

from sqlalchemy import delete, insert, select, update
from sqlalchemy.engine import Connection

from medfm_rl.service.database import Database
from medfm_rl.service.errors import DeskError, not_found
from medfm_rl.service.tables import LeaseRow


@dataclass(frozen=True)
class Lease:
    """A lease.

    Attributes:
        item: What is leased.
        lease: Its id, which its holder alone knows.
        reviewer: Its holder.
        expires: When it ends, ISO 8601 in UTC.
    """

    item: str
    lease: str
    reviewer: str
    expires: str


@final
class Leases:
    """The leases of a desk, in its database: they outlive the service.

    Args:
        database: The database.
        seconds: How long a lease lasts.
    """

    def __init__(self, database: Database, seconds: int) -> None:
        self._database = database
        self.seconds = seconds

    def held(self) -> dict[str, Lease]:
        """Those that have not run out, by item."""
        with self._database.reading() as connection:
            rows = connection.execute(select(LeaseRow.__table__).where(LeaseRow.expires > _now()))
            return {row.item: Lease(row.item, row.lease, row.reviewer, row.expires) for row in rows}

    def take_first(self, items: Iterable[str], reviewer: str) -> Lease | None:
        """Leases the first item that nobody else holds; None where others hold all of them.

        What the reviewer held before is given back: a reviewer works on one item at a time.
        """
        with self._database.writing() as connection:
            rows = connection.execute(select(LeaseRow.__table__).where(LeaseRow.expires > _now()))
            others = {row.item for row in rows if row.reviewer != reviewer}
            found = next((item for item in items if item not in others), None)
            return None if found is None else self._take(connection, found, reviewer)

    def take(self, item: str, reviewer: str) -> Lease:
        """Leases an item.

        Raises:
            DeskError: Another reviewer holds it.
        """
        with self._database.writing() as connection:
            row = connection.execute(select(LeaseRow.__table__).where(LeaseRow.item == item)).one_or_none()
            if row is not None and row.reviewer != reviewer and row.expires > _now():
                raise DeskError(
                    409,
                    "leased",
                    f"reviewer {row.reviewer} is working on it until {row.expires[11:19]} UTC",
                    "take another one, or try again later",
                )
            return self._take(connection, item, reviewer)

    def renew(self, lease: str, reviewer: str) -> Lease:
        """Has a lease begin anew.

        Raises:
            DeskError: It is no lease of that reviewer, or it ran out and was taken by another.
        """
        with self._database.writing() as connection:
            row = connection.execute(select(LeaseRow.__table__).where(LeaseRow.lease == lease)).one_or_none()
            if row is None or row.reviewer != reviewer:
                raise not_found("lease", "it has run out; open the case again")
            expires = _after(self.seconds)
            connection.execute(update(LeaseRow).where(LeaseRow.lease == lease).values(expires=expires))
            return Lease(row.item, lease, reviewer, expires)

    def give_back(self, lease: str, reviewer: str) -> None:
        """Ends a lease; one that has ended already is none to be told of."""
        with self._database.writing() as connection:
            connection.execute(delete(LeaseRow).where(LeaseRow.lease == lease, LeaseRow.reviewer == reviewer))

    def _take(self, connection: Connection, item: str, reviewer: str) -> Lease:
        connection.execute(delete(LeaseRow).where((LeaseRow.item == item) | (LeaseRow.reviewer == reviewer)))
        found = Lease(item, secrets.token_hex(16), reviewer, _after(self.seconds))
        connection.execute(insert(LeaseRow).values(**vars(found)))
        return found


def require_no_other(connection: Connection, item: str, reviewer: str) -> None:
    """Refuses a decision on an item that another reviewer works on by now.

    Raises:
        DeskError: One does.
    """
    row = connection.execute(select(LeaseRow.__table__).where(LeaseRow.item == item)).one_or_none()
    if row is not None and row.reviewer != reviewer and row.expires > _now():
        raise DeskError(
            409,
            "lease_lost",
            f"the case was not kept for you, and reviewer {row.reviewer} works on it by now",
            "what you drew is kept in the browser: open the case again when it is free, or go on with the next",
        )


def release(connection: Connection, item: str, reviewer: str) -> None:
    """Ends the lease that a reviewer has on an item, in the transaction of his decision."""
    connection.execute(delete(LeaseRow).where(LeaseRow.item == item, LeaseRow.reviewer == reviewer))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _after(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="microseconds")
