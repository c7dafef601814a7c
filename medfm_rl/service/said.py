"""What a reviewer says of an item, in the words of the service, and whether two of them agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

Word = Literal["verdict", "grade", "preference", "mask", "unfit", "cannot_tell"]
_GRADES_APART = 1
"""Grades of two readers that differ by so much still agree."""


@dataclass(frozen=True)
class Said:
    """One part of a decision.

    Attributes:
        kind: What is said.
        structure: Of which structure; None for the mask as a whole.
        value: accept or reject, the grade, or given or proposal: which of two masks is better.
        mask: The mask that is spoken of, or the new one: labels by hash (`data.labels.hash_labels` of the whole view).
        dice: Of a new mask, the lowest Dice of any structure with the mask that was shown.
    """

    kind: Word
    structure: str | None = None
    value: str | int | None = None
    mask: str | None = None
    dice: float | None = None


@dataclass(frozen=True)
class Decision:
    """A decision as it was recorded.

    Attributes:
        number: Its place in the record.
        id: Its name.
        item: The item.
        case: Name of the case.
        reviewer: Who decided.
        time: When, ISO 8601.
        seconds: How long the case was looked at.
        comment: What else was said.
        said: Its parts.
        entries: Entries of the store that hold it.
        undoes: Id of the decision that it takes back; None where it is none of these.
    """

    number: int
    id: str
    item: str
    case: str
    reviewer: str
    time: str
    seconds: float
    comment: str
    said: tuple[Said, ...]
    entries: tuple[str, ...]
    undoes: str | None

    @classmethod
    def of_row(cls, row: Any) -> Self:
        """The decision of a row of the table."""
        return cls(
            row["number"],
            row["id"],
            row["item"],
            row["case_name"],
            row["reviewer"],
            row["time"],
            row["seconds"],
            row["comment"],
            tuple(Said(**part) for part in json.loads(row["said"])),
            tuple(json.loads(row["entries"])),
            row["undoes"],
        )

    @property
    def in_words(self) -> str:
        """What was said, in a few words."""
        return ", ".join(map(_in_words, self.said)) or self.comment


def as_text(said: Sequence[Said]) -> str:
    """Parts of a decision as the table has them."""
    return json.dumps([asdict(part) for part in said])


def agree(first: Decision, second: Decision, least_dice: float) -> bool:
    """Whether two readers say the same, as far as both say something of the same matter.

    Verdicts, preferences and `unfit` have to be equal, grades may differ by one, and who accepts a mask agrees with who
    changed hardly anything. Who cannot tell agrees with nobody who can.

    Args:
        first: The first reading.
        second: The second.
        least_dice: From which Dice with the shown mask on a corrected one counts as hardly changed.
    """
    one, other = _summary(first, least_dice), _summary(second, least_dice)
    for matter in one.keys() & other.keys():
        a, b = one[matter], other[matter]
        if matter[0] == "grade":
            if abs(int(a) - int(b)) > _GRADES_APART:
                return False
        elif a != b:
            return False
    return bool(one.keys() & other.keys()) or first.said == second.said


def _summary(decision: Decision, least_dice: float) -> dict[tuple[str, str | None], str]:
    found: dict[tuple[str, str | None], str] = {}
    for part in decision.said:
        if part.kind in ("verdict", "unfit", "mask"):
            if part.kind == "mask":
                value = "accept" if part.dice is not None and part.dice >= least_dice else "reject"
            else:
                value = "unfit" if part.kind == "unfit" else str(part.value)
            found.setdefault(("verdict", part.structure), value)
        elif part.kind == "cannot_tell":
            found.setdefault(("verdict", part.structure), "cannot_tell")
        else:
            found.setdefault((part.kind, part.structure), str(part.value))
    return found


def _in_words(part: Said) -> str:
    of = f" {part.structure}" if part.structure else ""
    match part.kind:
        case "verdict":
            return f"{part.value}{of}"
        case "grade":
            return f"grade {part.value}{of}"
        case "preference":
            return "a preference"
        case "mask":
            return "a corrected mask"
        case "unfit":
            return "not this view or anatomy"
        case _:
            return f"cannot tell{of}"
