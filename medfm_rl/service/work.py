"""What is left to do, for whom: the catalogue with what was decided so far, second readings and disagreements."""

from __future__ import annotations

import hashlib
import statistics
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, final

from sqlalchemy import func, select

from medfm_rl.feedback.entries import Feedback, masks_of
from medfm_rl.feedback.tables import ENTRIES, MASKS
from medfm_rl.service.catalogue import Catalogue, Item
from medfm_rl.service.database import Database
from medfm_rl.service.said import Decision, agree
from medfm_rl.service.tables import DecisionRow

LEAST_DICE = 0.9
"""Dice of a corrected mask with the shown one from which on a reader is taken to agree with who accepted that."""
_AT_ONCE = 500


@dataclass(frozen=True)
class Readings:
    """How second readings stand.

    Attributes:
        asked: Items of which a second reading was or is asked.
        answered: Those that have one.
        agreeing: Those where both say the same.
        disagreements: Those where they do not, and nobody has settled it.
    """

    asked: int
    answered: int
    agreeing: int
    disagreements: int


@final
class Work:
    """The queue with its state; it follows the table of decisions, whoever writes there.

    Args:
        catalogue: What there is to do.
        database: Where decisions are recorded.
        second_share: Share of decided items that are asked about again.
        seed: Of that draw.
    """

    def __init__(self, catalogue: Catalogue, database: Database, second_share: float, seed: int) -> None:
        self._database = database
        self._share, self._seed = second_share, seed
        self._lock = threading.RLock()
        self.follow(catalogue)

    def follow(self, catalogue: Catalogue) -> None:
        """Begins anew with a catalogue, and with all that was decided."""
        with self._lock:
            self.catalogue = catalogue
            self._forget()
            self.refresh()

    def _forget(self) -> None:
        self._last = 0
        self._decisions: dict[str, Decision] = {}
        self._active: dict[str, dict[str, Decision]] = {}
        self._undone: set[str] = set()
        self._again: dict[str, Item] = {}
        # By item: those whose decisions are what it asks about again.
        self._before: dict[str, tuple[str, ...]] = {}
        self._same = {item.id: (item.id, *item.under_other_kinds()) for item in self.catalogue.items.values()}
        self._own_entries: set[str] = set()
        self._last_entry = -1
        self._elsewhere: set[str] = set()

    def refresh(self) -> None:
        """Takes in what was decided since the last look, here or by another process."""
        with self._lock:
            with self._database.reading() as connection:
                table = DecisionRow.__table__
                rows = connection.execute(select(table).where(table.c.number > self._last).order_by(table.c.number))
                new = [Decision.of_row(row) for row in rows.mappings()]
            for decision in new:
                self._take_in(decision)
            self._look_elsewhere()

    def is_done(self, item: Item) -> bool:
        """Whether somebody has decided it, here or elsewhere."""
        with self._lock:
            return item.id in self._elsewhere or any(self._active.get(name) for name in self._same_as(item))

    def decided_by(self, item: Item, reviewer: str) -> bool:
        """Whether that reviewer has decided it."""
        with self._lock:
            return any(reviewer in self._active.get(name, {}) for name in self._same_as(item))

    def decision(self, name: str) -> Decision | None:
        """A decision by its id, or by that of one of its entries."""
        with self._lock:
            if name in self._decisions:
                return self._decisions[name]
            holding = (each for each in reversed(self._decisions.values()) if name in each.entries)
            return next(holding, None)

    def is_undone(self, decision: Decision) -> bool:
        """Whether it was taken back."""
        with self._lock:
            return decision.id in self._undone

    def item(self, name: str) -> Item | None:
        """An item by its id."""
        with self._lock:
            return self.catalogue.items.get(name) or self._again.get(name)

    def items(self, reviewer: str, decides_disagreements: bool) -> list[Item]:
        """What a reviewer can be asked, in the order of the queue.

        Nobody reads a mask a second time himself. A disagreement is settled by who took no part in it, or who may
        decide disagreements.
        """
        with self._lock:
            again = [
                item
                for item in self._again.values()
                if reviewer not in self._readers(item)
                or (item.kind == "disagreement" and decides_disagreements)
                or reviewer in self._active.get(item.id, {})
            ]
            if not again:
                return list(self.catalogue.items.values())
            return sorted([*self.catalogue.items.values(), *again], key=lambda item: item.order)

    def readings_of(self, item: Item) -> list[Decision]:
        """What was said of the mask of an item before: of a disagreement all readings."""
        with self._lock:
            before = self._before.get(item.id, ())
            found = [decision for name in before for decision in self._active.get(name, {}).values()]
            return sorted(found, key=lambda decision: decision.number)

    def readings(self) -> Readings:
        """How second readings stand."""
        with self._lock:
            seconds = [item for item in self._again.values() if item.kind == "second"]
            answered = [item for item in seconds if self._active.get(item.id)]
            apart = {item.of for item in self._again.values() if item.kind == "disagreement"}
            settled = {
                item.of for item in self._again.values() if item.kind == "disagreement" and self._active.get(item.id)
            }
            agreeing = len(answered) - len([item for item in answered if item.id in apart])
            return Readings(len(seconds), len(answered), agreeing, len(apart - settled))

    def median_seconds(self, reviewer: str | None = None) -> float | None:
        """Median seconds of a decision, of all or of one reviewer; None where there is none."""
        with self._lock:
            found = [
                decision.seconds
                for decision in self._decisions.values()
                if decision.undoes is None and reviewer in (None, decision.reviewer) and decision.seconds > 0
            ]
        return statistics.median(found) if found else None

    def today(self, reviewer: str) -> int:
        """Decisions of a reviewer since midnight UTC that were not taken back."""
        day = datetime.now(UTC).date().isoformat()
        with self._lock:
            return sum(
                decision.reviewer == reviewer and decision.time.startswith(day) and decision.undoes is None
                for decision in self._decisions.values()
                if decision.id not in self._undone
            )

    def count(self) -> dict[str, int]:
        """Decisions by kind, for metrics."""
        with self._lock:
            found: dict[str, int] = {}
            for decision in self._decisions.values():
                kinds: set[str] = {part.kind for part in decision.said}
                kinds = kinds or {"undo" if decision.undoes else "comment"}
                for kind in kinds:
                    found[kind] = found.get(kind, 0) + 1
            return found

    def _same_as(self, item: Item) -> tuple[str, ...]:
        return self._same.get(item.id, (item.id,))

    def _take_in(self, decision: Decision) -> None:
        self._last = max(self._last, decision.number)
        self._decisions[decision.id] = decision
        self._own_entries |= set(decision.entries)
        if decision.undoes is not None:
            self._undone.add(decision.undoes)
            undone = self._decisions.get(decision.undoes)
            held = self._active.get(decision.item, {})
            if undone is not None and held.get(undone.reviewer) is undone:
                del held[undone.reviewer]
        else:
            self._active.setdefault(decision.item, {})[decision.reviewer] = decision
        self._ask_again(decision.item)

    def _ask_again(self, name: str) -> None:
        """Makes or takes away what follows from the decisions on an item."""
        item = self.item(name)
        if item is None or item.kind == "disagreement":
            return
        base = item if item.of is None else self.item(item.of)
        if base is None:
            return
        second = self.catalogue.following(base, "second", "a second reading, by somebody who does not know the first")
        settled = self.catalogue.following(second, "disagreement", "")
        self._before[second.id], self._before[settled.id] = (base.id,), (base.id, second.id)
        firsts = list(self._active.get(base.id, {}).values())
        seconds = [one for one in self._active.get(second.id, {}).values() if one.reviewer not in _names(firsts)]
        pair = firsts + seconds
        if firsts and (self._drawn(base) or seconds):
            self._again[second.id] = second
        elif second.id in self._again and not self._active.get(second.id):
            del self._again[second.id]
        # Two reviewers can also have decided the same item, where the lease of one ran out.
        apart = len(pair) > 1 and any(not agree(pair[0], other, LEAST_DICE) for other in pair[1:])
        if apart:
            said = "; ".join(f"{decision.reviewer} said {decision.in_words}" for decision in pair)
            self._again[settled.id] = self.catalogue.following(second, "disagreement", said)
        elif settled.id in self._again and not self._active.get(settled.id):
            del self._again[settled.id]

    def _drawn(self, item: Item) -> bool:
        found = hashlib.sha256(f"{self._seed}:{item.id}".encode()).digest()
        return int.from_bytes(found[:8], "big") / 2**64 < self._share

    def _readers(self, item: Item) -> set[str]:
        return {reviewer for name in self._before.get(item.id, ()) for reviewer in self._active.get(name, {})}

    def _look_elsewhere(self) -> None:
        """Marks what was said of these masks without the desk, as `medfm-rl feedback add` does."""
        with self._database.reading() as connection:
            newest = connection.execute(select(func.max(ENTRIES.c.number))).scalar_one() or 0
            if newest <= self._last_entry:
                return
            new = connection.execute(select(ENTRIES.c.id).where(ENTRIES.c.number > self._last_entry)).scalars().all()
            first_look = self._last_entry < 0
            self._last_entry = newest
        if first_look or any(name not in self._own_entries for name in new):
            self._elsewhere = self._decided_elsewhere()

    def _decided_elsewhere(self) -> set[str]:
        entries = [entry for entry in self._database.store.entries() if entry.id not in self._own_entries]
        named = {mask: entry for entry in entries if entry.kind in ("mask", "verdict") for mask in _shown_masks(entry)}
        known: set[tuple[str | None, str]] = set()
        hashes = sorted(named)
        with self._database.reading() as connection:
            for start in range(0, len(hashes), _AT_ONCE):
                rows: Any = connection.execute(
                    select(MASKS.c.sha256, MASKS.c.labels_sha256).where(
                        MASKS.c.sha256.in_(hashes[start : start + _AT_ONCE])
                    )
                )
                known |= {(named[sha256].case, labels) for sha256, labels in rows}
        return {
            item.id
            for item in self.catalogue.items.values()
            if item.kind != "compare" and all((frame.case, frame.labels_sha256) in known for frame in item.view.frames)
        }


def _shown_masks(entry: Feedback) -> tuple[str, ...]:
    """The masks that were judged, a correction's own result not among them."""
    shown = getattr(entry, "replaces_sha256", None)
    return (shown,) if shown is not None else masks_of(entry)


def _names(decisions: list[Decision]) -> set[str]:
    return {decision.reviewer for decision in decisions}
