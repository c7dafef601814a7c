"""The store: entries and masks in a database that is only added to, with any number of writers."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from sqlalchemy import insert, inspect, select, text
from sqlalchemy.engine import Connection, Engine

from medfm_rl.choices import Drawn
from medfm_rl.data.files import cannot_be_read
from medfm_rl.data.locks import in_turn
from medfm_rl.feedback.checks import require_a_fault, require_entries, require_in_force, require_masks
from medfm_rl.feedback.connection import LONGEST_WAIT, answering, connect, is_url, shown, writing
from medfm_rl.feedback.entries import (
    KINDS,
    Entry,
    Feedback,
    Kind,
    Removal,
    masks_of,
)
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.mask_places import MaskFolder, MaskPlace, MaskRows, described, mask_folder_of
from medfm_rl.feedback.masks import Mask
from medfm_rl.feedback.questions import by_time, names_of_masks, read_history, read_history_of
from medfm_rl.feedback.standing import (
    Standing,
    describe,
    require_consistent,
    require_one_patient,
    say_the_same,
    standing,
    state_hash,
)
from medfm_rl.feedback.tables import ENTRIES, MASKS, STORE, as_row

Beside = Callable[[Connection, "Added"], None]
"""Writes to other tables of the database in the transaction of an addition; what it raises undoes all of it."""


@dataclass(frozen=True)
class Added:
    """What came of an addition.

    Attributes:
        entries: What is new in the store.
        repeated: What said nothing that was not in force already, and was left out.
        replaced: Pairs of an entry that is no longer in force, and the new one of the same reviewer that contradicts
            it.
        known: For each of `repeated` the entry of the store that says the same; in `merge`, itself.
    """

    entries: tuple[Entry, ...]
    repeated: tuple[Entry, ...]
    replaced: tuple[tuple[Feedback, Feedback], ...]
    known: tuple[Entry, ...] = ()


@final
class FeedbackStore:
    """Entries of reviewers and reports, and the masks that they name.

    Nothing in it is ever changed or deleted, which the database sees to. `open` and `create` give one; it can be used
    as a context manager, by several threads, and by any number of processes that each open it.

    Attributes:
        where: Its name, without a password.
    """

    def __init__(self, engine: Engine, where: str, places: MaskPlace) -> None:
        self.where = where
        self._engine = engine
        self._places = places

    @classmethod
    def open(cls, where: Path | str) -> Self:
        """Opens a store; one of an older version is brought to today's.

        Args:
            where: A SQLite file, or the URL of a PostgreSQL database (`postgresql://USER@HOST/DATABASE`).

        Raises:
            FeedbackError: There is none, it is of a newer version, or does not answer.
            ConfigError: The URL is of another kind.
            MissingExtraError: psycopg is needed and not installed.
        """
        return cls._prepared(where, create=False)

    @classmethod
    def create(cls, where: Path | str) -> Self:
        """Opens a store, and makes one where there is none. Of a server the database itself must be there.

        Raises:
            FeedbackError: It cannot be made, is of a newer version, or does not answer.
            ConfigError: The URL is of another kind.
            MissingExtraError: psycopg is needed and not installed.
        """
        return cls._prepared(where, create=True)

    @classmethod
    def _prepared(cls, where: Path | str, create: bool) -> Self:
        engine, name = connect(where), shown(where)
        if is_url(where):
            with answering(name, writes=create):
                _prepare(engine, name, create)
            return cls(engine, name, MaskRows())
        path = Path(where)
        _require_file(path, create)
        with answering(name, writes=create):
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
                with in_turn(path):
                    _use_log(engine)
                    _prepare(engine, name, create)
            else:
                _prepare(engine, name, create)
        return cls(engine, name, MaskFolder(mask_folder_of(path)))

    def close(self) -> None:
        """Ends the connections; the store can still be used, and opens new ones."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, entries: Sequence[Entry], masks: Iterable[Mask] = (), beside: Beside | None = None) -> Added:
        """Adds entries with the masks that they name: all of them, or none.

        What is in force already is not added again, so that a call can be repeated. Where a reviewer said something
        else before, the new entry is in force (`Added.replaced`). The masks are on the disk before an entry names them.

        Args:
            entries: New entries.
            masks: Masks that are not yet in the store; those that are may be among them.
            beside: Called at the end of the transaction with what is added, to write what has to be there with it or
                not at all.

        Raises:
            FeedbackError: Entries contradict each other, name a mask, structure or entry that is not there, or an image
                has two patients; the disk is full, or the database does not answer. Nothing was added.
        """
        require_consistent([entry for entry in entries if isinstance(entry, Feedback)])
        kept = self._keep(masks, {name for entry in entries for name in masks_of(entry)})
        with answering(self.where), writing(self._engine).begin() as connection:
            _wait_for_turn(connection)
            before = read_history_of(connection, entries)
            new, repeated = _without_repeats(entries, standing(before).in_force)
            self._append(connection, new, kept, before)
            named = sorted({name for entry in new for name in masks_of(entry)})
            require_a_fault(new, names_of_masks(connection, named))
            after = _standing_after(before, new)
            require_in_force(new, after)
            added = Added(
                tuple(new),
                tuple(entry for entry, _ in repeated),
                _replacements(before, after),
                tuple(known for _, known in repeated),
            )
            if beside is not None:
                beside(connection, added)
            return added

    def merge(self, history: Sequence[Entry], masks: Iterable[Mask] = ()) -> Added:
        """Adds the history of another store, or a part of it, with its ids and times: all of it, or nothing.

        Entries that are there are left out. The order of two stores that are merged does not matter: of two
        contradicting entries of one reviewer the later one is in force, wherever it was added.

        Args:
            history: What `history` of the other store gave.
            masks: Its masks.

        Raises:
            FeedbackError: As in `add`; or an id stands for something else here.
        """
        kept = self._keep(masks, {name for entry in history for name in masks_of(entry)})
        with answering(self.where), writing(self._engine).begin() as connection:
            _wait_for_turn(connection)
            before = read_history(connection)
            known = {entry.id: entry for entry in before}
            for entry in history:
                if entry.id in known and not say_the_same(known[entry.id], entry):
                    raise FeedbackError(
                        f"{self.where}: entry {entry.id} is {describe(known[entry.id])} here and {describe(entry)} "
                        "there; one of the two stores was changed by hand. Nothing was added"
                    )
            new = [entry for entry in history if entry.id not in known]
            self._append(connection, new, kept, before)
            repeated = tuple(entry for entry in history if entry.id in known)
            return Added(tuple(new), repeated, _replacements(before, _standing_after(before, new)), repeated)

    def entries(
        self,
        kinds: Collection[Kind] | None = None,
        *,
        reviewers: Collection[str] | None = None,
        patients: Collection[str] | None = None,
        images: Collection[str] | None = None,
        drawn: Collection[Drawn] | None = None,
    ) -> list[Feedback]:
        """What is in force, in the order in which it was said.

        Args:
            kinds: Those alone; all where it is None, as in the others.
            reviewers: Those of these alone.
            patients: Those on these alone.
            images: Those on images of these hashes alone.
            drawn: Those whose cases came to be reviewed in this way alone.

        Raises:
            FeedbackError: A kind is not known, or the database does not answer.
        """
        unknown = sorted(set(kinds or ()) - KINDS.keys())
        if unknown:
            raise FeedbackError(f"kind {unknown[0]!r} is not known; there are {', '.join(KINDS)}")
        wanted: tuple[tuple[Collection[str] | None, Callable[[Feedback], str | None]], ...] = (
            (kinds, lambda entry: entry.kind),
            (reviewers, lambda entry: entry.reviewer),
            (patients, lambda entry: entry.patient),
            (images, lambda entry: entry.image_sha256),
            (drawn, lambda entry: entry.drawn),
        )
        return [
            entry
            for entry in self.standing().in_force
            if all(values is None or value_of(entry) in values for values, value_of in wanted)
        ]

    def history(self) -> list[Entry]:
        """Everything that was ever added, in the order in which it was said.

        Raises:
            FeedbackError: The database does not answer.
        """
        with answering(self.where, writes=False), self._engine.begin() as connection:
            return read_history(connection)

    def standing(self) -> Standing:
        """What is in force, and what took the rest out of it.

        Raises:
            FeedbackError: The database does not answer.
        """
        return standing(self.history())

    def state_hash(self) -> str:
        """SHA-256 over what is in force, whatever the order, ids, times and comments: what a run learned from.

        Raises:
            FeedbackError: The database does not answer.
        """
        return state_hash(self.standing().in_force)

    def entry(self, start: str) -> Entry:
        """An entry by its id, or by as much of it as tells it from the others.

        Raises:
            FeedbackError: There is none, or more than one.
        """
        found = [entry for entry in self.history() if entry.id.startswith(start)]
        if len(found) != 1 or not start:
            count = "no entry" if not found else f"{len(found)} entries"
            raise FeedbackError(f"{self.where}: {count} of id {start}; `medfm-rl feedback list --ids` names them")
        return found[0]

    def mask(self, sha256: str) -> Mask:
        """A mask, checked by its hash.

        Raises:
            FeedbackError: There is none, or it is damaged; or the database does not answer.
        """
        with answering(self.where, writes=False), self._engine.begin() as connection:
            row = connection.execute(select(MASKS).where(MASKS.c.sha256 == sha256)).mappings().one_or_none()
        if row is None:
            raise FeedbackError(f"{self.where}: has no mask {sha256}")
        return self._places.load(row)

    def _keep(self, masks: Iterable[Mask], named: Collection[str]) -> dict[str, tuple[Mask, bytes | None]]:
        """Makes those masks durable that are named; with what goes into their rows."""
        wanted = {mask.sha256: mask for mask in masks if mask.sha256 in named}
        return {sha256: (mask, self._places.keep(mask)) for sha256, mask in wanted.items()}

    def _append(
        self,
        connection: Connection,
        new: Sequence[Entry],
        masks: Mapping[str, tuple[Mask, bytes | None]],
        before: Sequence[Entry],
    ) -> None:
        if not new:
            return
        feedback = [entry for entry in new if isinstance(entry, Feedback)]
        require_one_patient(feedback, standing(before).in_force)
        require_entries(new, before)
        named = sorted({name for entry in new for name in masks_of(entry)})
        known = names_of_masks(connection, named)
        require_masks(new, known | {sha256: mask.names for sha256, (mask, _) in masks.items()})
        missing = [masks[name] for name in named if name not in known]
        if missing:
            connection.execute(insert(MASKS), [{**described(mask), "content": content} for mask, content in missing])
        # Removals name entries, which have to be there first.
        ordered = sorted(new, key=lambda entry: isinstance(entry, Removal))
        connection.execute(insert(ENTRIES), [as_row(entry) for entry in ordered])


