"""The database of a desk: that of its feedback store, with further tables."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from sqlalchemy import insert, select
from sqlalchemy.engine import Connection

from medfm_rl.errors import DataError
from medfm_rl.feedback import FeedbackStore
from medfm_rl.feedback.connection import answering, connect, is_url, take_turn, writing
from medfm_rl.service.tables import DESK, AuditRow, SecretRow, now_text

_KEY_BYTES = 32
_ALONE = 0x6465736B
"""The key of PostgreSQL's advisory lock of those who write; any number that others hardly use."""


@final
class Database:
    """Transactions on the tables of a desk, and its feedback store.

    Args:
        where: The store, which is there.

    Attributes:
        store: The feedback store in the same database.

    Raises:
        FeedbackError: There is no store, a newer version made it, or it does not answer.
    """

    def __init__(self, where: Path | str) -> None:
        if not is_url(where) and not Path(where).exists():
            raise DataError(
                f"{where}: there is no store; `medfm-rl desk --new` makes an empty one, and `medfm-rl feedback add` "
                "one with what reviewers said before"
            )
        self.store = FeedbackStore.open(where)
        self.engine = connect(where, keep=True)
        with answering(self.store.where):
            DESK.prepare(self.engine, self.store.where)

    def close(self) -> None:
        """Lets go of the connections."""
        self.store.close()
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state and writes nothing."""
        with answering(self.store.where), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; one at a time, and durable when the block has ended."""
        with answering(self.store.where), writing(self.engine).begin() as connection:
            alone(connection)
            yield connection

    def secret(self, name: str) -> bytes:
        """A key of the store, made when it is first asked for."""
        with self.writing() as connection:
            found = connection.execute(select(SecretRow.value).where(SecretRow.name == name)).scalar_one_or_none()
            if found is None:
                found = secrets.token_hex(_KEY_BYTES)
                connection.execute(insert(SecretRow).values(name=name, value=found))
        return bytes.fromhex(found)

    def note(self, reviewer: str, action: str, case: str | None = None, image: str | None = None, **more: Any) -> None:
        """Adds a line to the audit log, and waits until it is on the disk."""
        with self.writing() as connection:
            add_note(connection, reviewer, action, case, image, **more)

    def notes(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Lines of the audit log behind a number, in their order."""
        table = AuditRow.__table__
        with self.reading() as connection:
            rows = connection.execute(
                select(table).where(table.c.number > after).order_by(table.c.number).limit(limit)
            ).mappings()
            return [{str(name): value for name, value in row.items()} for row in rows]


def alone(connection: Connection) -> None:
    """Lets one transaction at a time write to the tables of a desk."""
    take_turn(connection, _ALONE)


def add_note(
    connection: Connection,
    reviewer: str,
    action: str,
    case: str | None = None,
    image: str | None = None,
    **more: Any,
) -> None:
    """Adds a line to the audit log in a transaction of something else.

    Args:
        connection: The transaction.
        reviewer: Who does it.
        action: What is done, in a word or two.
        case: Name of the case.
        image: SHA-256 of its image.
        more: Anything else, as `name=value`.
    """
    detail = " ".join(f"{name}={value}" for name, value in more.items() if value is not None)
    connection.execute(
        insert(AuditRow).values(
            time=now_text(), reviewer=reviewer, action=action, case_name=case, image_sha256=image, detail=detail
        )
    )


def digest_of(*parts: str) -> str:
    """SHA-256 of texts: what is kept of a secret, or of a key that somebody chose."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()
