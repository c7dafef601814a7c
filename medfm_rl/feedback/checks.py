"""What has to hold between new entries and what is in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medfm_rl.feedback.entries import CorrectedMask, Entry, Removal, Verdict, masks_of, structures_of
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.standing import Standing, describe


def require_entries(new: Sequence[Entry], before: Sequence[Entry]) -> None:
    """Refuses removals of what is not there, or not in force any more.

    Raises:
        FeedbackError: There is one.
    """
    known = {entry.id: entry for entry in (*before, *new)}
    removed = {entry.removes: entry for entry in before if isinstance(entry, Removal)}
    for entry in new:
        if not isinstance(entry, Removal):
            continue
        found = known.get(entry.removes)
        if found is None:
            raise FeedbackError(f"entry {entry.removes}: is not in the store, and cannot be removed")
        if isinstance(found, Removal):
            raise FeedbackError(
                f"entry {entry.removes}: is a removal itself, and cannot be removed; add what it took away again"
            )
        if entry.removes in removed:
            earlier = removed[entry.removes]
            raise FeedbackError(
                f"entry {entry.removes}: reviewer {earlier.reviewer} has removed it already ({earlier.reason})"
            )


def require_masks(entries: Sequence[Entry], names: Mapping[str, tuple[str, ...]]) -> None:
    """Refuses entries that name masks, or structures of masks, that are not there.

    Raises:
        FeedbackError: There is one.
    """
    for entry in entries:
        for sha256 in masks_of(entry):
            if sha256 not in names:
                raise FeedbackError(f"{entry.subject}: mask {sha256} is not in the store; give it with the entry")
            known = names[sha256][1:]
            for structure in structures_of(entry):
                if structure not in known:
                    raise FeedbackError(
                        f"{entry.subject}: there is no structure {structure!r} in the mask, it has {', '.join(known)}; "
                        "correct the name, or say all. Nothing was added"
                    )
        if isinstance(entry, CorrectedMask) and entry.replaces_sha256 is not None:
            corrected, shown_ = names[entry.mask_sha256], names[entry.replaces_sha256]
            if corrected != shown_:
                raise FeedbackError(
                    f"{entry.subject}: the corrected mask has {', '.join(corrected[1:])} and the one that was shown "
                    f"{', '.join(shown_[1:])}; both must have the same structures. Nothing was added"
                )


def require_a_fault(entries: Sequence[Entry], names: Mapping[str, tuple[str, ...]]) -> None:
    """Refuses entries of one call that reject a mask as a whole and accept each of its structures.

    Raises:
        FeedbackError: There are such; the message names the mask.
    """
    said: dict[tuple[str, str], list[Verdict]] = {}
    for entry in entries:
        if isinstance(entry, Verdict):
            said.setdefault((entry.reviewer, entry.mask_sha256), []).append(entry)
    for (reviewer, sha256), verdicts in said.items():
        accepted = {verdict.structure for verdict in verdicts if verdict.decision == "accept"}
        rejected = [verdict for verdict in verdicts if verdict.decision == "reject" and verdict.structure is None]
        structures = names.get(sha256, ())[1:]
        if rejected and structures and accepted.issuperset(structures):
            raise FeedbackError(
                f"{rejected[0].subject}: reviewer {reviewer} contradicts itself: {describe(rejected[0])}, and each of "
                "its structures is accepted; reject the one that is at fault, or accept the mask. Nothing was added"
            )


def require_in_force(new: Sequence[Entry], after: Standing) -> None:
    """Refuses new entries that would be out of force at once, for what contradicts them is later by its clock.

    Raises:
        FeedbackError: There is one.
    """
    for entry in new:
        later = after.replaced.get(entry.id)
        if later is not None and later not in new:
            raise FeedbackError(
                f"{entry.subject}: {describe(entry)} is of {entry.time:%Y-%m-%d %H:%M:%S} UTC by this machine, and "
                f"{describe(later)} in the store, by the same reviewer, of {later.time:%Y-%m-%d %H:%M:%S}; set the "
                "clock of this machine. Nothing was added"
            )
