"""From what a reviewer says to entries of the feedback store: recorded with them, or not at all."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from sqlalchemy import insert, select
from sqlalchemy.engine import Connection

from medfm_rl.feedback import Added, CorrectedMask, Entry, Grade, Mask, Preference, Removal, Verdict
from medfm_rl.feedback.entries import BEST_GRADE, DECISIONS, WORST_GRADE
from medfm_rl.feedback.reading.corrections import changed_structures
from medfm_rl.metrics.overlap import dice
from medfm_rl.service.access import Principal
from medfm_rl.service.catalogue import Item
from medfm_rl.service.database import Database, add_note, digest_of
from medfm_rl.service.errors import DeskError
from medfm_rl.service.leases import release, require_no_other
from medfm_rl.service.said import Decision, Said, Word, as_text
from medfm_rl.service.showing import Part, Showing, ShownMask, mask_named
from medfm_rl.service.tables import DecisionRow, now_text
from medfm_rl.service.work import Work
from medfm_rl.types import LabelMap

_REASON = "taken back at the desk"
_IN_BOTH = {"given": "given", "proposal": "proposal"}


@dataclass(frozen=True)
class Answer:
    """One part of a decision as the page sends it.

    Attributes:
        kind: What is said.
        structure: Of which structure; None for all.
        value: accept or reject, a grade, or a or b.
        mask: The mask that is spoken of, by its id or role; of a corrected mask the hash that it was sent under.
        replaces: Of a corrected mask the one that it was drawn from.
    """

    kind: Word
    structure: str | None = None
    value: str | int | None = None
    mask: str | None = None
    replaces: str | None = None


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


@dataclass
class _Made:
    """What becomes of a decision."""

    said: list[Said] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    masks: dict[str, Mask] = field(default_factory=dict)

    def add(self, entry: Entry, *masks: Mask) -> None:
        self.entries.append(entry)
        self.masks.update({mask.sha256: mask for mask in masks})


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
        made = self._made(item, who, answers, comment)
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
        image = self._showing.pixels.picture(item.view).files[0][1]

        def beside(connection: Connection, added: Added) -> None:
            require_no_other(connection, item.id, who.reviewer)
            self._insert(connection, row, _ids(made.entries, added), digest, body)
            release(connection, item.id, who.reviewer)
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

    def _made(self, item: Item, who: Principal, answers: Sequence[Answer], comment: str) -> _Made:
        if not answers and not comment.strip():
            raise _unclear("it says nothing", "accept, reject, or say that you cannot tell")
        readings = self._work.readings_of(item)
        shown = self._showing.masks(item, who.reviewer, readings)
        made = _Made()
        parts = self._showing.parts(item.view)
        labels: dict[str, LabelMap] = {}

        def labels_of(mask: ShownMask) -> LabelMap:
            if mask.id not in labels:
                labels[mask.id] = self._showing.labels(item, mask.source, readings)
            return labels[mask.id]

        def fields(part: Part) -> dict[str, Any]:
            return {
                "reviewer": who.reviewer,
                "comment": comment,
                "patient": part.patient,
                "case": part.case,
                "image_sha256": part.image_sha256,
                "model_hash": part.made_by,
                "drawn": item.drawn,
            }

        for answer in answers:
            if answer.structure is not None and answer.structure not in self._showing.names[1:]:
                raise _unclear(
                    f"there is no structure {answer.structure}", f"name {', '.join(self._showing.names[1:])}, or none"
                )
            match answer.kind:
                case "verdict" | "grade":
                    mask = _spoken_of(answer, shown)
                    value = _value(answer)
                    for part in parts:
                        own = part.mask(labels_of(mask), self._showing.names)
                        common = {**fields(part), "mask_sha256": own.sha256, "structure": answer.structure}
                        entry = (
                            Verdict(**common, decision=value)
                            if answer.kind == "verdict"
                            else Grade(**common, grade=value)
                        )
                        made.add(entry, own)
                    made.said.append(Said(answer.kind, answer.structure, answer.value, mask.source))
                case "preference":
                    self._prefer(made, answer, shown, parts, labels_of, fields)
                case "mask":
                    self._correct(made, answer, item, who, shown, parts, labels_of, fields)
                case _:
                    made.said.append(Said(answer.kind, answer.structure))
        return made

    def _prefer(
        self,
        made: _Made,
        answer: Answer,
        shown: Sequence[ShownMask],
        parts: Sequence[Part],
        labels_of: Any,
        fields: Any,
    ) -> None:
        if answer.value not in ("a", "b") or len(shown) != 2:
            raise _unclear("a preference is for a or b, of a case that shows two masks", "choose one of them")
        better = mask_named(shown, str(answer.value))
        worse = next(mask for mask in shown if mask is not better)
        for part in parts:
            good, bad = (part.mask(labels_of(mask), self._showing.names) for mask in (better, worse))
            if good.sha256 != bad.sha256:
                entry = Preference(
                    **fields(part), better_sha256=good.sha256, worse_sha256=bad.sha256, structure=answer.structure
                )
                made.add(entry, good, bad)
        made.said.append(Said("preference", answer.structure, better.source))

    def _correct(
        self,
        made: _Made,
        answer: Answer,
        item: Item,
        who: Principal,
        shown: Sequence[ShownMask],
        parts: Sequence[Part],
        labels_of: Any,
        fields: Any,
    ) -> None:
        """A corrected mask; of a clip the frames that were left as they were are accepted, as `feedback add` has it."""
        if answer.mask is None:
            raise _unclear("a corrected mask is named by the hash that it was sent under", "send the mask first")
        shape = self._showing.pixels.picture(item.view).shape
        new = self._showing.drafts.labels(item.view.id, answer.mask, shape, who.reviewer)
        if not shown:
            for part in parts:
                drawn = part.mask(new, self._showing.names)
                made.add(CorrectedMask(**fields(part), mask_sha256=drawn.sha256), drawn)
            made.said.append(Said("mask", None, None, answer.mask, None))
            return
        replaced = mask_named(shown, answer.replaces) if answer.replaces is not None else shown[0]
        before = labels_of(replaced)
        for part in parts:
            old, drawn = (part.mask(values, self._showing.names) for values in (before, new))
            if old.sha256 == drawn.sha256:
                made.add(Verdict(**fields(part), mask_sha256=old.sha256, decision="accept"), old)
            else:
                entry = CorrectedMask(
                    **fields(part),
                    mask_sha256=drawn.sha256,
                    replaces_sha256=old.sha256,
                    changed=changed_structures(old, drawn),
                )
                made.add(entry, old, drawn)
        lowest = float(np.min(dice(new, before, len(self._showing.names))))
        made.said.append(Said("mask", None, replaced.source, answer.mask, lowest))


def _spoken_of(answer: Answer, shown: Sequence[ShownMask]) -> ShownMask:
    if not shown:
        raise _unclear("there is no mask of this case", "draw one, or say that the image cannot be used (unfit)")
    if answer.mask is not None:
        return mask_named(shown, answer.mask)
    if len(shown) > 1:
        raise _unclear("two masks are shown, and it is not said which is meant", "name it (mask)")
    return shown[0]


def _value(answer: Answer) -> Any:
    if answer.kind == "verdict" and answer.value in DECISIONS:
        return answer.value
    if answer.kind == "grade" and isinstance(answer.value, int) and WORST_GRADE <= answer.value <= BEST_GRADE:
        return answer.value
    raise _unclear(
        f"{answer.kind} {answer.value!r}", f"a verdict is accept or reject, a grade {WORST_GRADE} to {BEST_GRADE}"
    )


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


def _unclear(message: str, remedy: str) -> DeskError:
    return DeskError(422, "decision", message, remedy)
