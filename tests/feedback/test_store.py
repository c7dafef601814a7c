"""A store takes all of a call or nothing, forgets nothing, and says what is in force."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event, insert
from support.feedback_entries import CORRECTED, SHOWN, correction, ef, on, verdict
from support.feedback_writers import CALLS, KILLED, start
from support.postgresql_server import Server

from medfm_rl.errors import ConfigError, MissingExtraError
from medfm_rl.feedback import (
    Entry,
    FeedbackError,
    FeedbackStore,
    Grade,
    Measurement,
    Preference,
    Removal,
    Verdict,
)
from medfm_rl.feedback import connection as connections
from medfm_rl.feedback import store as store_module
from medfm_rl.feedback.connection import connect
from medfm_rl.feedback.errors import StoreError
from medfm_rl.feedback.tables import STORE, VersionRow

MASKS = [SHOWN, CORRECTED]


def sqlite_error(name: str, said: str) -> sqlite3.OperationalError:
    """What SQLite answers."""
    error = sqlite3.OperationalError(said)
    error.sqlite_errorname = name
    return error


class ServerError(Exception):
    """What the driver of a server raises."""


ServerError.__name__ = "OperationalError"


@pytest.fixture
def store(place: Path | str) -> FeedbackStore:
    return FeedbackStore.create(place)


def every_kind() -> list[Entry]:
    return [
        correction(),
        verdict("reject", "p2_a", structure="MYO", comment="too thick", drawn="audit"),
        Grade(**on("p3_a"), mask_sha256=SHOWN.sha256, grade=3, model_hash="c" * 64),
        Preference(**on("p4_a"), better_sha256=CORRECTED.sha256, worse_sha256=SHOWN.sha256, structure="LV"),
        ef(0.1 + 0.2 + 50, uncertainty=1 / 3),
        Measurement(**on("p5_a"), name="area", value=1234.5, unit="mm2", structure="LV"),
    ]


def test_every_kind_comes_back_as_it_was(store: FeedbackStore, place: Path | str) -> None:
    entries = every_kind()
    added = store.add(entries, MASKS)
    assert added.entries == tuple(entries)
    store.close()
    again = FeedbackStore.open(place)
    assert again.history() == entries
    assert again.entries() == entries
    assert again.entries(["mask", "grade"]) == [entries[0], entries[2]]
    assert again.entries(drawn=["audit"]) == [entries[1]]
    assert again.entries(patients=["p1"], reviewers=["r1"]) == [entries[0], entries[4]]


def test_masks_come_back_with_their_place(store: FeedbackStore) -> None:
    store.add([correction()], MASKS)
    found = store.mask(CORRECTED.sha256)
    assert (found.labels == CORRECTED.labels).all()
    assert (found.names, found.geometry) == (CORRECTED.names, CORRECTED.geometry)


def test_the_same_again_adds_nothing(store: FeedbackStore) -> None:
    store.add([correction(), ef()], MASKS)
    before = store.state_hash()
    added = store.add([correction(), ef(comment="again")], MASKS)
    assert (added.entries, len(added.repeated)) == ((), 2)
    assert len(store.history()) == 2
    assert store.state_hash() == before


def test_the_later_of_two_contradicting_entries_is_in_force_and_both_are_kept(store: FeedbackStore) -> None:
    first, second = ef(55), ef(60)
    store.add([first])
    added = store.add([second])
    assert added.replaced == ((first, second),)
    assert store.entries() == [second]
    assert store.history() == [first, second]


def test_a_call_that_contradicts_itself_is_refused(store: FeedbackStore) -> None:
    with pytest.raises(FeedbackError, match="patient p1: reviewer r1 contradicts itself: EF 55 %, and EF 60 %"):
        store.add([ef(55), ef(60), ef(50, "p2")])
    assert store.history() == []


def test_a_mask_that_is_rejected_with_every_structure_accepted_is_refused(store: FeedbackStore) -> None:
    parts: list[Entry] = [verdict("accept", structure=name) for name in SHOWN.names[1:]]
    with pytest.raises(FeedbackError, match="each of its structures is accepted; reject the one that is at fault"):
        store.add([verdict("reject"), *parts], MASKS)
    assert store.history() == []
    store.add([verdict("reject"), *parts[1:]], MASKS)
    assert len(store.history()) == len(parts)


def test_reviewers_are_kept_apart(store: FeedbackStore) -> None:
    store.add([verdict("accept", reviewer="r1"), verdict("reject", reviewer="r2")], MASKS)
    assert len(store.entries()) == 2


def test_a_removal_takes_out_of_force_and_brings_back_what_was_replaced(store: FeedbackStore) -> None:
    first, second = ef(55), ef(60)
    store.add([first])
    store.add([second])
    store.add([Removal(reviewer="r9", removes=second.id, reason="another patient's report")])
    assert store.entries() == [first]
    assert len(store.history()) == 3
    with pytest.raises(FeedbackError, match="r9 has removed it already"):
        store.add([Removal(reviewer="r1", removes=second.id, reason="again")])


def test_what_is_not_there_cannot_be_removed(store: FeedbackStore) -> None:
    gone = Removal(reviewer="r1", removes=ef().id, reason="typing error")
    with pytest.raises(FeedbackError, match=f"entry {gone.removes}: is not in the store"):
        store.add([gone])


def test_an_entry_is_found_by_the_beginning_of_its_id(store: FeedbackStore) -> None:
    entry = ef()
    store.add([entry])
    assert store.entry(entry.id[:8]) == entry
    with pytest.raises(FeedbackError, match="no entry of id zzz"):
        store.entry("zzz")


def test_the_state_depends_on_what_is_said_and_not_on_order_or_time(tmp_path: Path) -> None:
    one, other = (FeedbackStore.create(tmp_path / name) for name in ("a.sqlite", "b.sqlite"))
    one.add([ef(), correction()], MASKS)
    other.add([correction(comment="late")], MASKS)
    assert one.state_hash() != other.state_hash()
    other.add([ef()])
    assert one.state_hash() == other.state_hash()


def test_an_entry_without_its_mask_is_refused_and_nothing_is_added(store: FeedbackStore) -> None:
    with pytest.raises(FeedbackError, match=f"case p1_a: mask {CORRECTED.sha256} is not in the store"):
        store.add([ef(), correction()], [SHOWN])
    assert store.history() == []


def test_a_structure_that_the_mask_does_not_have_is_refused(store: FeedbackStore) -> None:
    with pytest.raises(FeedbackError, match="case p1_a: there is no structure 'RV' in the mask, it has LV, MYO"):
        store.add([verdict(structure="RV")], MASKS)


def test_an_image_of_two_patients_is_refused(store: FeedbackStore) -> None:
    store.add([verdict()], MASKS)
    other = Verdict(**{**on(), "patient": "p9", "reviewer": "r2"}, mask_sha256=SHOWN.sha256, decision="accept")
    with pytest.raises(FeedbackError, match=r"is of patient p9 here, and the same image was of patient p1"):
        store.add([other])


def test_a_clock_that_is_behind_is_named(store: FeedbackStore) -> None:
    entry = ef(55)
    store.add([entry])
    with pytest.raises(FeedbackError, match="set the clock of this machine"):
        store.add([replace(ef(60), time=entry.time - timedelta(hours=1))])


def test_the_database_itself_refuses_changes(place: Path | str, store: FeedbackStore) -> None:
    store.add([correction()], MASKS)
    kept = store.history()
    for statement in (
        "UPDATE feedback_entries SET reviewer = 'x'",
        "DELETE FROM feedback_entries",
        "UPDATE feedback_masks SET names = 'x'",
        "DELETE FROM feedback_masks",
    ):
        with (
            pytest.raises(sqlalchemy.exc.SQLAlchemyError, match="only added to"),
            connect(place).begin() as connection,
        ):
            connection.exec_driver_sql(statement)
    assert store.history() == kept


def test_sqlite_refuses_to_replace_a_row(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    FeedbackStore.create(path).add([ef()])
    database = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="only added to"):
        database.execute("INSERT OR REPLACE INTO feedback_entries SELECT * FROM feedback_entries")
    database.close()


def test_a_store_of_a_newer_version_is_refused_by_name(place: Path | str, store: FeedbackStore) -> None:
    store.close()
    with connect(place).begin() as connection:
        connection.execute(insert(VersionRow).values(version=99, time="2030-01-01", medfm_rl="9.0"))
    with pytest.raises(FeedbackError, match=r"version 99, made by medfm-rl 9\.0, .* update medfm-rl"):
        FeedbackStore.open(place)


def test_an_older_store_is_brought_to_todays_version_once(
    place: Path | str, store: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add([ef()])
    store.close()

    def add_column(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE feedback_entries ADD COLUMN room VARCHAR(8)")

    newer = replace(STORE, newest=STORE.newest + 1, migrations={STORE.newest: add_column})
    monkeypatch.setattr(store_module, "STORE", newer)
    for _ in range(2):
        assert len(FeedbackStore.open(place).history()) == 1


def test_a_migration_that_fails_leaves_the_store_as_it_was(
    place: Path | str, store: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()

    def fail(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE feedback_entries ADD COLUMN room VARCHAR(8)")
        connection.exec_driver_sql("SELECT nothing FROM nowhere")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "STORE", replace(STORE, newest=STORE.newest + 1, migrations={STORE.newest: fail}))
        with pytest.raises(FeedbackError):
            FeedbackStore.open(place)
    FeedbackStore.open(place).add([ef()])
    with connect(place).begin() as connection:
        assert "room" not in {row["name"] for row in sqlalchemy.inspect(connection).get_columns("feedback_entries")}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no database at all, but text\n" * 50, "is no SQLite file"), (None, "there is no store")],
)
def test_what_is_no_store_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "store"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FeedbackError, match=f"{re.escape(str(path))}: {message}"):
        FeedbackStore.open(path)


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE runs (id INTEGER)")
    database.close()
    with pytest.raises(FeedbackError, match=r"a database of something else .* runs"):
        FeedbackStore.create(path)


@pytest.mark.parametrize("url", ["mysql://u@h/d", "postgresql://:::/"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="postgresql://"):
        FeedbackStore.open(url)


def test_a_missing_driver_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"medfm-rl\[postgresql\]"):
        FeedbackStore.open("postgresql://u:secret@h/d")


def test_a_full_disk_under_the_database_is_named_and_nothing_is_added(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    store = FeedbackStore.create(path)
    store.add([ef()])
    pages = path.stat().st_size // 4096

    @event.listens_for(store._engine, "connect")
    def _limit(connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    many = [ef(50, f"p{number}", comment="x" * 1000) for number in range(200)]
    with pytest.raises(StoreError, match=r"the disk is full .* make room\. Nothing of this call was added"):
        store.add(many)
    again = FeedbackStore.open(path)
    assert len(again.history()) == 1
    again.add(many)
    assert len(again.history()) == 201


def test_a_store_on_a_disk_that_is_read_only_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a write-ahead log SQLite makes files beside its own, which cannot be where nobody may write."""
    path = tmp_path / "read only?" / "feedback.sqlite"
    with FeedbackStore.create(path) as store:
        store.add([ef()])
    before = sorted(path.parent.iterdir())
    access = os.access
    monkeypatch.setattr(os, "access", lambda place, mode: mode != os.W_OK and access(place, mode))
    with FeedbackStore.open(path) as store:
        assert [entry.patient for entry in store.entries()] == ["p1"]
        with pytest.raises(FeedbackError, match=r"cannot be opened or written .* Nothing of this call was added"):
            store.add([ef(60)])
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        (sqlite_error("SQLITE_IOERR_SHMSIZE", "disk I/O error"), "see whether the disk is full, or gone"),
        (ServerError('connection failed: FATAL:  database "x" does not exist'), "has no such database .*createdb"),
        (ServerError("connection failed: refused"), "the database went away, or cannot be reached"),
    ],
)
@pytest.mark.parametrize("writes", [True, False])
def test_what_a_database_answers_is_said_as_it_is(origin: Exception, message: str, writes: bool) -> None:
    with pytest.raises(FeedbackError, match=message) as caught, connections.answering("store", writes):
        raise sqlalchemy.exc.OperationalError("SELECT 1", {}, origin)
    assert writes or "of this call was added" not in str(caught.value)


