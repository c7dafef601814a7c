"""The tables of a store, and how entries become rows."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Integer, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from medfm_rl.feedback.entries import BEST_GRADE, KINDS, WORST_GRADE, CorrectedMask, Entry
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.versions import VersionColumns, VersionedTables

_SHA256 = String(64)
_NAME = String(255)
NUMBER = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite counts up columns of its own type INTEGER alone."""


class Tables(DeclarativeBase):
    """The tables of the newest version of a store."""


class VersionRow(VersionColumns, Tables):
    """A version of the tables that a store has had."""

    __tablename__ = "feedback_versions"


class MaskRow(Tables):
    """A mask; its pixels lie in a folder beside a SQLite file, and in `content` of a server."""

    __tablename__ = "feedback_masks"
    sha256: Mapped[str] = mapped_column(_SHA256, primary_key=True)
    labels_sha256: Mapped[str] = mapped_column(_SHA256)
    shape: Mapped[str] = mapped_column(Text)
    names: Mapped[str] = mapped_column(Text)
    geometry: Mapped[str] = mapped_column(Text)
    content: Mapped[bytes | None] = mapped_column(LargeBinary)


class EntryRow(Tables):
    """An entry. Columns that a kind does not have are NULL."""

    __tablename__ = "feedback_entries"
    __table_args__ = (
        CheckConstraint(f"kind IN ({', '.join(repr(kind) for kind in KINDS)})", "kind_is_known"),
        CheckConstraint("drawn IN ('audit', 'informative', 'other')", "drawn_is_known"),
        CheckConstraint("decision IN ('accept', 'reject')", "decision_is_known"),
        CheckConstraint(f"grade BETWEEN {WORST_GRADE} AND {BEST_GRADE}", "grade_is_in_range"),
        CheckConstraint("(kind = 'removal') = (removes IS NOT NULL)", "removals_name_an_entry"),
        CheckConstraint("(kind = 'removal') = (patient IS NULL)", "feedback_names_a_patient"),
        CheckConstraint("(kind = 'verdict') = (decision IS NOT NULL)", "verdicts_decide"),
        CheckConstraint("(kind = 'grade') = (grade IS NOT NULL)", "grades_grade"),
        CheckConstraint("(kind = 'measurement') = (value IS NOT NULL)", "measurements_have_a_value"),
        CheckConstraint("(kind IN ('removal', 'measurement')) = (mask_sha256 IS NULL)", "other_kinds_name_a_mask"),
        CheckConstraint("kind <> 'preference' OR other_sha256 IS NOT NULL", "preferences_name_two_masks"),
    )
    number: Mapped[int] = mapped_column(NUMBER, primary_key=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    kind: Mapped[str] = mapped_column(String(16))
    time: Mapped[str] = mapped_column(String(40))
    reviewer: Mapped[str] = mapped_column(String(64))
    comment: Mapped[str] = mapped_column(Text)
    patient: Mapped[str | None] = mapped_column(_NAME, index=True)
    case_name: Mapped[str | None] = mapped_column(_NAME)
    image_sha256: Mapped[str | None] = mapped_column(_SHA256, index=True)
    model_hash: Mapped[str | None] = mapped_column(_SHA256)
    drawn: Mapped[str | None] = mapped_column(String(16))
    mask_sha256: Mapped[str | None] = mapped_column(ForeignKey(MaskRow.sha256))
    other_sha256: Mapped[str | None] = mapped_column(ForeignKey(MaskRow.sha256))
    structure: Mapped[str | None] = mapped_column(_NAME)
    changed: Mapped[str | None] = mapped_column(Text)
    decision: Mapped[str | None] = mapped_column(String(8))
    grade: Mapped[int | None]
    name: Mapped[str | None] = mapped_column(String(32))
    value: Mapped[float | None]
    unit: Mapped[str | None] = mapped_column(String(16))
    uncertainty: Mapped[float | None]
    removes: Mapped[str | None] = mapped_column(ForeignKey("feedback_entries.id"))
    reason: Mapped[str | None] = mapped_column(Text)


ENTRIES = Tables.metadata.tables[EntryRow.__tablename__]
MASKS = Tables.metadata.tables[MaskRow.__tablename__]
STORE = VersionedTables(
    name="this store",
    metadata=Tables.metadata,
    versions=Tables.metadata.tables[VersionRow.__tablename__],
    newest=1,
    only_added_to=(ENTRIES, MASKS),
    refusal="a feedback store is only added to; remove an entry by a further one",
)
ENTRY_COLUMNS = tuple(column.name for column in ENTRIES.columns if column is not ENTRIES.c.number)
"""What a row says of its entry; its number is that of the store."""

_COLUMN_OF = {
    "case": "case_name",
    "replaces_sha256": "other_sha256",
    "better_sha256": "mask_sha256",
    "worse_sha256": "other_sha256",
}
"""By field of an entry: its column, where that has another name."""


def as_row(entry: Entry) -> dict[str, Any]:
    """An entry as values by column."""
    row: dict[str, Any] = dict.fromkeys(ENTRY_COLUMNS)
    row |= {_COLUMN_OF.get(field.name, field.name): getattr(entry, field.name) for field in fields(entry)}
    row |= {"kind": entry.kind, "time": entry.time.isoformat()}
    if isinstance(entry, CorrectedMask):
        row["changed"] = json.dumps(entry.changed)
    return row


def as_entry(row: Any) -> Entry:
    """The entry of a row, of any mapping by column.

    Raises:
        FeedbackError: The row is damaged.
    """
    kind = KINDS.get(row["kind"])
    if kind is None:
        raise FeedbackError(f"entry {row['id']}: kind {row['kind']!r} is not known; update medfm-rl")
    values = {field.name: row[_COLUMN_OF.get(field.name, field.name)] for field in fields(kind)}
    values["time"] = datetime.fromisoformat(values["time"]).astimezone(UTC)
    if "changed" in values:
        values["changed"] = tuple(json.loads(values["changed"]))
    return kind(**values)
