"""Masks that were sent and not yet decided on, and those that were: kept in the database, by content."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from typing import final

import numpy as np
from sqlalchemy import delete, insert, select
from sqlalchemy.engine import Connection

from medfm_rl.data.labels import hash_labels
from medfm_rl.service.database import Database
from medfm_rl.service.errors import not_found
from medfm_rl.service.tables import DraftRow, now_text
from medfm_rl.types import LabelMap


@final
class Drafts:
    """Masks `(N, H, W)` of views.

    Args:
        database: Where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, view: str, labels: LabelMap, reviewer: str) -> str:
        """Keeps a mask, and returns its hash once it is durable."""
        sha256 = hash_labels(labels)
        with self._database.writing() as connection:
            same = (DraftRow.sha256 == sha256, DraftRow.case_id == view, DraftRow.reviewer == reviewer)
            connection.execute(delete(DraftRow).where(*same))
            connection.execute(
                insert(DraftRow).values(
                    sha256=sha256,
                    case_id=view,
                    reviewer=reviewer,
                    time=now_text(),
                    content=zlib.compress(np.ascontiguousarray(labels).tobytes(), 1),
                )
            )
        return sha256

    def labels(self, view: str, sha256: str, shape: tuple[int, ...], reviewer: str | None = None) -> LabelMap:
        """A mask by its hash, of one reviewer or of any.

        Raises:
            DeskError: It was not sent.
        """
        wanted = [DraftRow.sha256 == sha256, DraftRow.case_id == view]
        if reviewer is not None:
            wanted.append(DraftRow.reviewer == reviewer)
        with self._database.reading() as connection:
            content = connection.execute(select(DraftRow.content).where(*wanted).limit(1)).scalar_one_or_none()
        if content is None:
            raise not_found("mask", "send it again (POST /cases/CASE/masks) before the decision that names it")
        return np.frombuffer(zlib.decompress(content), np.uint8).reshape(shape).copy()


def tidy(connection: Connection, view: str, reviewer: str, named: Collection[str]) -> None:
    """Lets go of masks of a reviewer that his decision does not name, in the transaction of it."""
    table = DraftRow.__table__
    connection.execute(
        delete(DraftRow).where(
            table.c.case_id == view, table.c.reviewer == reviewer, table.c.sha256.not_in(sorted(named))
        )
    )
