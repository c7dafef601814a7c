"""Who asks, and what they may: what every route of the service depends on."""

from __future__ import annotations

import hmac
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Security
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from medfm_rl.service.access import Principal
from medfm_rl.service.desk import Desk
from medfm_rl.service.errors import DeskError
from medfm_rl.service.limits import RateLimit
from medfm_rl.settings.openid import Role

COOKIE = "desk_session"
_BEARER = HTTPBearer(auto_error=False, description="The token that the command printed, or one of POST /api/v1/tokens.")
_SESSION = APIKeyCookie(name=COOKIE, auto_error=False, description="The session of a browser.")
_READS = ("GET", "HEAD", "OPTIONS")


class Fault(BaseModel):
    """What went wrong."""

    code: str
    message: str
    remedy: str


class ErrorBody(BaseModel):
    """Any answer that is an error."""

    error: Fault


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request cannot be read",
        401: "Nobody is logged in",
        403: "The role or the CSRF token is wrong",
        404: "It is not there",
        409: "Others are at work on it, or files have changed",
        413: "Too much was sent",
        422: "What was sent is not valid",
        429: "Asked too often",
        503: "The disk or the database takes or gives nothing at the moment; the same can be sent again",
    }.items()
}


def desk_of(request: Request) -> Desk:
    """The desk that a request is to."""
    found: Desk = request.app.state.desk
    return found


def client_of(request: Request) -> str:
    """Address of who asks."""
    return "" if request.client is None else request.client.host


class Needs:
    """Lets those in who have a role.

    Args:
        role: The least that is needed.
        csrf_in_header: Whether the CSRF token comes in a header; a route that takes it from a form asks `require_csrf`.
    """

    def __init__(self, role: Role, csrf_in_header: bool = True) -> None:
        self.role: Role = role
        self._in_header = csrf_in_header

    def __call__(
        self,
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
        session: Annotated[str | None, Security(_SESSION)],
        x_csrf_token: Annotated[str | None, Header(description="Of GET /me; where a cookie says who asks.")] = None,
    ) -> Principal:
        """Who asks.

        Raises:
            DeskError: Nobody who may.
        """
        desk = desk_of(request)
        found = (
            desk.access.by_bearer(bearer.credentials)
            if bearer is not None
            else desk.access.by_session(session)
            if session
            else None
        )
        if found is None:
            failures: RateLimit = request.app.state.failures
            failures.use(client_of(request))
            raise DeskError(401, "login", "nobody is logged in", "log in, or send `Authorization: Bearer TOKEN`")
        requests: RateLimit = request.app.state.requests
        requests.use(found.reviewer)
        if self._in_header and bearer is None and request.method not in _READS:
            require_csrf(desk, found, x_csrf_token or "")
        if not found.may(self.role):
            raise DeskError(403, "role", f"this takes the role {self.role}", "ask who administers the desk")
        return found


def require_csrf(desk: Desk, who: Principal, token: str) -> None:
    """Refuses what another site could have had a browser send.

    Raises:
        DeskError: The token is not that of the session.
    """
    if not hmac.compare_digest(desk.access.csrf_of(who).encode(), token.encode(errors="surrogatepass")):
        raise DeskError(403, "csrf", "the CSRF token is missing or of another session", "ask GET /me for it")


TheDesk = Annotated[Desk, Depends(desk_of)]
Reviewer = Annotated[Principal, Depends(Needs("reviewer"))]
ReviewerByForm = Annotated[Principal, Depends(Needs("reviewer", csrf_in_header=False))]
Lead = Annotated[Principal, Depends(Needs("lead"))]
Administrator = Annotated[Principal, Depends(Needs("administrator"))]
