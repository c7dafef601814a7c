"""Pages, the ways in and out, and the files that pages load."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, Header, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader

from medfm_rl.service.access import LONGEST_PASSWORD, Principal
from medfm_rl.service.asking import COOKIE, ERRORS, ReviewerByForm, TheDesk, client_of, desk_of, require_csrf
from medfm_rl.service.errors import DeskError
from medfm_rl.service.limits import RateLimit
from medfm_rl.version import __version__

router = APIRouter(responses=ERRORS, include_in_schema=True, default_response_class=HTMLResponse)
TEMPLATES = Path(str(resources.files("medfm_rl.service") / "templates"))
STATIC = Path(str(resources.files("medfm_rl.service") / "static"))
_PAGES = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
_TO_PAGE: dict[int | str, dict[str, Any]] = {
    303: {"description": "To the page, or to the login"},
    200: {"content": {"text/html": {}}},
}


@router.get("/", responses=_TO_PAGE, tags=["pages"])
def desk_page(request: Request) -> Response:
    """The page where cases are reviewed."""
    return _page(request, "desk.html")


@router.get("/learn", responses=_TO_PAGE, tags=["pages"])
def learn_page(request: Request) -> Response:
    """The page where a new adaptation is started and looked at."""
    return _page(request, "learn.html")


@router.get("/login", responses=_TO_PAGE, tags=["pages"])
def login_page(request: Request, desk: TheDesk, token: str | None = None) -> Response:
    """Starts a session by the address that the command printed, or shows a form."""
    if token is None:
        return login_form(request, None)
    return enter(request, lambda: desk.access.log_in_by_token(token), "token")


@router.post("/login", responses=_TO_PAGE, tags=["pages"])
def log_in(
    request: Request,
    desk: TheDesk,
    name: Annotated[str, Form(max_length=64)] = "",
    password: Annotated[str, Form(max_length=LONGEST_PASSWORD)] = "",
    token: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """Starts a session, by name and password or by the token; one that the browser had ends."""
    if desk.access.with_users:
        return enter(request, lambda: desk.access.log_in(name, password), name)
    return enter(request, lambda: desk.access.log_in_by_token(token), "token")


@router.post("/logout", responses=_TO_PAGE, tags=["pages"])
def log_out(
    request: Request,
    desk: TheDesk,
    who: ReviewerByForm,
    csrf: Annotated[str, Form(max_length=200)] = "",
    x_csrf_token: Annotated[str, Header()] = "",
) -> Response:
    """Ends the session; the CSRF token comes in the form, or in the header."""
    if who.session is not None:
        require_csrf(desk, who, csrf or x_csrf_token)
    desk.access.log_out(request.cookies.get(COOKIE, ""))
    answer = RedirectResponse(f"{_under(request)}/login", 303)
    answer.delete_cookie(COOKIE, path=_under(request) or "/")
    return answer


def enter(request: Request, start: Callable[[], str], who: str, by_page: bool = False) -> Response:
    """Starts a session, or shows the form again with what was wrong.

    Args:
        request: Who wants in.
        start: Starts it; returns what the browser keeps.
        who: By whose name attempts are counted.
        by_page: Whether a page sends the browser on to the desk, and no redirect.
    """
    limits: list[tuple[RateLimit, str]] = [
        (request.app.state.addresses, client_of(request)),
        (request.app.state.logins, who),
    ]
    try:
        for limit, key in limits:
            limit.use(key)
        session = start()
    except DeskError as error:
        if error.status == 401:
            desk_of(request).database.note("nobody", "login refused", client=client_of(request))
        return login_form(request, error)
    for limit, key in limits:
        limit.give_back(key)
    before = request.cookies.get(COOKIE)
    if before:
        # A session that somebody else may know of does not become that of who logs in.
        desk_of(request).access.log_out(before)
    answer: Response = RedirectResponse(f"{_under(request)}/", 303)
    if by_page:
        answer = HTMLResponse(_PAGES.get_template("signed_in.html").render(version=__version__, under=_under(request)))
    answer.set_cookie(
        COOKIE,
        session,
        max_age=int(3600 * desk_of(request).request.session_hours),
        path=_under(request) or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


def login_form(request: Request, error: DeskError | None) -> HTMLResponse:
    """The form to sign in by, with what was wrong before."""
    desk = desk_of(request)
    told = None if error is None else f"{error.message[0].upper()}{error.message[1:]}: {error.remedy}."
    page = _PAGES.get_template("login.html").render(
        version=__version__,
        under=_under(request),
        error=told,
        passwords=desk.access.with_passwords,
        organisation="/login/organisation" if desk.request.openid is not None else None,
    )
    headers = {} if error is None or error.after is None else {"Retry-After": str(error.after)}
    return HTMLResponse(page, 200 if error is None else error.status, headers)


def _page(request: Request, name: str) -> Response:
    session = request.cookies.get(COOKIE)
    who: Principal | None = desk_of(request).access.by_session(session) if session else None
    if who is None:
        return RedirectResponse(f"{_under(request)}/login", 303)
    return HTMLResponse(_PAGES.get_template(name).render(version=__version__, under=_under(request)))


def _under(request: Request) -> str:
    """The path that the desk lies under; empty where it has a name of its own."""
    found: str = request.scope["root_path"]
    return found
