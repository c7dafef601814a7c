"""The work of a desk: which masks are to be looked at, in which order, and why."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, get_args

from medfm_rl.choices import Drawn
from medfm_rl.data.images import is_video
from medfm_rl.errors import DataError
from medfm_rl.runs.stream_history import read_stream
from medfm_rl.service.request import DeskRequest
from medfm_rl.service.scored import (
    CORRECTIONS,
    PROPOSALS,
    Correction,
    Proposals,
    ScoredCase,
    read_corrections,
    read_proposals,
    read_scores,
    scores_path,
)
from medfm_rl.types import LabelSchema

Kind = Literal["audit", "learn", "refer", "correct", "compare", "second", "disagreement", "accepted"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of the queue: what promises rest on comes first."""
_ORDER: Final = {
    kind: place
    for place, kind in enumerate(
        ("audit", "disagreement", "learn", "refer", "compare", "correct", "second", "accepted")
    )
}
_OF_ONE_MASK: Final[tuple[Kind, ...]] = ("audit", "learn", "refer", "correct", "accepted")
"""What a mask can be asked about for; which of them it is can change with each opening of a desk."""
_FRAME: Final = re.compile(r"(.+)_frame(\d{3,})", re.DOTALL)
_ID_LENGTH: Final = 24


@dataclass(frozen=True, eq=False)
class View:
    """What is shown at once: an image, a volume or a clip with its masks.

    Attributes:
        id: Opaque.
        name: Of the case, or of the clip.
        patient: The patient.
        frames: The scored cases, one of an image or volume, those of a clip in their order.
        numbers: Place of each in the clip; empty where it is none.
        corrections: What `correct` proposes for each frame, where the view compares both; else empty.
    """

    id: str
    name: str
    patient: str
    frames: tuple[ScoredCase, ...]
    numbers: tuple[int, ...] = ()
    corrections: tuple[Correction | None, ...] = ()

    @property
    def first(self) -> ScoredCase:
        """The image, or the first frame."""
        return self.frames[0]

    @property
    def blind(self) -> bool:
        """Whether it is not to be told which mask is whose."""
        return bool(self.corrections)

    @property
    def lowest_dice(self) -> float | None:
        """The lowest predicted Dice of any structure of any frame; None where nothing is predicted."""
        found = [score.predicted_dice for frame in self.frames for score in frame.scores]
        return min((dice for dice in found if dice is not None), default=None)


@dataclass(frozen=True, eq=False)
class Item:
    """Something that a reviewer is asked.

    Attributes:
        id: Opaque.
        kind: What is asked.
        view: What is shown.
        reason: Why it is asked, in words.
        drawn: How it came to be reviewed, for the store.
        rank: Sorts within the kind, the smallest first.
        of: Of a second reading or a disagreement the item that was decided.
    """

    id: str
    kind: Kind
    view: View
    reason: str
    drawn: Drawn
    rank: float
    of: str | None = None

    @property
    def order(self) -> tuple[int, float, str]:
        """Place in the queue."""
        return _ORDER[self.kind], self.rank, self.view.name

    def under_other_kinds(self) -> tuple[str, ...]:
        """Ids under which an earlier desk may have asked the same about the same mask.

        A mask of an audit sample leaves it when its stream has the review, and other policies refer other masks. What
        was said of an audit sample is good for all; an audit sample has to be reviewed as one.
        """
        if self.kind == "audit" or self.kind not in _OF_ONE_MASK:
            return ()
        return tuple(_digest(kind, self.view.id) for kind in _OF_ONE_MASK if kind != self.kind)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """All that there is to do, in order.

    Attributes:
        items: By id, in the order of the queue.
        views: By id.
        structures: The structures in the order of their classes, with the integers that they likely have in files.
    """

    items: dict[str, Item]
    views: dict[str, View]
    structures: LabelSchema

    def following(self, item: Item, kind: Kind, reason: str) -> Item:
        """The item that asks about another one again."""
        return Item(_digest(kind, item.id), kind, item.view, reason, item.drawn, item.rank, item.id)


def read_catalogue(request: DeskRequest) -> Catalogue:
    """Puts the queue together from what `score`, `correct`, `propose` and `stream` wrote.

    A mask is asked about once: as part of an audit sample, to learn from, to compare with its correction, to be
    corrected, or as referred, the first of these that applies.

    Raises:
        DataError: A file cannot be read, or the scores are of different structures.
    """
    scored = [case for folder in request.scores for case in read_scores(folder)]
    corrections = {name: made for folder in request.corrections for name, made in read_corrections(folder).items()}
    proposed = [read_proposals(folder) for folder in request.proposals]
    audits = {case.key for stream in request.streams for case in read_stream(stream).open_audits}
    structures = _structures(scored, proposed, request)
    views = _views(scored)
    items: dict[str, Item] = {}
    taken: set[str] = set()
    for item in [*_proposed(proposed, views), *_drawn(views, audits)]:
        if item.view.id not in taken:
            taken.add(item.view.id)
            items[item.id] = item
    for view in views:
        if view.id in taken:
            continue
        found = _asked(view, corrections, request.accepted)
        if found is not None:
            items[found.id] = found
    ordered = dict(sorted(items.items(), key=lambda pair: pair[1].order))
    return Catalogue(ordered, {item.view.id: item.view for item in ordered.values()}, structures)


