"""The tables of a desk: made once, whoever is first, and what was said there is never changed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy.exc import DBAPIError

from medfm_rl.errors import UserError
from medfm_rl.feedback import FeedbackStore
from medfm_rl.feedback.connection import connect
from medfm_rl.service.database import Database
from medfm_rl.service.tables import DESK

AT_ONCE = 4


def require_append_only(database: Database) -> None:
    """What is in the audit log stays, whatever the database is asked."""
    statements = ["UPDATE desk_audit SET reviewer = 'x'", "DELETE FROM desk_audit"]
    if database.engine.dialect.name == "sqlite":
        statements.append("INSERT OR REPLACE INTO desk_audit SELECT * FROM desk_audit")
    else:
        statements.append("TRUNCATE desk_audit")
    before = database.notes(0, 100)
    assert len(before) == 1
    for statement in statements:
        with pytest.raises((DBAPIError, UserError), match="only added to"), database.writing() as connection:
            connection.exec_driver_sql(statement)
    assert database.notes(0, 100) == before


def test_lines_of_the_audit_log_are_neither_changed_replaced_nor_deleted(place: Path | str) -> None:
    FeedbackStore.create(place).close()
    database = Database(place)
    database.note("r1", "read case")
    require_append_only(database)
    database.close()


def test_a_desk_of_version_1_gets_what_it_lacked(place: Path | str) -> None:
    """There, rows could be replaced, and on a server all of them deleted at once."""
    FeedbackStore.create(place).close()
    engine = connect(place)
    replace(DESK, newest=1).prepare(engine, "store")
    with engine.begin() as connection:
        for table in ("desk_decisions", "desk_audit"):
            missing = f"{table}_insert" if engine.dialect.name == "sqlite" else f"{table}_all ON {table}"
            connection.exec_driver_sql(f"DROP TRIGGER {missing}")
    for _ in range(2):
        database = Database(place)
        database.close()
    database.note("r1", "read case")
    require_append_only(database)
    with database.reading() as connection:
        assert connection.exec_driver_sql("SELECT version FROM desk_versions ORDER BY version").all() == [(1,), (2,)]
    database.close()


def test_desks_that_open_a_new_store_at_once_make_its_tables_once(place: Path | str) -> None:
    FeedbackStore.create(place).close()
    together = Barrier(AT_ONCE)

    def open_and_write(number: int) -> None:
        together.wait(60)
        database = Database(place)
        database.note(f"r{number}", "read case")
        database.close()

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(open_and_write, range(AT_ONCE)))
    database = Database(place)
    assert sorted(line["reviewer"] for line in database.notes(0, 100)) == ["r0", "r1", "r2", "r3"]
    database.close()
