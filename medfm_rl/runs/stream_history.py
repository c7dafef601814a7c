"""The history of a stream, read from its file of JSON lines.

The first line says what the stream is; each further one is a study, a review, or a restart after a change. What follows
from them (p-values, alarms, audits that are open) is worked out when the file is read, the same each time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from medfm_rl.data.files import read_lines, require_known_format
from medfm_rl.errors import DataError
from medfm_rl.quality.drift import DriftTest, Numbers, Signal, mask_key

UNKNOWN: Final = "unknown"
STREAM_FORMAT: Final = 3
_RESTORE: Final = "put the file back from a copy, or start a stream under another name"
_LOG = logging.getLogger(__name__)
_NUMBER: Final = (int, float)
_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys(("scanner", "protocol", "site", "quality", "time", "patient"), (str,)),
    **dict.fromkeys(("case", "mask", "verdict", "key", "reason"), (str,)),
    **dict.fromkeys(("tested", "audit", "simulated"), (bool,)),
    **dict.fromkeys(("cases", "look", "broken_rules"), (list,)),
    **dict.fromkeys(("audit_share", "mean_reward", "shift_distance", "dice"), _NUMBER),
    "predicted": (*_NUMBER, type(None)),
    "seed": (int,),
}
"""What JSON has for each value of a line, whatever line it stands in."""
_WORDS: Final = {
    str: "text",
    bool: "true or false",
    list: "a list",
    int: "a number",
    float: "a number",
    type(None): "null",
}


@dataclass(frozen=True)
class StreamIdentity:
    """What a stream is of.

    Attributes:
        scanner: Name of the scanner, as the site calls it.
        protocol: Protocol.
        site: Hospital or department.
        quality: SHA-256 of the `quality.json` that assesses.
        seed: Of the draws for audit and between ties.
        audit_share: Share of the accepted cases that are drawn for audit.
    """

    scanner: str
    protocol: str
    site: str
    quality: str
    seed: int
    audit_share: float


@dataclass(frozen=True)
class StudyCase:
    """A mask of a study.

    Attributes:
        case: Name of the case.
        mask: Hash of the mask.
        verdict: accept, correct or refer.
        predicted: Predicted mean Dice; None where none could be predicted.
        mean_reward: Mean probability of being right in and around the structures.
        shift_distance: How far it is from the calibration cases.
        broken_rules: Names of the anatomy rules that it breaks.
        audit: Whether it was drawn for review.
        look: What its image looks like, `quality.appearance`. The stream keeps the mean over a study alone, and here it
            is empty when read.
        simulated: Whether its image was made by a simulation.
    """

    case: str
    mask: str
    verdict: str
    predicted: float | None
    mean_reward: float
    shift_distance: float
    broken_rules: tuple[str, ...]
    audit: bool = False
    look: tuple[float, ...] = ()
    simulated: bool = False

    @property
    def key(self) -> str:
        """Tells it from every other case and mask."""
        return mask_key(self.case, self.mask)


@dataclass(frozen=True)
class Study:
    """The masks of a patient that came together.

    Attributes:
        time: When it was added, UTC, ISO 8601.
        patient: Patient.
        cases: Masks.
        tested: Whether it is the patient's first: what comes later is no independent evidence of a change.
        look: What its images look like, as the mean over them; empty where an older version wrote it.
    """

    time: str
    patient: str
    cases: tuple[StudyCase, ...]
    tested: bool
    look: tuple[float, ...] = ()

    @classmethod
    def of(cls, time: str, patient: str, cases: Sequence[StudyCase], tested: bool) -> Self:
        """A study of these masks.

        Raises:
            ValueError: Their looks have different numbers.
        """
        looks = [case.look for case in cases if case.look]
        look = tuple(np.mean(looks, axis=0).round(4).tolist()) if looks else ()
        return cls(time, patient, tuple(replace(case, look=()) for case in cases), tested, look)

    @property
    def numbers(self) -> Numbers:
        """What the study says to each signal: means over its masks."""
        numbers: dict[Signal, float | Sequence[float]] = {
            "appearance": float(np.mean([case.shift_distance for case in self.cases])),
            "rewards": float(np.mean([case.mean_reward for case in self.cases])),
            "rules": float(np.mean([len(case.broken_rules) for case in self.cases])),
        }
        return {**numbers, "look": self.look} if self.look else numbers

    def to_json(self) -> dict[str, Any]:
        """Its line in the file."""
        content = {"kind": "study", **asdict(self)}
        for case in content["cases"]:
            del case["look"]
            if not case["simulated"]:
                del case["simulated"]
        return content


@dataclass(frozen=True)
class Review:
    """What a review found of a mask of the stream.

    Attributes:
        time: When it was added.
        key: `StudyCase.key` of the mask.
        dice: True mean Dice.
    """

    time: str
    key: str
    dice: float


@dataclass(frozen=True)
class PatientReviews:
    """What the call that first reviewed a patient found of his masks: he counts once, however many they are.

    Attributes:
        time: When it was added.
        patient: Patient.
        reviews: Of his masks.
    """

    time: str
    patient: str
    reviews: tuple[Review, ...]

    @property
    def dice(self) -> float:
        """Mean over the masks."""
        return sum(review.dice for review in self.reviews) / len(self.reviews)


@dataclass(frozen=True)
class Restart:
    """From here on the stream is compared with itself alone.

    Attributes:
        time: When.
        reason: Why, in words.
    """

    time: str
    reason: str


@dataclass
class StreamHistory:
    """A stream, read from its file.

    Attributes:
        path: The file.
        identity: What it is of.
        events: In their order.
        cut_short: Number of a last line that is not whole and does not count; None where there is none.
    """

    path: Path
    identity: StreamIdentity
    events: list[Study | Review | Restart] = field(default_factory=list)
    cut_short: int | None = None

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def studies(self) -> list[Study]:
        return [event for event in self.events if isinstance(event, Study)]

    @property
    def cases(self) -> dict[str, StudyCase]:
        """By key."""
        return {case.key: case for study in self.studies for case in study.cases}

    @property
    def reviews(self) -> dict[str, Review]:
        """The last one of each mask, by key."""
        return {event.key: event for event in self.events if isinstance(event, Review)}

    @property
    def open_audits(self) -> list[StudyCase]:
        """Drawn and not yet reviewed."""
        reviewed = self.reviews
        return [case for key, case in self.cases.items() if case.audit and key not in reviewed]

    @property
    def last_time(self) -> datetime | None:
        return datetime.fromisoformat(self.events[-1].time) if self.events else None

    @property
    def since_restart(self) -> list[Study | Review | Restart]:
        """What came since the stream began, or began anew."""
        begin = 1 + max((n for n, event in enumerate(self.events) if isinstance(event, Restart)), default=-1)
        return self.events[begin:]

    @property
    def tested(self) -> list[Study | PatientReviews]:
        """The studies and reviews that are tested: those since the last restart, of each patient the first."""
        firsts = {id(found.reviews[0]): found for found in self.first_reviews()}
        return [
            event if isinstance(event, Study) else firsts[id(event)]
            for event in self.since_restart
            if (isinstance(event, Study) and event.tested) or id(event) in firsts
        ]

    def first_reviews(self, counts: Callable[[StudyCase], bool] = lambda _: True) -> list[PatientReviews]:
        """Of each patient the reviews of the call that first reviewed one of his masks, in the order of the calls.

        Args:
            counts: Which masks are looked at, among those that came since the stream began, or began anew.
        """
        studies = [event for event in self.since_restart if isinstance(event, Study)]
        patients = {case.key: study.patient for study in studies for case in study.cases if counts(case)}
        found: dict[str, PatientReviews] = {}
        for event in self.since_restart:
            if not isinstance(event, Review) or event.key not in patients:
                continue
            patient = patients[event.key]
            known = found.setdefault(patient, PatientReviews(event.time, patient, ()))
            if known.time == event.time:
                found[patient] = replace(known, reviews=(*known.reviews, event))
        return list(found.values())

    def drift(self) -> DriftTest:
        """The test of what is tested."""
        test = DriftTest(self.identity.seed)
        for event in self.tested:
            test.add({"reviewed": event.dice} if isinstance(event, PatientReviews) else event.numbers)
        return test


def read_stream(path: Path) -> StreamHistory:
    """Reads a stream.

    A last line that is not whole, which a killed process or a full disk leaves, is named in a warning and does not
    count: whoever added it adds it again.

    Raises:
        DataError: There is no such stream, it is damaged, or a newer version wrote it.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no stream; `medfm-rl stream add` makes one")
    contents, cut_short = read_lines(path, _RESTORE)
    if cut_short is not None:
        _LOG.warning(
            "%s: line %d, the last one, was cut short by a killed process or a full disk, and does not count; "
            "repeat the call that was adding it",
            path,
            cut_short,
        )
    return _history(path, contents, cut_short)