def state_of_files(request: DeskRequest) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when a file that `read_catalogue` reads is replaced or added to."""
    files = (
        *map(scores_path, request.scores),
        *(folder / CORRECTIONS for folder in request.corrections),
        *(folder / PROPOSALS for folder in request.proposals),
        *request.streams,
    )
    return tuple(map(_state_of, files))


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _structures(scored: Sequence[ScoredCase], proposed: Sequence[Proposals], request: DeskRequest) -> LabelSchema:
    """The structures: as they were named, as the scores have them, or as the proposals do."""
    found = {case.structures: case for case in scored if case.structures}
    if len(found) > 1:
        one, other = list(found.values())[:2]
        raise DataError(
            f"{other.folder}: scores {', '.join(other.structures)}, and {one.folder} {', '.join(one.structures)}; a "
            "desk is for masks of one kind: open one for each"
        )
    if request.structures is not None:
        return request.structures
    if found:
        # The integers of this package where nothing else is said: 1, 2, ... in the order of the classes.
        return LabelSchema.from_structures({name: number for number, name in enumerate(next(iter(found)), 1)})
    named = next((proposals.structures for proposals in proposed if proposals.structures is not None), None)
    if named is None:
        raise DataError(
            "nothing says which structures the masks have: no case could be scored; name them (--structures LV=1,MYO=2)"
        )
    return named


def _views(scored: Sequence[ScoredCase]) -> list[View]:
    """Images and volumes one by one, and the frames of a clip together."""
    clips: dict[tuple[str, str], list[tuple[int, ScoredCase]]] = {}
    views: list[View] = []
    for case in scored:
        frame = _FRAME.fullmatch(case.case) if len(case.images) == 1 else None
        if frame is None:
            views.append(_view(case.case, [case]))
        else:
            clips.setdefault((str(case.images[0]), frame[1]), []).append((int(frame[2]), case))
    for (path, name), frames in clips.items():
        frames.sort(key=lambda pair: pair[0])
        cases = [case for _, case in frames]
        # A picture can be called so without being one of several in its file.
        if len(frames) == 1 and not is_video(cases[0].images[0]) and not path.endswith((".nii", ".nii.gz", ".dcm")):
            views.append(_view(cases[0].case, cases))
        else:
            views.append(_view(name, cases, [number for number, _ in frames]))
    return views


def _view(name: str, cases: Sequence[ScoredCase], numbers: Sequence[int] = ()) -> View:
    masks = [f"{case.case}:{case.labels_sha256}" for case in cases]
    return View(_digest("view", *masks), name, cases[0].patient, tuple(cases), tuple(numbers))


def _proposed(proposed: Sequence[Proposals], views: Sequence[View]) -> list[Item]:
    known = {(frame.case, str(frame.mask)): view for view in views for frame in view.frames}
    items = []
    for proposals in proposed:
        for place, proposal in enumerate(proposals.proposals):
            view = known.get((proposal.case, str(proposal.mask)))
            if view is None:
                view = _view(
                    proposal.case,
                    [
                        ScoredCase(
                            proposal.case,
                            proposal.patient,
                            proposal.images,
                            proposal.mask,
                            None,
                            proposal.folder,
                            "correct",
                            "correct",
                            made_by=proposal.made_by,
                        )
                    ],
                )
            audit = proposal.kind == "audit"
            kind: Kind = "audit" if audit else "learn"
            why = proposal.why if audit else f"to learn from: {proposal.why}"
            drawn: Drawn = "audit" if audit else "informative"
            items.append(Item(_digest(kind, view.id), kind, view, why, drawn, place))
    return items


def _drawn(views: Sequence[View], audits: set[str]) -> Iterable[Item]:
    for view in views:
        if any(frame.key in audits for frame in view.frames):
            why = "drawn at random from the accepted masks of its stream"
            yield Item(_digest("audit", view.id), "audit", view, why, "audit", 0.0)


def _asked(view: View, corrections: dict[str, Correction], accepted: bool) -> Item | None:
    """What is asked about a view that nobody drew or proposed; None where nothing is."""
    worst = min(view.frames, key=lambda frame: ("refer", "correct", "use").index(frame.action))
    dice = view.lowest_dice
    rank = -1.0 if dice is None else dice
    made = tuple(corrections.get(frame.case) for frame in view.frames)
    if any(found is not None and found.mask is not None for found in made):
        compared = replace(view, id=_digest("compare", view.id), corrections=made)
        why = "a correction is proposed: which of the two is better?"
        return Item(_digest("compare", view.id), "compare", compared, why, "other", rank)
    if worst.action == "use":
        if not accepted:
            return None
        return Item(_digest("accepted", view.id), "accepted", view, _why(view, worst), "other", rank)
    referred = [found for found in made if found is not None and found.decision == "referred"]
    if worst.action == "refer" or referred:
        if worst.action != "refer":
            why = "could not be corrected: " + ("; ".join(referred[0].reasons) or "no proposal was better")
        else:
            why = _why(view, worst)
        return Item(_digest("refer", view.id), "refer", view, why, "other", rank)
    return Item(_digest("correct", view.id), "correct", view, _why(view, worst), "other", rank)


def _why(view: View, worst: ScoredCase) -> str:
    reasons = worst.problem or "; ".join(worst.reasons) or f"verdict {worst.verdict}"
    return f"frame {worst.case}: {reasons}" if view.numbers else reasons


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:_ID_LENGTH]
