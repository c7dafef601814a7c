"""Whether what a store says can teach a segmenter: asked before a run is started, and told by entry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from medfm_rl.errors import DataError
from medfm_rl.feedback import (
    CorrectedMask,
    Feedback,
    FeedbackError,
    FeedbackStore,
    Grade,
    Measurement,
    Preference,
    Verdict,
)
from medfm_rl.feedback.agreement import expert_masks
from medfm_rl.feedback.entries import masks_of
from medfm_rl.runs.learned_feedback import ReviewedCase
from medfm_rl.settings.feedback import LearnedKind
from medfm_rl.types import LabelSchema
from medfm_rl.workflows.adapt.feedback.reported import SIZES, measured_structure

_MOST_NAMED: Final = 10
_TAUGHT_BY_VALUE: Final = ("EF", *SIZES)


def require_fitting(
    store: FeedbackStore,
    entries: Sequence[Feedback],
    kinds: Sequence[LearnedKind],
    reviewed: Sequence[ReviewedCase],
    schema: LabelSchema,
) -> None:
    """Refuses entries that cannot teach a segmenter of these structures, all that there are at once.

    Args:
        store: Where the masks are.
        entries: Those that would teach.
        kinds: What is learned from.
        reviewed: The masks of which each case would have one.
        schema: Structures of the segmenter.

    Raises:
        DataError: There are some; the message names case, entry and fault of each.
        FeedbackError: A mask is missing or damaged.
    """
    masks = _Masks(store, schema)
    taught = [entry for entry in entries if _kinds(entry) & set(kinds)]
    problems = [f"{_name(entry)}: {fault}" for entry in taught for fault in _faults(entry, masks, schema)]
    problems += _unalike(taught, masks, {case.masks for case in reviewed if len(case.masks) > 1})
    if not problems:
        return
    more = [f"and {len(problems) - _MOST_NAMED} more"] if len(problems) > _MOST_NAMED else []
    listed = "\n".join(f"  {line}" for line in [*problems[:_MOST_NAMED], *more])
    raise DataError(
        f"feedback: {len(problems)} entries of {store.where} cannot teach this segmenter; remove them (`medfm-rl "
        f"feedback remove STORE ID`) and add them as they should be, or leave their kind out of feedback.kinds:"
        f"\n{listed}"
    )


class _Masks:
    """Sizes and names of masks, and why one cannot teach; each is read once.

    Args:
        store: Where they are.
        schema: Structures of the segmenter.
    """

    def __init__(self, store: FeedbackStore, schema: LabelSchema) -> None:
        self._store = store
        self._schema = schema
        self._looks: dict[str, tuple[object, str | None]] = {}

    def look(self, sha256: str) -> tuple[object, str | None]:
        """What two masks must have in common, and what is wrong with this one; None where nothing is."""
        if sha256 not in self._looks:
            mask = self._store.mask(sha256)
            try:
                mask.labels_for(self._schema)
                fault = None
            except FeedbackError as error:
                fault = str(error)
            self._looks[sha256] = ((mask.shape, mask.names), fault)
        return self._looks[sha256]


def _kinds(entry: Feedback) -> set[LearnedKind]:
    """What `feedback.kinds` calls an entry: the acceptance of a whole mask is a reference, and a verdict too."""
    match entry:
        case CorrectedMask():
            return {"masks"}
        case Verdict():
            return {"accepted", "verdicts"} if entry.accepts_whole else {"verdicts"}
        case Grade():
            return {"grades"}
        case Preference():
            return {"preferences"}
        case Measurement():
            return {"measurements"}
        case _:
            return set()


def _faults(entry: Feedback, masks: _Masks, schema: LabelSchema) -> Iterator[str]:
    if isinstance(entry, Measurement):
        named = entry.structure is not None or entry.case is not None or entry.name not in SIZES
        if entry.name in _TAUGHT_BY_VALUE and named and measured_structure(entry.name, entry.structure, schema) is None:
            of = "no structure that is named" if entry.structure is None else f"the structure {entry.structure!r}"
            yield f"the value of {entry.name} is of {of}, and the segmenter has {', '.join(schema.structures)}"
        return
    if isinstance(entry, Verdict | Grade | Preference) and entry.structure not in (None, *schema.structures):
        yield f"speaks of the structure {entry.structure!r}, and the segmenter has {', '.join(schema.structures)}"
    for sha256 in (entry.mask_sha256,) if isinstance(entry, CorrectedMask) else masks_of(entry):
        fault = masks.look(sha256)[1]
        if fault is not None:
            yield fault


def _unalike(entries: Sequence[Feedback], masks: _Masks, together: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Masks of one image by several reviewers that make no consensus."""
    wanted = {frozenset(names) for names in together}
    experts = [
        entry
        for entry in entries
        if isinstance(entry, CorrectedMask) or (isinstance(entry, Verdict) and entry.accepts_whole)
    ]
    by_mask = {(entry.image_sha256, entry.mask_sha256): entry for entry in experts}
    for image, by_reviewer in expert_masks(experts).items():
        drawn = [mask.sha256 for mask in by_reviewer.values() if mask.drawn]
        names = list(dict.fromkeys(drawn or [mask.sha256 for mask in by_reviewer.values()]))
        if frozenset(names) in wanted and len({masks.look(name)[0] for name in names}) > 1:
            first, *others = (by_mask[image, name] for name in names)
            told = ", ".join(_name(other) for other in others)
            yield f"{_name(first)}: its mask and that of {told} differ in size or structures, and make no consensus"


def _name(entry: Feedback) -> str:
    return f"{entry.subject}, entry {entry.id}"
