"""Decisions, and taking them back."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header
from pydantic import BaseModel, ConfigDict, Field, field_validator

from medfm_rl.feedback.entries import LONGEST_TEXT
from medfm_rl.service.asking import ERRORS, Reviewer, TheDesk
from medfm_rl.service.meaning import Answer
from medfm_rl.service.said import Word

router = APIRouter(prefix="/api/v1", tags=["decisions"], responses=ERRORS)
_LONGEST = 255
_DAY = 86_400.0
_MOST_PARTS = 64
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=8,
        max_length=200,
        description="Chosen anew for each decision: sent again with it, a decision is not recorded again.",
    ),
]


class Part(BaseModel):
    """One part of a decision."""

    model_config = ConfigDict(extra="forbid")
    kind: Word
    structure: str | None = Field(None, max_length=_LONGEST, description="Of which structure; all where left out.")
    value: str | int | None = Field(None, description="accept or reject; a grade from 0 to 4; a or b.")
    mask: str | None = Field(None, max_length=_LONGEST, description="The mask that is meant, or the one that was sent.")
    replaces: str | None = Field(None, max_length=_LONGEST, description="The mask that the sent one was drawn from.")

    @field_validator("value")
    @classmethod
    def _short(cls, value: str | int | None) -> str | int | None:
        if isinstance(value, str) and len(value) > _LONGEST:
            raise ValueError(f"must have {_LONGEST} letters at most")
        return value


class Sent(BaseModel):
    """A decision on an item."""

    model_config = ConfigDict(extra="forbid")
    lease: str | None = Field(None, max_length=_LONGEST, description="Of the item; for the record.")
    seconds: float = Field(0.0, ge=0, le=_DAY, description="How long the case was looked at.")
    decisions: list[Part] = Field(max_length=_MOST_PARTS)
    comment: str = Field("", max_length=LONGEST_TEXT)

    @field_validator("comment")
    @classmethod
    def _text(cls, comment: str) -> str:
        if "\0" in comment or any("\ud800" <= letter <= "\udfff" for letter in comment):
            raise ValueError("must be text")
        return comment


class Recorded(BaseModel):
    """A decision that is durable."""

    decision: str
    entries: list[str]


class Undone(BaseModel):
    """A decision that was taken back; its item is open again."""

    item: str
    case: str
    decision: str
    entries: list[str]


@router.post("/items/{item}/decisions", status_code=201, response_model=Recorded)
def decide(item: str, sent: Sent, desk: TheDesk, who: Reviewer, key: Key = None) -> Recorded:
    """Records a decision; answered when it is on the disk."""
    answers = [Answer(part.kind, part.structure, part.value, part.mask, part.replaces) for part in sent.decisions]
    # The lease changes when a browser comes back; what is said does not.
    body = hashlib.sha256(f"{item}\0{sent.model_dump_json(exclude={'lease', 'seconds'})}".encode()).hexdigest()
    found = desk.decisions.record(desk.item(item), who, answers, sent.seconds, sent.comment, key, body)
    return Recorded(decision=found.decision, entries=list(found.entries))


@router.post("/decisions/{entry}/undo", status_code=201, response_model=Undone)
def undo(entry: str, desk: TheDesk, who: Reviewer, key: Key = None) -> Undone:
    """Takes a decision back, with all that was said in it; the item is open again."""
    body = hashlib.sha256(f"undo\0{entry}".encode()).hexdigest()
    found = desk.decisions.undo(entry, who, key, body)
    return Undone(item=found.item, case=found.item, decision=found.decision, entries=list(found.entries))
