"""From what a reviewer says to entries of the feedback store: recorded with them, or not at all."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from sqlalchemy import insert, select
from sqlalchemy.engine import Connection

from medfm_rl.feedback import Added, Entry, Feedback, Mask, Removal
from medfm_rl.service.access import Principal
from medfm_rl.service.catalogue import Item
from medfm_rl.service.database import Database, add_note, alone, digest_of
from medfm_rl.service.drafts import tidy
from medfm_rl.service.errors import DeskError
from medfm_rl.service.leases import release, require_no_other
from medfm_rl.service.meaning import Answer, entries_of
from medfm_rl.service.said import Decision, as_text
from medfm_rl.service.showing import Showing
from medfm_rl.service.tables import DecisionRow, now_text
from medfm_rl.service.work import Work

_REASON = "taken back at the desk"


@dataclass(frozen=True)
class Recorded:
    """A decision that is durable.

    Attributes:
        decision: Its id.
        entries: What stands in the store for it; its own id where that holds nothing of it.
        item: The item.
    """

    decision: str
    entries: tuple[str, ...]
    item: str


class _KnownError(Exception):
    """The same was sent before, and is recorded: what the transaction was about to add is not added."""

    def __init__(self, recorded: Recorded) -> None:
        super().__init__(recorded.decision)
        self.recorded = recorded


@final
class Decisions:
    """Records decisions and takes them back.

    Args:
        database: Where they go.
        showing: Knows what was shown.
        work: Follows them.
    """

    def __init__(self, database: Database, showing: Showing, work: Work) -> None:
        self._database = database
        self._showing = showing
        self._work = work

    def record(
        self,
        item: Item,
        who: Principal,
        answers: Sequence[Answer],
        seconds: float,
        comment: str,
        key: str | None,
        body: str,
    ) -> Recorded:
        """Records a decision, and returns when it is durable.

        Args:
            item: What is decided.
            who: The reviewer.
            answers: What he says.
            seconds: How long he looked.
            comment: Goes with every entry.
            key: Under which it is sent: a second time it gives the first answer, and adds nothing.
            body: SHA-256 of the request, to tell a repeated one from another under the same key.

        Raises:
            DeskError: It says nothing, contradicts itself or what was shown, another reviewer works on the item, or the
                key was used for something else.
            UserError: An image or mask cannot be read, or the store does not take it.
        """
        digest = None if key is None else digest_of(who.reviewer, key)
        known = self._known(digest, body)
        if known is not None:
            return known
        made = entries_of(self._showing, item, who, answers, comment, self._work.readings_of(item))
        name = str(uuid.uuid4())
        row = {
            "id": name,
            "item": item.id,
            "case_name": item.view.name,
            "reviewer": who.reviewer,
            "seconds": seconds,
            "comment": comment,
            "said": as_text(made.said),
            "undoes": None,
            "key_digest": digest,
            "body_sha256": None if digest is None else body,
        }
        image = next((entry.image_sha256 for entry in made.entries if isinstance(entry, Feedback)), None)

        def beside(connection: Connection, added: Added) -> None:
            alone(connection)
            require_no_other(connection, item.id, who.reviewer)
            self._insert(connection, row, _ids(made.entries, added), digest, body)
            release(connection, item.id, who.reviewer)
            tidy(
                connection,
                item.view.id,
                who.reviewer,
                [part.mask for part in made.said if part.kind == "mask" and part.mask],
            )
            add_note(connection, who.reviewer, "decide", item.view.name, image, decision=name, item=item.id)

        return self._commit(made.entries, list(made.masks.values()), beside, name)

    def undo(self, name: str, who: Principal, key: str | None, body: str) -> Recorded:
        """Takes a decision back by a further entry for each that it made.

        Args:
            name: The decision, or one of its entries.
            who: Who takes it back: who decided, or a lead.
            key: As in `record`.
            body: As in `record`.

        Raises:
            DeskError: There is none, it was taken back, or is another's.
            FeedbackError: The store does not take it.
        """
        digest = None if key is None else digest_of(who.reviewer, key)
        known = self._known(digest, body)
        if known is not None:
            return known
        self._work.refresh()
        found = self._work.decision(name)
        if found is None or found.undoes is not None:
            raise DeskError(404, "not_found", f"there is no decision {name}", "reload the page")
        if found.reviewer != who.reviewer and not who.may("lead"):
            raise DeskError(403, "role", f"reviewer {found.reviewer} decided that", "ask him, or a lead")
        if self._work.is_undone(found):
            raise DeskError(409, "undone", f"decision {name} was taken back already", "reload the page")
        removals = [
            Removal(reviewer=who.reviewer, removes=entry, reason=_REASON)
            for entry in found.entries
            if entry != found.id
        ]
        new = str(uuid.uuid4())
        row = {
            "id": new,
            "item": found.item,
            "case_name": found.case,
            "reviewer": who.reviewer,
            "seconds": 0.0,
            "comment": "",
            "said": as_text([]),
            "undoes": found.id,
            "key_digest": digest,
            "body_sha256": None if digest is None else body,
        }

        def beside(connection: Connection, added: Added) -> None:
            alone(connection)
            self._require_standing(connection, found)
            self._insert(connection, row, _ids(removals, added), digest, body)
            add_note(connection, who.reviewer, "undo", found.case, None, decision=found.id, item=found.item)

        return self._commit(removals, [], beside, new)

    def _commit(self, entries: Sequence[Entry], masks: Sequence[Mask], beside: Any, name: str) -> Recorded:
        """Adds entries and rows in one transaction."""
        try:
            if entries:
                self._database.store.add(entries, masks, beside)
            else:
                with self._database.writing() as connection:
                    beside(connection, Added((), (), ()))
        except _KnownError as known:
            return known.recorded
        self._work.refresh()
        found = self._work.decision(name)
        assert found is not None
        return Recorded(found.id, found.entries, found.item)

    def _insert(
        self, connection: Connection, row: dict[str, Any], entries: Sequence[str], digest: str | None, body: str
    ) -> None:
        # Here nobody else writes: what another process has recorded under this key is seen now or never.
        found = _row_of_key(connection, digest)
        if found is not None:
            raise _KnownError(_same(found, body))
        values = {**row, "time": now_text(), "entries": json.dumps(list(entries) or [row["id"]])}
        connection.execute(insert(DecisionRow).values(**values))

    def _known(self, digest: str | None, body: str) -> Recorded | None:
        if digest is None:
            return None
        with self._database.reading() as connection:
            found = _row_of_key(connection, digest)
        return None if found is None else _same(found, body)

    def _require_standing(self, connection: Connection, decision: Decision) -> None:
        table = DecisionRow.__table__
        if connection.execute(select(table.c.id).where(table.c.undoes == decision.id)).first() is not None:
            raise DeskError(409, "undone", f"decision {decision.id} was taken back already", "reload the page")


def _ids(entries: Sequence[Entry], added: Added) -> list[str]:
    """Ids of what stands in the store for entries: their own, or those of what said the same before."""
    known = {entry.id: same.id for entry, same in zip(added.repeated, added.known, strict=True)}
    return list(dict.fromkeys(known.get(entry.id, entry.id) for entry in entries))


def _row_of_key(connection: Connection, digest: str | None) -> Any | None:
    if digest is None:
        return None
    table = DecisionRow.__table__
    return connection.execute(select(table).where(table.c.key_digest == digest)).mappings().one_or_none()


def _same(row: Any, body: str) -> Recorded:
    if row["body_sha256"] != body:
        raise DeskError(
            422,
            "key_reused",
            "the Idempotency-Key was sent before with something else",
            "take a new key for each decision, and the same one only to repeat it",
        )
    return Recorded(row["id"], tuple(json.loads(row["entries"])), row["item"])