def test_a_full_disk_under_the_masks_is_named_and_nothing_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeedbackStore.create(tmp_path / "feedback.sqlite")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("medfm_rl.data.files._sync", full)
        with pytest.raises(StoreError, match=r"No space left on device.* Nothing was added to the store"):
            store.add([correction()], MASKS)
    assert store.history() == []
    assert not list(tmp_path.rglob("*.nii.gz"))
    store.add([correction()], MASKS)
    assert len(list(tmp_path.rglob("*.nii.gz"))) == 2


def test_a_mask_that_was_changed_or_lost_is_named(tmp_path: Path) -> None:
    store = FeedbackStore.create(tmp_path / "feedback.sqlite")
    store.add([correction()], MASKS)
    files = {path.parent.name + path.name.removesuffix(".nii.gz"): path for path in tmp_path.rglob("*.nii.gz")}
    files[SHOWN.sha256].write_bytes(files[CORRECTED.sha256].read_bytes())
    with pytest.raises(FeedbackError, match=f"mask {SHOWN.sha256}: its content has changed"):
        store.mask(SHOWN.sha256)
    files[CORRECTED.sha256].unlink()
    with pytest.raises(FeedbackError, match="put the masks of the store back from a copy"):
        store.mask(CORRECTED.sha256)


def test_several_processes_make_a_store_and_write_to_it_at_once(place: Path | str) -> None:
    writers = [start("write", place, number) for number in range(3)]
    for writer in writers:
        _, problem = writer.communicate(timeout=200)
        assert writer.returncode == 0, problem
    assert len(FeedbackStore.open(place).entries()) == 3 * 2 * CALLS


