"""What an answer means: the entries that the feedback store gets of it, and what the desk remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medfm_rl.feedback import CorrectedMask, Entry, Grade, Mask, Preference, Verdict
from medfm_rl.feedback.entries import BEST_GRADE, DECISIONS, WORST_GRADE
from medfm_rl.feedback.reading.corrections import changed_structures
from medfm_rl.metrics.overlap import dice
from medfm_rl.service.access import Principal
from medfm_rl.service.catalogue import Item
from medfm_rl.service.errors import DeskError
from medfm_rl.service.said import Decision, Said, Word
from medfm_rl.service.showing import Part, Showing, ShownMask, mask_named
from medfm_rl.structures import exclusive
from medfm_rl.types import LabelMap


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


@dataclass
class Made:
    """What becomes of a decision."""

    said: list[Said] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    masks: dict[str, Mask] = field(default_factory=dict)

    def add(self, entry: Entry, *masks: Mask) -> None:
        self.entries.append(entry)
        self.masks.update({mask.sha256: mask for mask in masks})


def entries_of(
    showing: Showing, item: Item, who: Principal, answers: Sequence[Answer], comment: str, readings: Sequence[Decision]
) -> Made:
    """What becomes of a decision.

    Args:
        showing: Knows what was shown.
        item: What is decided.
        who: The reviewer.
        answers: What he says.
        comment: Goes with every entry.
        readings: What was said before, which a disagreement is about.

    Raises:
        DeskError: It says nothing, or contradicts what was shown.
        UserError: An image or mask cannot be read.
    """
    if not answers and not comment.strip():
        raise _unclear("it says nothing", "accept, reject, or say that you cannot tell")
    return _Maker(showing, item, who, comment, readings).made(answers)


class _Maker:
    """Makes the entries of one decision."""

    def __init__(
        self, showing: Showing, item: Item, who: Principal, comment: str, readings: Sequence[Decision]
    ) -> None:
        self._showing = showing
        self._item = item
        self._who = who
        self._comment = comment
        self._readings = readings
        self._shown = showing.masks(item, who.reviewer, readings)
        self._labels: dict[str, LabelMap] = {}
        self._made = Made()

    def made(self, answers: Sequence[Answer]) -> Made:
        """What becomes of all answers together."""
        # Of an image that cannot be read it can still be said that it cannot be used.
        looks = any(answer.kind not in ("unfit", "cannot_tell") for answer in answers)
        parts = self._showing.parts(self._item.view) if looks else []
        for answer in answers:
            if answer.structure is not None and answer.structure not in self._showing.names[1:]:
                raise _unclear(
                    f"there is no structure {answer.structure}", f"name {', '.join(self._showing.names[1:])}, or none"
                )
            match answer.kind:
                case "verdict" | "grade":
                    self._judge(answer, parts)
                case "preference":
                    self._prefer(answer, parts)
                case "mask":
                    self._correct(answer, parts)
                case _:
                    self._made.said.append(Said(answer.kind, answer.structure))
        return self._made

    def _judge(self, answer: Answer, parts: Sequence[Part]) -> None:
        mask, value = _spoken_of(answer, self._shown), _value(answer)
        for part in parts:
            if not part.has_mask:
                continue
            own = self._mask(part, mask)
            common = {**self._fields(part), "mask_sha256": own.sha256, "structure": answer.structure}
            entry = Verdict(**common, decision=value) if answer.kind == "verdict" else Grade(**common, grade=value)
            self._made.add(entry, own)
        self._made.said.append(Said(answer.kind, answer.structure, answer.value, mask.source))

    def _prefer(self, answer: Answer, parts: Sequence[Part]) -> None:
        if answer.value not in ("a", "b") or len(self._shown) != 2:
            raise _unclear("a preference is for a or b, of a case that shows two masks", "choose one of them")
        better = mask_named(self._shown, str(answer.value))
        worse = next(mask for mask in self._shown if mask is not better)
        for part in parts:
            good, bad = self._mask(part, better), self._mask(part, worse)
            # Frames of a clip that nothing was proposed for are the same in both.
            if good.sha256 != bad.sha256:
                entry = Preference(
                    **self._fields(part),
                    better_sha256=good.sha256,
                    worse_sha256=bad.sha256,
                    structure=answer.structure,
                )
                self._made.add(entry, good, bad)
        self._made.said.append(Said("preference", answer.structure, better.source))

    def _correct(self, answer: Answer, parts: Sequence[Part]) -> None:
        """A corrected mask; of a clip the frames that were left as they were are accepted, as `feedback add` has it."""
        if answer.mask is None:
            raise _unclear("a corrected mask is named by the hash that it was sent under", "send the mask first")
        shape = self._showing.pixels.picture(self._item.view).shape
        new = self._showing.drafts.labels(self._item.view.id, answer.mask, shape, self._who.reviewer)
        replaced = mask_named(self._shown, answer.replaces) if answer.replaces is not None else self._first
        for part in parts:
            drawn = part.mask(new, self._showing.names)
            old = self._mask(part, replaced) if replaced is not None and part.has_mask else None
            # A frame that could not be assessed, and that was left empty, was not drawn.
            if old is not None or replaced is None or drawn.labels.any():
                self._made.add(*self._correction(part, old, drawn))
        lowest = None
        if replaced is not None:
            lowest = float(np.min(dice(new, self._labels_of(replaced), exclusive(len(self._showing.names)))))
        source = None if replaced is None else replaced.source
        self._made.said.append(Said("mask", None, source, answer.mask, lowest))

    def _correction(self, part: Part, old: Mask | None, drawn: Mask) -> tuple[Entry, Mask, *tuple[Mask, ...]]:
        """The entry of a part, and its masks; where there was no mask before, it was drawn from nothing."""
        fields = self._fields(part)
        if old is None:
            return CorrectedMask(**fields, mask_sha256=drawn.sha256), drawn
        if old.sha256 == drawn.sha256:
            return Verdict(**fields, mask_sha256=old.sha256, decision="accept"), old
        changed = changed_structures(old, drawn)
        entry = CorrectedMask(**fields, mask_sha256=drawn.sha256, replaces_sha256=old.sha256, changed=changed)
        return entry, old, drawn

    @property
    def _first(self) -> ShownMask | None:
        """The mask that is meant where none is named."""
        return self._shown[0] if self._shown else None

    def _mask(self, part: Part, mask: ShownMask) -> Mask:
        return part.mask(self._labels_of(mask), self._showing.names)

    def _labels_of(self, mask: ShownMask) -> LabelMap:
        if mask.id not in self._labels:
            self._labels[mask.id] = self._showing.labels(self._item, mask.source, self._readings)
        return self._labels[mask.id]

    def _fields(self, part: Part) -> dict[str, Any]:
        return {
            "reviewer": self._who.reviewer,
            "comment": self._comment,
            "patient": part.patient,
            "case": part.case,
            "image_sha256": part.image_sha256,
            "model_hash": part.made_by,
            "drawn": self._item.drawn,
        }


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


def _unclear(message: str, remedy: str) -> DeskError:
    return DeskError(422, "decision", message, remedy)
