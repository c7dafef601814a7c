"""The queue and its leases."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from medfm_rl.service.access import Principal
from medfm_rl.service.asking import ERRORS, Lead, Reviewer, TheDesk
from medfm_rl.service.catalogue import KINDS, Item, Kind
from medfm_rl.service.desk import Desk
from medfm_rl.service.leases import Lease

router = APIRouter(prefix="/api/v1", tags=["queue"], responses=ERRORS)
_LONGEST_ID = 64
State = Literal["open", "leased", "done"]


class Me(BaseModel):
    """Who is logged in."""

    reviewer: str
    role: str
    csrf: str
    users: bool
    blind_second_reading_share: float
    lease_seconds: int


class QueueItem(BaseModel):
    """Something to review."""

    item: str
    case: str
    name: str
    kind: Kind
    reason: str
    state: State
    by_me: bool
    score: float | None
    leased_by: str | None


class Queue(BaseModel):
    """What there is to do."""

    items: list[QueueItem]
    total: int
    left: dict[str, int]
    done: int
    median_seconds: float | None
    my_median_seconds: float | None


class NextOf(BaseModel):
    """What is wanted next."""

    kinds: list[Kind] | None = Field(None, description="Of these kinds alone.")
    after: str | None = Field(None, max_length=_LONGEST_ID, description="Behind this item of the queue.")


class Leased(BaseModel):
    """An item that is kept for who asked."""

    item: str
    case: str
    name: str
    kind: Kind
    reason: str
    lease: str
    expires: str


@router.get("/me", response_model=Me)
def me(desk: TheDesk, who: Reviewer) -> Me:
    """Who is logged in, and what a page has to send along."""
    return Me(
        reviewer=who.reviewer,
        role=who.role,
        csrf=desk.access.csrf_of(who),
        users=desk.access.with_users,
        blind_second_reading_share=desk.request.second_share,
        lease_seconds=desk.request.lease_seconds,
    )


@router.get("/queue", response_model=Queue)
def queue(
    desk: TheDesk,
    who: Reviewer,
    kind: Literal["all", Kind] = "all",
    state: Literal["all", State] = "all",
    text: Annotated[str, Query(max_length=200)] = "",
    offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Queue:
    """The queue in its order, and what is left of each kind."""
    desk.refresh()
    held = desk.leases.held()
    items = desk.work.items(who.reviewer, who.may("lead"))
    states = {item.id: _state(desk, item, held, who) for item in items}
    left = Counter(item.kind for item in items if states[item.id] != "done")
    wanted = [
        item
        for item in items
        if kind in ("all", item.kind)
        and state in ("all", states[item.id])
        and text.casefold() in item.view.name.casefold()
    ]
    shown = [
        QueueItem(
            item=item.id,
            case=item.id,
            name=item.view.name,
            kind=item.kind,
            reason=item.reason,
            state=states[item.id],
            by_me=desk.work.decided_by(item, who.reviewer),
            score=None if item.view.blind else item.view.lowest_dice,
            leased_by=held[item.id].reviewer if item.id in held else None,
        )
        for item in wanted[offset : offset + limit]
    ]
    return Queue(
        items=shown,
        total=len(wanted),
        left={kind: left[kind] for kind in KINDS if left[kind]},
        done=desk.work.today(who.reviewer),
        median_seconds=desk.work.median_seconds(),
        my_median_seconds=desk.work.median_seconds(who.reviewer),
    )


@router.post("/queue/next", response_model=Leased, responses={204: {"description": "Nothing is left"}})
def next_item(desk: TheDesk, who: Reviewer, wanted: NextOf | None = None) -> Any:
    """Keeps the next open item for who asks."""
    asked = wanted or NextOf()
    desk.work.refresh()
    items = desk.work.items(who.reviewer, who.may("lead"))
    names = [item.id for item in items]
    begin = names.index(asked.after) + 1 if asked.after in names else 0
    while True:
        candidates = (
            item.id
            for item in items[begin:]
            if (not asked.kinds or item.kind in asked.kinds) and not desk.work.is_done(item)
        )
        found = desk.leases.take_first(candidates, who.reviewer)
        if found is None:
            return Response(status_code=204)
        # Whoever had it until a moment ago may have decided it; from the lease on nobody can.
        desk.work.refresh()
        if not desk.work.is_done(desk.item(found.item)):
            return _leased(desk, found)


@router.post("/items/{item}/lease", response_model=Leased)
def lease_item(item: str, desk: TheDesk, who: Reviewer) -> Leased:
    """Keeps an item for who asks."""
    return _leased(desk, desk.leases.take(desk.item(item).id, who.reviewer))


@router.post("/leases/{lease}/renew", response_model=Leased)
def renew(lease: str, desk: TheDesk, who: Reviewer) -> Leased:
    """Keeps an item longer."""
    return _leased(desk, desk.leases.renew(lease, who.reviewer))


@router.delete("/leases/{lease}", status_code=204)
def give_back(lease: str, desk: TheDesk, who: Reviewer) -> Response:
    """Gives an item back undecided."""
    desk.leases.give_back(lease, who.reviewer)
    return Response(status_code=204)


class Standing(BaseModel):
    """How second readings stand."""

    asked: int
    answered: int
    agreeing: int
    disagreements: int


@router.get("/readings", response_model=Standing)
def readings(desk: TheDesk, who: Lead) -> Standing:
    """How second readings agree."""
    del who
    desk.work.refresh()
    return Standing(**vars(desk.work.readings()))


def _state(desk: Desk, item: Item, held: dict[str, Lease], who: Principal) -> State:
    if desk.work.is_done(item):
        return "done"
    return "leased" if item.id in held and held[item.id].reviewer != who.reviewer else "open"


def _leased(desk: Desk, found: Lease) -> Leased:
    item = desk.item(found.item)
    return Leased(
        item=item.id,
        case=item.id,
        name=item.view.name,
        kind=item.kind,
        reason=item.reason,
        lease=found.lease,
        expires=found.expires,
    )
