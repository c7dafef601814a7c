"""What a reviewer or a report can say of a target case, one class a kind. Entries never change."""

from __future__ import annotations

import math
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Literal, get_args

from medfm_rl.choices import Drawn
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.units import require_known

Kind = Literal["mask", "verdict", "grade", "preference", "measurement", "removal"]
Decision = Literal["accept", "reject"]
DRAWN: tuple[Drawn, ...] = get_args(Drawn)
DECISIONS: tuple[Decision, ...] = get_args(Decision)
WORST_GRADE, BEST_GRADE = 0, 4
"""Useless, and nothing to be changed."""
LONGEST_TEXT = 2000
"""Letters of a comment or a reason."""
_LONGEST_NAME = 255
_REVIEWER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _now() -> datetime:
    return datetime.now(UTC)


def _new_id() -> str:
    return str(uuid.uuid4())


def require_reviewer(reviewer: str) -> None:
    """Refuses what is no opaque id.

    Raises:
        FeedbackError: It is none.
    """
    if not _REVIEWER.fullmatch(reviewer):
        raise FeedbackError(
            f"reviewer {reviewer!r}: must be an id of up to 64 letters, digits, dots, hyphens and underscores, such as "
            "r07, and no name: who it is stays with you"
        )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What every entry of a store has.

    Attributes:
        reviewer: Opaque id of who says it, such as r07: letters, digits, dot, hyphen and underscore, 64 at most.
        id: A UUID, the same wherever the entry is copied.
        time: When it was said, in UTC.
        comment: Anything else that was said.

    Raises:
        FeedbackError: A field has a value that it cannot have; the message names the entry.
    """

    kind: ClassVar[Kind]
    reviewer: str
    id: str = field(default_factory=_new_id)
    time: datetime = field(default_factory=_now)
    comment: str = ""

    def __post_init__(self) -> None:
        require_reviewer(self.reviewer)
        try:
            uuid.UUID(self.id)
        except ValueError as error:
            raise FeedbackError(f"entry {self.id!r}: an id is a UUID; leave it out for a new one") from error
        if self.time.tzinfo is None:
            raise self._problem(f"time {self.time.isoformat()} has no time zone", "give it in UTC")
        # Stored to the microsecond, and compared as what is stored.
        object.__setattr__(self, "time", self.time.astimezone(UTC))
        if len(self.comment) > LONGEST_TEXT or "\0" in self.comment:
            raise self._problem(
                f"the comment has {len(self.comment)} letters", f"write text of up to {LONGEST_TEXT} letters"
            )

    @property
    def subject(self) -> str:
        """What is spoken of, in words, for messages."""
        return f"entry {self.id}"

    def _problem(self, fault: str, remedy: str) -> FeedbackError:
        return FeedbackError(f"{self.subject}, {self.kind} of reviewer {self.reviewer}: {fault}; {remedy}")

    def _require_hash(self, name: str, value: str | None) -> None:
        if value is not None and not _SHA256.fullmatch(value):
            raise self._problem(f"{name} is {value!r}", "it must be a SHA-256, 64 hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Feedback(Entry):
    """What every kind of feedback has.

    Attributes:
        patient: Every split is made by it.
        case: Name of the case; None where a whole patient is meant.
        image_sha256: The image, as `CaseFile.hash_images` gives it; None where a whole patient is meant.
        model_hash: SHA-256 of the folder `model` of the run that made the masks (`Identity.model_hash`); None where no
            run did.
        drawn: How the case came to be reviewed.
    """

    patient: str
    case: str | None = None
    image_sha256: str | None = None
    model_hash: str | None = None
    drawn: Drawn = "other"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, text in (("patient", self.patient), ("case", self.case)):
            if text is not None and not (0 < len(text) <= _LONGEST_NAME and "\0" not in text):
                raise self._problem(f"the {name} is {text!r}", f"give a name of up to {_LONGEST_NAME} letters")
        if (self.case is None) != (self.image_sha256 is None):
            raise self._problem("a case and the hash of its image go together", "give both or none")
        if self.drawn not in DRAWN:
            raise self._problem(f"drawn is {self.drawn!r}", f"it must be {', '.join(DRAWN)}")
        self._require_hash("image_sha256", self.image_sha256)
        self._require_hash("model_hash", self.model_hash)

    @property
    def subject(self) -> str:
        return f"patient {self.patient}" if self.case is None else f"case {self.case}"


@dataclass(frozen=True, kw_only=True)
class _OfCase(Feedback):
    """What speaks of one image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.case is None:
            raise self._problem("names no case", "only measurements speak of a patient as a whole")


