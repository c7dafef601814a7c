"""What the database of a store is asked: its history, the part of it that new entries touch, and its masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, select
from sqlalchemy.engine import Connection

from medfm_rl.feedback.entries import Entry, Feedback, Removal
from medfm_rl.feedback.tables import ENTRIES, MASKS, as_entry

_AT_ONCE = 500
"""Rows that one question asks for; databases limit how many values it may name."""


def read_history(connection: Connection) -> list[Entry]:
    """Everything that was ever added, in the order in which it was said."""
    rows = connection.execute(select(ENTRIES).order_by(ENTRIES.c.number)).mappings()
    return sorted((as_entry(row) for row in rows), key=by_time)


def read_history_of(connection: Connection, entries: Sequence[Entry]) -> list[Entry]:
    """What new entries can repeat, contradict, replace or remove: all that was ever said of their patients and images.

    A store grows with every decision of every reviewer, and an addition must not take longer with it.
    """
    columns = ENTRIES.c
    removed = [entry.removes for entry in entries if isinstance(entry, Removal)]
    about: list[Entry] = [*entries, *_rows_where(connection, columns.id.in_, removed)]
    feedback = [entry for entry in about if isinstance(entry, Feedback)]
    patients = {entry.patient for entry in feedback}
    images = {entry.image_sha256 for entry in feedback if entry.image_sha256 is not None}
    found = {
        entry.id: entry
        for entry in (
            *_rows_where(connection, columns.patient.in_, patients),
            *_rows_where(connection, columns.image_sha256.in_, images),
            *_rows_where(connection, columns.id.in_, removed),
        )
    }
    found |= {entry.id: entry for entry in _rows_where(connection, columns.removes.in_, list(found))}
    return sorted(found.values(), key=by_time)


def _rows_where(
    connection: Connection, among: Callable[[list[str]], ColumnElement[bool]], values: Collection[str]
) -> list[Entry]:
    wanted = sorted(values)
    found: list[Entry] = []
    for first in range(0, len(wanted), _AT_ONCE):
        rows = connection.execute(select(ENTRIES).where(among(wanted[first : first + _AT_ONCE]))).mappings()
        found += [as_entry(row) for row in rows]
    return found


def names_of_masks(connection: Connection, sha256s: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Structure names of those masks that are in the store."""
    found: dict[str, tuple[str, ...]] = {}
    for first in range(0, len(sha256s), _AT_ONCE):
        wanted = sha256s[first : first + _AT_ONCE]
        rows = connection.execute(select(MASKS.c.sha256, MASKS.c.names).where(MASKS.c.sha256.in_(wanted)))
        found |= {sha256: tuple(json.loads(names)) for sha256, names in rows}
    return found


def by_time(entry: Entry) -> tuple[datetime, str]:
    """What entries are put in order by."""
    return entry.time, entry.id