def _history(path: Path, contents: Sequence[Mapping[str, Any]], cut_short: int | None) -> StreamHistory:
    if not contents or contents[0].get("kind") != "stream":
        raise DataError(f"{path}: is no stream: its first line does not say what it is of; {_RESTORE}")
    require_known_format(path, contents[0], STREAM_FORMAT)
    number, looks, keys = 1, set[int](), set[str]()
    try:
        values = {name: contents[0][name] for name in StreamIdentity.__dataclass_fields__}
        _require_kinds(values)
        history = StreamHistory(path, StreamIdentity(**values), cut_short=cut_short)
        for content in contents[1:]:
            number += 1
            history.events.append(event := _event(content))
            if isinstance(event, Study):
                keys.update(case.key for case in event.cases)
            if isinstance(event, Study) and event.look:
                looks.add(len(event.look))
            if isinstance(event, Review) and event.key not in keys:
                raise ValueError("it reviews a mask that no line before has")
            if len(looks) > 1:
                raise ValueError("its look has other numbers than those before")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: line {number} lacks what a stream has there ({error!r}); {_RESTORE}") from error
    return history


def _event(content: Mapping[str, Any]) -> Study | Review | Restart:
    values = {name: value for name, value in content.items() if name != "kind"}
    _require_kinds(values)
    if datetime.fromisoformat(values["time"]).tzinfo is None:
        raise ValueError(f"the time {values['time']} has no offset from UTC")
    match content["kind"]:
        case "study":
            for case in values["cases"]:
                if not isinstance(case, dict):
                    raise ValueError("a case is no JSON object")
                _require_kinds(case)
            cases = tuple(
                StudyCase(**{**case, "broken_rules": tuple(case["broken_rules"])}) for case in values["cases"]
            )
            return Study(values["time"], values["patient"], cases, values["tested"], tuple(values.get("look", ())))
        case "review":
            return Review(**values)
        case "restart":
            return Restart(**values)
        case other:
            raise ValueError(f"{other!r} is no kind of line")


def _require_kinds(values: Mapping[str, Any]) -> None:
    """Raises ValueError where a value of a line, by name, is of another kind than JSON has for it there."""
    for name, value in values.items():
        kinds = _KINDS.get(name)
        # To Python True and False are whole numbers too.
        if kinds is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise ValueError(f"{name} is {value!r:.40}, where {_named(kinds)} is needed")
        if name in ("look", "broken_rules"):
            each = (int, float) if name == "look" else (str,)
            if not all(isinstance(part, each) and not isinstance(part, bool) for part in value):
                raise ValueError(f"{name} does not hold {_named(each)} alone")


def _named(kinds: tuple[type, ...]) -> str:
    return " or ".join(dict.fromkeys(_WORDS[kind] for kind in kinds))
