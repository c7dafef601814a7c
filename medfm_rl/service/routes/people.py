"""Users and their roles, and tokens for programs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from medfm_rl.choices import Role
from medfm_rl.service.access import LONGEST_PASSWORD, User
from medfm_rl.service.asking import ERRORS, Administrator, Reviewer, TheDesk

router = APIRouter(prefix="/api/v1", tags=["people"], responses=ERRORS)
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Opaque id of a reviewer, such as r07.")]


class Wanted(BaseModel):
    """How a user is to be."""

    model_config = ConfigDict(extra="forbid")
    role: Role = "reviewer"
    password: str | None = Field(None, max_length=10 * LONGEST_PASSWORD, description="Needed for a new user.")
    active: bool = True


class Shown(BaseModel):
    """A user."""

    name: str
    role: str
    active: bool
    created: str


class TokenWanted(BaseModel):
    """A token for a program."""

    model_config = ConfigDict(extra="forbid")
    label: str = Field("", max_length=64, pattern=r"^[\w .-]*$", description="What it is for.")
    days: int = Field(90, ge=1, le=366, description="After how many days it ends.")


class Token(BaseModel):
    """A token; it is shown this once."""

    token: str


@router.get("/users", response_model=list[Shown])
def users(desk: TheDesk, who: Administrator) -> list[Shown]:
    """Who may use the desk."""
    del who
    return [_shown(user) for user in desk.access.users()]


@router.put("/users/{name}", response_model=Shown)
def set_user(name: Name, wanted: Wanted, desk: TheDesk, who: Administrator) -> Shown:
    """Makes or changes a user. From the first one on everybody logs in by name and password."""
    return _shown(desk.access.set_user(who.reviewer, name, wanted.role, wanted.password, wanted.active))


@router.post("/tokens", status_code=201, response_model=Token)
def new_token(wanted: TokenWanted, desk: TheDesk, who: Reviewer) -> Token:
    """A token by which a program acts for who asks."""
    return Token(token=desk.access.new_token(who, wanted.label, wanted.days))


def _shown(user: User) -> Shown:
    return Shown(name=user.name, role=user.role, active=user.active, created=user.created)