def _require_file(path: Path, create: bool) -> None:
    """Says what lies at a path where it can be no store."""
    if path.is_dir():
        raise FeedbackError(f"{path}: is a folder; a store is a file, such as {path / 'feedback.sqlite'}")
    if path.exists() and not os.access(path, os.R_OK):
        raise cannot_be_read(path, PermissionError())
    if not create and not path.exists():
        raise FeedbackError(f"{path}: there is no store; `medfm-rl feedback add` makes one")


def _prepare(engine: Engine, where: str, create: bool) -> None:
    """Sees to it that there is a store of the newest version."""
    with engine.begin() as connection:
        tables = inspect(connection).get_table_names()
    if STORE.versions.name not in tables:
        if tables and engine.dialect.name == "sqlite":
            raise FeedbackError(
                f"{where}: is a database of something else (it has a table {tables[0]}); give a file of its own"
            )
        if not create:
            raise FeedbackError(f"{where}: holds no feedback; `medfm-rl feedback add` makes a store")
    STORE.prepare(engine, where)


def _use_log(engine: Engine) -> None:
    """Has SQLite write ahead, so that nobody who reads waits for who writes; the file remembers it."""
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        raw.execute("PRAGMA journal_mode = WAL")


def _wait_for_turn(connection: Connection) -> None:
    """Lets one writer at a time see what is there and add to it; SQLite does so with the transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{LONGEST_WAIT}s'"))
        connection.execute(text(f"LOCK TABLE {ENTRIES.name} IN SHARE ROW EXCLUSIVE MODE"))


def _without_repeats(
    entries: Sequence[Entry], in_force: Sequence[Feedback]
) -> tuple[list[Entry], list[tuple[Entry, Entry]]]:
    """What is new; and what says nothing that is not in force already, or said twice, with what said it."""
    said: dict[object, list[Entry]] = {}
    for known in in_force:
        said.setdefault(_key(known), []).append(known)
    new: list[Entry] = []
    repeated: list[tuple[Entry, Entry]] = []
    for entry in entries:
        rivals = said.setdefault(_key(entry), [])
        same = next((rival for rival in rivals if say_the_same(entry, rival)), None)
        if same is not None:
            repeated.append((entry, same))
        else:
            rivals.append(entry)
            new.append(entry)
    return new, repeated


def _key(entry: Entry) -> object:
    patient = entry.patient if isinstance(entry, Feedback) else None
    return entry.kind, entry.reviewer, patient


def _standing_after(before: Sequence[Entry], new: Sequence[Entry]) -> Standing:
    return standing(sorted((*before, *new), key=by_time))


def _replacements(before: Sequence[Entry], after: Standing) -> tuple[tuple[Feedback, Feedback], ...]:
    """What was in force and is not any more, because of what is new."""
    held = {entry.id: entry for entry in standing(before).in_force}
    return tuple((held[name], later) for name, later in after.replaced.items() if name in held)