def test_a_writer_that_is_killed_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    FeedbackStore.create(path).close()
    writer = start("die", path)
    writer.communicate(timeout=200)
    assert writer.returncode == KILLED
    store = FeedbackStore.open(path)
    assert store.history() == []
    store.add([ef()])


@pytest.mark.postgresql
def test_a_server_that_goes_away_in_the_middle_is_named_and_nothing_is_lost(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeedbackStore.create(server.new_database("goes_away"))
    store.add([ef(50, "p0")])

    def cut(*args: object) -> None:
        server.stop()

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "require_in_force", cut)
        with pytest.raises(FeedbackError, match=r"the database went away, .* Nothing of this call was added"):
            store.add([correction(), ef()], MASKS)
    with pytest.raises(StoreError, match="the database went away, or cannot be reached"):
        store.history()
    server.start()
    assert len(store.history()) == 1
    store.add([correction(), ef()], MASKS)
    assert len(store.history()) == 3


@pytest.mark.postgresql
def test_a_database_that_is_not_there_is_named_without_the_password(server: Server) -> None:
    with pytest.raises(FeedbackError, match="nowhere") as caught:
        FeedbackStore.open(f"postgresql://medfm:secret@/nowhere?host={server.folder}")
    assert "secret" not in str(caught.value)
