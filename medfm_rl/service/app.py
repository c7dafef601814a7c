"""The service as a FastAPI application."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from medfm_rl.errors import MissingExtraError, StorageError, UserError
from medfm_rl.service.desk import Desk
from medfm_rl.service.errors import DeskError, in_parts
from medfm_rl.service.limits import RateLimit
from medfm_rl.service.metrics import Timed, Timings
from medfm_rl.service.middleware import Guard
from medfm_rl.service.routes import cases, decisions, learning, operations, pages, people, queue, scoring
from medfm_rl.settings import OpenIDSettings
from medfm_rl.version import __version__

_LOG = logging.getLogger(__name__)
_MINUTES_AWAY = 15
"""How long somebody may take to sign in at an organisation."""
_SECONDS_FOR_STORAGE = 10
"""After how long what a disk or database did not take is sent again."""
_WORDS = {400: "request", 404: "not_found", 405: "method", 413: "too_large", 415: "content_type"}
PARTS = (queue, cases, decisions, learning, people, scoring, pages, operations)
"""Modules with the routes of the service, each a `router`."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


def create_app(
    desk: Desk,
    hosts: frozenset[str] = LOOPBACK_NAMES,
    https_only: bool = False,
    requests_a_minute: int = 6000,
    by_tls: bool = False,
    under: str = "",
) -> FastAPI:
    """The service of a desk.

    Args:
        desk: What it answers from.
        hosts: Names by which it may be called.
        https_only: Whether a proxy has to say that it was asked by https.
        requests_a_minute: How many requests of one reviewer are answered.
        by_tls: Whether browsers ask it by https.
        under: The path that it lies under behind a proxy, such as `/desk`; empty where it has a name of its own.
    """
    app = FastAPI(
        title="medfm-rl desk",
        version=__version__,
        description="Review masks, decide, correct, and have a segmenter learn from it.",
        # Swagger's page loads scripts from elsewhere; the description itself is at /api/v1/openapi.json.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.desk = desk
    app.state.timings = Timings()
    app.state.logins = RateLimit(10, 300.0, "attempts to log in by this name")
    # A whole department can stand behind one address.
    app.state.addresses = RateLimit(60, 300.0, "attempts to log in from this address")
    app.state.failures = RateLimit(300, 60.0, "requests of nobody who is logged in")
    app.state.requests = RateLimit(requests_a_minute, 60.0, "requests")
    for part in PARTS:
        app.include_router(part.router)
    if desk.request.openid is not None:
        _let_in_by_organisation(app, desk, desk.request.openid, by_tls or https_only, under)
    app.mount("/static", StaticFiles(directory=pages.STATIC), "static")
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)

    app.add_middleware(Timed, timings=app.state.timings)
    app.add_middleware(Guard, hosts=hosts, most_body=desk.request.most_upload, https_only=https_only, under=under)
    return app


def _let_in_by_organisation(app: FastAPI, desk: Desk, settings: OpenIDSettings, by_tls: bool, under: str) -> None:
    """Adds the way over an identity provider.

    Raises:
        MissingExtraError: What it needs is not installed.
    """
    if any(importlib.util.find_spec(package) is None for package in ("authlib", "httpx2", "itsdangerous")):
        raise MissingExtraError("signing in by OpenID Connect needs further packages: pip install 'medfm-rl[openid]'")
    from starlette.middleware.sessions import SessionMiddleware

    from medfm_rl.service.organisation import Organisation
    from medfm_rl.service.routes import organisation

    app.state.organisation = Organisation(settings, desk.database)
    app.include_router(organisation.router)
    # What was asked of the provider, until the browser comes back; it has to come along from another site.
    app.add_middleware(
        SessionMiddleware,
        secret_key=app.state.organisation.key,
        session_cookie="desk_openid",
        max_age=_MINUTES_AWAY * 60,
        same_site="lax",
        https_only=by_tls,
        path=f"{under}/login",
    )


def _error(status: int, code: str, message: str, remedy: str, after: int | None = None) -> JSONResponse:
    headers = {} if after is None else {"Retry-After": str(after)}
    return JSONResponse({"error": {"code": code, "message": message, "remedy": remedy}}, status, headers)


def _user_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UserError)
    message, remedy = in_parts(error)
    if isinstance(error, DeskError):
        return _error(error.status, error.code, message, remedy, error.after)
    if isinstance(error, StorageError):
        # Nothing is wrong with what was sent: a page keeps it and sends it again, where it would give up by a 422.
        _LOG.error("%s %s: %s", request.method, request.url.path, error)
        return _error(503, "storage", message, remedy, _SECONDS_FOR_STORAGE)
    return _error(422, "data", message, remedy)


def _not_valid(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, RequestValidationError)
    first: Any = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return _error(422, "not_valid", f"{place}: {first['msg']}", "see /api/v1/openapi.json for what is expected")


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _WORDS.get(error.status_code, "request")
    answer = _error(error.status_code, code, f"{error.detail}: {request.method} {request.url.path}", "see the address")
    answer.headers.update(error.headers or {})
    return answer


def _defect(request: Request, error: Exception) -> JSONResponse:
    _LOG.error("%s %s", request.method, request.url.path, exc_info=error)
    return _error(500, "defect", "the service made a mistake", "see its log, and tell whoever maintains it")
