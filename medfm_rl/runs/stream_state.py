"""Adding to a stream: any number of processes do, a line is there whole or not at all, and nothing is rewritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from medfm_rl.data.files import append_lines
from medfm_rl.data.locks import in_turn
from medfm_rl.errors import DataError
from medfm_rl.quality.drift import audit_draw
from medfm_rl.runs.stream_history import (
    STREAM_FORMAT,
    UNKNOWN,
    Restart,
    Review,
    StreamHistory,
    StreamIdentity,
    Study,
    StudyCase,
    read_stream,
)

_CLOCKS_DIFFER: Final = timedelta(minutes=5)
"""How far the clocks of machines that share a stream may be apart."""
Decide = Callable[[StreamHistory], Mapping[str, str]]
"""From a stream with its new studies to the verdict of each new mask, by its key."""


def require_usable(path: Path, identity: StreamIdentity, now: datetime | None = None) -> None:
    """Refuses a stream that `add_studies` would refuse, before anything is assessed for it.

    Raises:
        DataError: As in `add_studies`.
    """
    if path.exists():
        history = read_stream(path)
        _require_same(history, identity)
        _time(history, now)


def add_studies(
    path: Path,
    identity: StreamIdentity,
    patients: Mapping[str, Sequence[StudyCase]],
    now: datetime | None = None,
    decide: Decide | None = None,
) -> tuple[list[Study], int]:
    """Adds studies to a stream, which is made where there is none; masks that are in it already are left out.

    Args:
        path: The stream.
        identity: What it is of. Of one that is there, seed and share stay as they are.
        patients: Masks by patient, in the order of the studies; whether they are drawn for audit is settled here.
        now: The time; None for that of the clock.
        decide: Gives the verdicts, told how the stream stands with these studies; no other process adds meanwhile.
            None: the masks have theirs.

    Returns:
        The new studies, and how many masks were there already.

    Raises:
        DataError: The stream is of another scanner, protocol, site or quality model, the clock ran backwards, or the
            file cannot be used.
    """
    with in_turn(path.with_name(f"{path.name}.turn")):
        new: list[Mapping[str, Any]] = []
        if path.exists():
            history = read_stream(path)
            _require_same(history, identity)
        else:
            history = StreamHistory(path, identity)
            new.append({"kind": "stream", "format": STREAM_FORMAT, **asdict(identity)})
        time, known = _time(history, now), history.cases.keys()
        seen = {study.patient for study in history.studies}
        added, repeated = [], 0
        for patient, cases in patients.items():
            fresh = tuple(case for case in cases if case.key not in known)
            repeated += len(cases) - len(fresh)
            if fresh:
                added.append(_study(history, time, patient, fresh, patient not in seen))
        verdicts: Mapping[str, str] = {}
        if decide is not None:
            verdicts = decide(replace(history, events=[*history.events, *added]))
        added = [
            replace(study, cases=tuple(_settled(case, verdicts, history.identity) for case in study.cases))
            for study in added
        ]
        new += [study.to_json() for study in added]
        if new:
            append_lines(path, new)
    return added, repeated


def add_reviews(path: Path, dice: Mapping[str, float], now: datetime | None = None) -> int:
    """Adds what reviews found of masks of a stream, by their keys; what is known already is left out.

    Returns:
        How many are new.

    Raises:
        DataError: A mask is not of the stream, or as in `add_studies`.
    """
    with in_turn(path.with_name(f"{path.name}.turn")):
        history = read_stream(path)
        masks = history.cases
        strangers = [key for key in dice if key not in masks]
        if strangers:
            raise DataError(f"{path}: {len(strangers)} reviewed masks are not of this stream; add their scores first")
        known, time = history.reviews, _time(history, now)
        if any(review.time == time for review in known.values()):
            # What one call has reviewed is told by its time.
            time = (datetime.fromisoformat(time) + timedelta(microseconds=1)).isoformat(timespec="microseconds")
        new = [Review(time, key, value) for key, value in dice.items() if key not in known or known[key].dice != value]
        if new:
            append_lines(path, [{"kind": "review", **asdict(review)} for review in new])
        return len(new)


def restart(path: Path, reason: str, now: datetime | None = None) -> None:
    """Has a stream begin anew after a change, for a reason that is kept.

    Raises:
        DataError: As in `add_studies`, or there is no reason.
    """
    if not reason.strip():
        raise DataError(f"{path}: a stream begins anew for a reason; say which")
    with in_turn(path.with_name(f"{path.name}.turn")):
        append_lines(path, [{"kind": "restart", **asdict(Restart(_time(read_stream(path), now), reason))}])


def _study(history: StreamHistory, time: str, patient: str, cases: Sequence[StudyCase], tested: bool) -> Study:
    """A new study of a stream.

    Raises:
        DataError: What its images look like cannot be compared with those before: no later call could read the stream.
    """
    known = next((len(study.look) for study in history.studies if study.look), None)
    counts = {len(case.look) for case in cases if case.look} | (set() if known is None else {known})
    if len(counts) > 1:
        raise DataError(
            f"{history.path}: the images of patient {patient} are described by {sorted(counts)} numbers, and all of a "
            "stream need as many (`look` in scores.json); score them again with the run of this stream"
        )
    return Study.of(time, patient, cases, tested)


def _settled(case: StudyCase, verdicts: Mapping[str, str], identity: StreamIdentity) -> StudyCase:
    """The mask with its verdict, drawn for audit or not."""
    verdict = verdicts.get(case.key, case.verdict)
    drawn = verdict == "accept" and audit_draw(identity.seed, case.key, identity.audit_share)
    return replace(case, verdict=verdict, audit=drawn)


def _time(history: StreamHistory, now: datetime | None) -> str:
    # A time without an offset is that of this machine.
    now = datetime.now(UTC) if now is None else now.astimezone(UTC)
    last = history.last_time
    if last is not None and last - now > _CLOCKS_DIFFER:
        raise DataError(
            f"{history.path}: the clock runs backwards: it is {now.isoformat(timespec='seconds')}, and the last line "
            f"is of {last.isoformat(timespec='seconds')}; set the clock of this machine, or check the other"
        )
    return (now if last is None else max(now, last)).isoformat(timespec="microseconds")


def _require_same(history: StreamHistory, identity: StreamIdentity) -> None:
    for name in ("scanner", "protocol", "site"):
        own, other = getattr(history.identity, name), getattr(identity, name)
        if other != UNKNOWN and own != other:
            raise DataError(
                f"{history.path}: is of {name} {own}, and these studies are said to be of {other}; a stream is of one "
                f"{name}: give another stream, or leave out --{name} if only the name has changed"
            )
    if history.identity.quality != identity.quality:
        raise DataError(
            f"{history.path}: its studies were assessed by another quality model; after a calibration numbers are not "
            "comparable: start another stream"
        )
