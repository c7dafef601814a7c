"""The tables of the desk. They lie in the database of the feedback store, beside its own tables.

So a decision, its entries in the store, the key under which it was sent and its line in the audit log are there
together or not at all: no kill can come between them.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.engine import Connection
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from medfm_rl.feedback.append_only import forbid_changes
from medfm_rl.feedback.tables import NUMBER
from medfm_rl.feedback.versions import VersionColumns, VersionedTables

_SHA256 = String(64)
_ID = String(40)
_TIME = String(40)


class DeskTables(DeclarativeBase):
    """The tables of the newest version of a desk."""


class VersionRow(VersionColumns, DeskTables):
    """A version of the tables that the desk has had."""

    __tablename__ = "desk_versions"


class SecretRow(DeskTables):
    """Keys that the service signs and blinds with; made once for a store."""

    __tablename__ = "desk_secrets"
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(String(64))


class UserRow(DeskTables):
    """A reviewer who logs in by name and password."""

    __tablename__ = "desk_users"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    password: Mapped[str] = mapped_column(String(255))
    active: Mapped[bool]
    created: Mapped[str] = mapped_column(_TIME)


class SessionRow(DeskTables):
    """A session of a browser, or a token of a program; what is shown to the service is kept as a hash alone."""

    __tablename__ = "desk_sessions"
    digest: Mapped[str] = mapped_column(_SHA256, primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))
    user: Mapped[str | None] = mapped_column("user_name", String(64), index=True)
    label: Mapped[str] = mapped_column(String(64))
    created: Mapped[str] = mapped_column(_TIME)
    seen: Mapped[str] = mapped_column(_TIME)
    expires: Mapped[str] = mapped_column(_TIME)


class LeaseRow(DeskTables):
    """Who works on an item."""

    __tablename__ = "desk_leases"
    item: Mapped[str] = mapped_column(_ID, primary_key=True)
    lease: Mapped[str] = mapped_column(_ID, unique=True)
    reviewer: Mapped[str] = mapped_column(String(64), index=True)
    expires: Mapped[str] = mapped_column(_TIME)


class DecisionRow(DeskTables):
    """What a reviewer said of an item at once.

    `said` is what he said, in words of the service; `entries` names what became of it in the store; an undo is a row of
    its own that names the decision it takes back.
    """

    __tablename__ = "desk_decisions"
    __table_args__ = (UniqueConstraint("key_digest"),)
    number: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    item: Mapped[str] = mapped_column(_ID, index=True)
    case_name: Mapped[str] = mapped_column(String(255))
    reviewer: Mapped[str] = mapped_column(String(64), index=True)
    time: Mapped[str] = mapped_column(_TIME)
    seconds: Mapped[float]
    comment: Mapped[str] = mapped_column(Text)
    said: Mapped[str] = mapped_column(Text)
    entries: Mapped[str] = mapped_column(Text)
    undoes: Mapped[str | None] = mapped_column(_ID)
    key_digest: Mapped[str | None] = mapped_column(_SHA256)
    body_sha256: Mapped[str | None] = mapped_column(_SHA256)


class DraftRow(DeskTables):
    """A mask that was sent and not yet decided on, packed."""

    __tablename__ = "desk_drafts"
    sha256: Mapped[str] = mapped_column(_SHA256, primary_key=True)
    case_id: Mapped[str] = mapped_column(_ID, primary_key=True)
    reviewer: Mapped[str] = mapped_column(String(64), primary_key=True)
    time: Mapped[str] = mapped_column(_TIME)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class AuditRow(DeskTables):
    """A read or write of a case, or a change of who may do what."""

    __tablename__ = "desk_audit"
    number: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    time: Mapped[str] = mapped_column(_TIME)
    reviewer: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(32))
    case_name: Mapped[str | None] = mapped_column(String(255))
    image_sha256: Mapped[str | None] = mapped_column(_SHA256)
    detail: Mapped[str] = mapped_column(Text)


class JobRow(DeskTables):
    """A long piece of work in a process of its own."""

    __tablename__ = "desk_jobs"
    number: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    kind: Mapped[str] = mapped_column(String(16))
    arguments: Mapped[str] = mapped_column(Text)
    reviewer: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    process: Mapped[str | None] = mapped_column(String(64))
    created: Mapped[str] = mapped_column(_TIME)
    started: Mapped[str | None] = mapped_column(_TIME)
    ended: Mapped[str | None] = mapped_column(_TIME)
    error: Mapped[str | None] = mapped_column(Text)
    key_digest: Mapped[str | None] = mapped_column(_SHA256, unique=True)


def now_text() -> str:
    """The time in UTC as the tables have it; sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


_ADDED_TO = tuple(DeskTables.metadata.tables[row.__tablename__] for row in (DecisionRow, AuditRow))
_REFUSAL = "decisions and the audit log of a desk are only added to"


def _forbid_replacing(connection: Connection) -> None:
    """Of version 1 rows could not be changed or deleted, but replaced, and the tables emptied."""
    forbid_changes(connection, _ADDED_TO, _REFUSAL)


DESK = VersionedTables(
    name="the desk of this store",
    metadata=DeskTables.metadata,
    versions=DeskTables.metadata.tables[VersionRow.__tablename__],
    newest=2,
    only_added_to=_ADDED_TO,
    refusal=_REFUSAL,
    migrations={1: _forbid_replacing},
)
