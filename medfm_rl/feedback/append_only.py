"""Tables that are only added to: the database itself refuses to change, replace or delete their rows, whoever asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Table, UniqueConstraint
from sqlalchemy.engine import Connection


def forbid_changes(connection: Connection, tables: Sequence[Table], refusal: str) -> None:
    """Makes the triggers that refuse; those that are there already stay, so that it can be called again.

    Args:
        connection: A transaction.
        tables: The tables, which are there.
        refusal: What the database says to who tries.
    """
    triggers = _of_sqlite if connection.dialect.name == "sqlite" else _of_postgresql
    for table in tables:
        for statement in triggers(table, refusal):
            connection.exec_driver_sql(statement)


def _of_sqlite(table: Table, refusal: str) -> Iterator[str]:
    name = table.name
    # INSERT OR REPLACE deletes without asking the triggers of DELETE.
    same = " OR ".join(" AND ".join(f"{column} = NEW.{column}" for column in key) for key in _keys_of(table))
    replaces = f"WHEN EXISTS (SELECT 1 FROM {name} WHERE {same})"
    for action, condition in (("UPDATE", ""), ("DELETE", ""), ("INSERT", replaces)):
        yield (
            f"CREATE TRIGGER IF NOT EXISTS {name}_{action.lower()} BEFORE {action} ON {name} {condition} "
            f"BEGIN SELECT RAISE(ABORT, '{refusal}'); END"
        )


def _keys_of(table: Table) -> Iterator[list[str]]:
    """Columns that together tell a row from every other."""
    for constraint in (table.primary_key, *table.constraints):
        if constraint is table.primary_key or isinstance(constraint, UniqueConstraint):
            yield [column.name for column in constraint.columns]


def _of_postgresql(table: Table, refusal: str) -> Iterator[str]:
    name = table.name
    yield (
        f"CREATE OR REPLACE FUNCTION {name}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{refusal}'; END $$"
    )
    # TRUNCATE deletes without asking the triggers of rows.
    for trigger, asked in ((f"{name}_rows", "UPDATE OR DELETE ON {} FOR EACH ROW"), (f"{name}_all", "TRUNCATE ON {}")):
        yield f"DROP TRIGGER IF EXISTS {trigger} ON {name}"
        yield f"CREATE TRIGGER {trigger} BEFORE {asked.format(name)} EXECUTE FUNCTION {name}_refuse()"
