"""Which entries of a history are in force, what took the others out of it, and what contradicts what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from medfm_rl.feedback.entries import (
    WORST_GRADE,
    CorrectedMask,
    Entry,
    Feedback,
    Grade,
    Measurement,
    Preference,
    Removal,
    Verdict,
)
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.units import QUANTITIES

_NOT_SAID = ("id", "time", "comment")
"""Fields in which two entries that say the same differ."""


@dataclass(frozen=True)
class Standing:
    """A history, seen from its end.

    Attributes:
        in_force: What holds, in the order in which it was added.
        replaced: By the id of an entry that a later one contradicts: that later one.
        removed: By the id of an entry that was removed: the removal.
    """

    in_force: tuple[Feedback, ...]
    replaced: dict[str, Feedback]
    removed: dict[str, Removal]


def standing(history: Iterable[Entry]) -> Standing:
    """Goes through a history in the order in which it was added.

    What was removed counts as if it had never been added. Of what is left, an entry is out of force where a later one
    of the same reviewer contradicts it (`contradict`).
    """
    entries = list(history)
    removed = {entry.removes: entry for entry in entries if isinstance(entry, Removal)}
    kept: dict[Hashable, list[Feedback]] = {}
    replaced: dict[str, Feedback] = {}
    for entry in entries:
        if not isinstance(entry, Feedback) or entry.id in removed:
            continue
        rivals = kept.setdefault(_about(entry), [])
        for rival in [rival for rival in rivals if contradict(rival, entry)]:
            rivals.remove(rival)
            replaced[rival.id] = entry
        rivals.append(entry)
    holding = {entry.id for entries_of_one in kept.values() for entry in entries_of_one}
    in_force = tuple(entry for entry in entries if isinstance(entry, Feedback) and entry.id in holding)
    return Standing(in_force, replaced, removed)


def audited(history: Iterable[Entry]) -> list[Feedback]:
    """Entries on cases of an audit draw, whatever replaced them later: how a case was drawn does not change afterwards.

    What was removed is not among them.
    """
    entries = list(history)
    removed = {entry.removes for entry in entries if isinstance(entry, Removal)}
    return [
        entry for entry in entries if isinstance(entry, Feedback) and entry.drawn == "audit" and entry.id not in removed
    ]


def contradict(one: Feedback, other: Feedback) -> bool:
    """Whether not both can hold: the same reviewer said two things of one matter.

    - two corrected masks of an image;
    - two verdicts, or two grades, of the same mask and structure; or the acceptance of a whole mask and the rejection
      of a structure of it;
    - two preferences among the same two masks and for the same structure;
    - two values of one quantity (an EF without a structure is that of the LV, as other quantities of a ventricle are),
      or an end-diastolic volume below the end-systolic one;
    - the correction of a mask, and the acceptance of what it changes;
    - the acceptance of a mask, or of a structure, and the grade for useless.

    Two entries that say exactly the same count too: one of them is enough.
    """
    if _about(one) != _about(other):
        return False
    pair = {type(one): one, type(other): other}
    if len(pair) == 2:
        verdict = pair.pop(Verdict, None)
        (against,) = pair.values() if len(pair) == 1 else (None,)
        if not isinstance(verdict, Verdict) or verdict.decision != "accept":
            return False
        if isinstance(against, CorrectedMask):
            changed = verdict.structure is None or verdict.structure in against.changed
            return verdict.mask_sha256 == against.replaces_sha256 and changed
        if isinstance(against, Grade):
            same = verdict.mask_sha256 == against.mask_sha256 and verdict.structure in (None, against.structure)
            return same and against.grade == WORST_GRADE
        return False
    match one, other:
        case Verdict(), Verdict() if one.mask_sha256 == other.mask_sha256:
            whole = {verdict.decision for verdict in (one, other) if verdict.structure is None}
            part = {verdict.decision for verdict in (one, other) if verdict.structure is not None}
            return one.structure == other.structure or (whole, part) == ({"accept"}, {"reject"})
        case Grade(), Grade():
            return (one.mask_sha256, one.structure) == (other.mask_sha256, other.structure)
        case Preference(), Preference():
            return one.structure == other.structure and _pair(one) == _pair(other)
        case Measurement(), Measurement():
            return _contradicting_values(one, other)
        case _:
            return isinstance(one, CorrectedMask)


def say_the_same(one: Entry, other: Entry) -> bool:
    """Whether nothing but id, time and comment differ."""
    return _said(one) == _said(other)


def _contradicting_values(one: Measurement, other: Measurement) -> bool:
    """Two values of one quantity of one structure, or volumes of which the larger has to be the smaller."""
    if _measured(one) != _measured(other):
        return False
    values = {one.name: one.value, other.name: other.value}
    return one.name == other.name or (values.keys() == {"EDV", "ESV"} and values["EDV"] < values["ESV"])


def _measured(entry: Measurement) -> str | None:
    """The structure that a value is of: the one that is named, or that its quantity says."""
    return entry.structure or QUANTITIES[entry.name].structure


def require_consistent(entries: Sequence[Feedback]) -> None:
    """Refuses entries of one call that contradict each other, or that call the patient of one image by two names.

    Raises:
        FeedbackError: They do; the message names both.
    """
    seen: dict[Hashable, list[Feedback]] = {}
    for entry in entries:
        for rival in seen.setdefault(_about(entry), []):
            if contradict(rival, entry) and not say_the_same(rival, entry):
                raise FeedbackError(
                    f"{entry.subject}: reviewer {entry.reviewer} contradicts itself: {describe(rival)}, and "
                    f"{describe(entry)}; keep one of them. Nothing was added"
                )
        seen[_about(entry)].append(entry)


def require_one_patient(entries: Iterable[Feedback], before: Iterable[Feedback]) -> None:
    """Refuses an image that is said to be of two patients: every split is by patient.

    Raises:
        FeedbackError: There is one.
    """
    patients = {entry.image_sha256: entry for entry in before if entry.image_sha256 is not None}
    for entry in entries:
        if entry.image_sha256 is None:
            continue
        known = patients.setdefault(entry.image_sha256, entry)
        if known.patient != entry.patient:
            raise FeedbackError(
                f"{entry.subject}: is of patient {entry.patient} here, and the same image was of patient "
                f"{known.patient} in entry {known.id}; give both the same name (--patient-pattern), or remove "
                "that entry first. Nothing was added"
            )


def state_hash(entries: Iterable[Feedback]) -> str:
    """SHA-256 over what entries say, whatever their order, ids, times and comments."""
    said = sorted(_said(entry) for entry in entries)
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def describe(entry: Entry) -> str:
    """What an entry says, in a few words."""
    match entry:
        case CorrectedMask():
            changed = f", {', '.join(entry.changed)} changed" if entry.changed else ""
            return f"corrected mask {entry.mask_sha256[:8]}{changed}"
        case Verdict():
            return f"{entry.decision} {entry.structure or 'all'} of mask {entry.mask_sha256[:8]}"
        case Grade():
            return f"grade {entry.grade} for {entry.structure or 'all'} of mask {entry.mask_sha256[:8]}"
        case Preference():
            better, worse = entry.better_sha256[:8], entry.worse_sha256[:8]
            return f"{entry.structure or 'mask'}: {better} better than {worse}"
        case Measurement():
            spread = "" if entry.uncertainty is None else f" ± {entry.uncertainty:g}"
            named = entry.name if entry.structure is None else f"{entry.name} of {entry.structure}"
            return f"{named} {entry.value:g}{spread} {entry.unit}"
        case Removal():
            return f"removes {entry.removes[:8]}: {entry.reason}"
        case _:
            raise TypeError(f"no kind of entry: {type(entry).__name__}")


def _about(entry: Feedback) -> Hashable:
    """Entries that are about different things cannot contradict each other."""
    measured = isinstance(entry, Measurement)
    return (measured, entry.reviewer, entry.image_sha256 or f"patient {entry.patient}")


def _pair(preference: Preference) -> frozenset[str]:
    return frozenset((preference.better_sha256, preference.worse_sha256))


def _said(entry: Entry) -> str:
    values: dict[str, Any] = {
        field.name: getattr(entry, field.name) for field in fields(entry) if field.name not in _NOT_SAID
    }
    return json.dumps({"kind": entry.kind, **values}, sort_keys=True)