@dataclass(frozen=True, kw_only=True)
class CorrectedMask(_OfCase):
    """A mask as the reviewer wants it.

    Attributes:
        mask_sha256: The corrected mask.
        replaces_sha256: The mask that was shown; None where it was drawn from nothing.
        changed: Structures whose pixels differ from those shown; empty where nothing was shown.
    """

    kind: ClassVar[Kind] = "mask"
    mask_sha256: str
    replaces_sha256: str | None = None
    changed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_hash("mask_sha256", self.mask_sha256)
        self._require_hash("replaces_sha256", self.replaces_sha256)
        if self.mask_sha256 == self.replaces_sha256:
            raise self._problem("is the mask that was shown", "a mask that was left as it was is a verdict, accept")
        if bool(self.changed) != (self.replaces_sha256 is not None):
            raise self._problem("what changed and the mask that was shown go together", "give both or none")


@dataclass(frozen=True, kw_only=True)
class Verdict(_OfCase):
    """Whether a mask, or one structure of it, is good enough.

    Attributes:
        mask_sha256: The mask that was shown.
        decision: accept or reject.
        structure: Name of the structure; None for the mask as a whole: all structures are accepted, or not all are.
    """

    kind: ClassVar[Kind] = "verdict"
    mask_sha256: str
    decision: Decision
    structure: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_hash("mask_sha256", self.mask_sha256)
        if self.decision not in DECISIONS:
            raise self._problem(f"the verdict is {self.decision!r}", "it must be accept or reject")

    @property
    def accepts_whole(self) -> bool:
        """Whether the mask was accepted with all of its structures."""
        return self.decision == "accept" and self.structure is None


@dataclass(frozen=True, kw_only=True)
class Grade(_OfCase):
    """How good a mask, or one structure of it, is.

    Attributes:
        mask_sha256: The mask that was shown.
        grade: From 0 (useless) to 4 (nothing to be changed).
        structure: Name of the structure; None for the mask as a whole.
    """

    kind: ClassVar[Kind] = "grade"
    mask_sha256: str
    grade: int
    structure: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_hash("mask_sha256", self.mask_sha256)
        if self.grade not in range(WORST_GRADE, BEST_GRADE + 1):
            raise self._problem(f"the grade is {self.grade!r}", f"it must be {WORST_GRADE} to {BEST_GRADE}")


@dataclass(frozen=True, kw_only=True)
class Preference(_OfCase):
    """Which of two masks of an image is better.

    Attributes:
        better_sha256: The better mask.
        worse_sha256: The other.
        structure: Name of the structure that was compared; None for the masks as a whole.
    """

    kind: ClassVar[Kind] = "preference"
    better_sha256: str
    worse_sha256: str
    structure: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_hash("better_sha256", self.better_sha256)
        self._require_hash("worse_sha256", self.worse_sha256)
        if self.better_sha256 == self.worse_sha256:
            raise self._problem("both masks are the same", "leave the row out, or give the masks that were compared")


@dataclass(frozen=True, kw_only=True)
class Measurement(Feedback):
    """What a report says of a patient, or of one image.

    Attributes:
        name: One of `units.QUANTITIES`, such as EF.
        value: In `unit`.
        unit: The unit in which that quantity is kept: %, ml, mm2 or mm (`units.in_own_unit` converts).
        uncertainty: Standard deviation of the value, in the same unit; None where it is not known.
        structure: Name of the structure that was measured; None where the quantity says it, as EF does.
    """

    kind: ClassVar[Kind] = "measurement"
    name: str
    value: float
    unit: str
    uncertainty: float | None = None
    structure: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            require_known(self.name, self.value, self.unit)
        except FeedbackError as error:
            raise FeedbackError(f"{self.subject}, measurement of reviewer {self.reviewer}: {error}") from error
        if self.uncertainty is not None and not (math.isfinite(self.uncertainty) and self.uncertainty > 0):
            raise self._problem(
                f"the uncertainty of {self.name} is {self.uncertainty:g}", "it must be above 0, or left out"
            )


@dataclass(frozen=True, kw_only=True)
class Removal(Entry):
    """Takes an earlier entry out of force.

    Attributes:
        removes: Id of that entry.
        reason: Why.
    """

    kind: ClassVar[Kind] = "removal"
    removes: str
    reason: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < len(self.reason.strip()) <= LONGEST_TEXT:
            raise self._problem("has no reason", f"say why, in up to {LONGEST_TEXT} letters")

    @property
    def subject(self) -> str:
        return f"entry {self.removes}"


KINDS: dict[Kind, type[Entry]] = {
    cls.kind: cls for cls in (CorrectedMask, Verdict, Grade, Preference, Measurement, Removal)
}
"""The class of each kind."""


def masks_of(entry: Entry) -> tuple[str, ...]:
    """Hashes of the masks that an entry names."""
    match entry:
        case CorrectedMask():
            return tuple(mask for mask in (entry.mask_sha256, entry.replaces_sha256) if mask is not None)
        case Verdict() | Grade():
            return (entry.mask_sha256,)
        case Preference():
            return (entry.better_sha256, entry.worse_sha256)
        case _:
            return ()


def structures_of(entry: Entry) -> tuple[str, ...]:
    """Structures that an entry speaks of by name."""
    match entry:
        case CorrectedMask():
            return entry.changed
        case Verdict() | Grade() | Preference() | Measurement():
            return () if entry.structure is None else (entry.structure,)
        case _:
            return ()
