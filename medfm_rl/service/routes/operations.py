"""Health, readiness, metrics, and the description of the service itself."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from medfm_rl.errors import UserError
from medfm_rl.service.asking import ERRORS, Administrator, Reviewer, TheDesk
from medfm_rl.service.metrics import metrics_text

router = APIRouter(responses=ERRORS, tags=["operations"])


class Health(BaseModel):
    """Whether the service runs."""

    status: str


@router.get("/health", response_model=Health)
def health() -> Health:
    """Whether the process answers."""
    return Health(status="ok")


@router.get("/ready", response_model=Health, responses={503: {"model": Health, "description": "Not ready"}})
def ready(desk: TheDesk) -> Any:
    """Whether the database answers."""
    try:
        with desk.database.reading() as connection:
            connection.exec_driver_sql("SELECT 1")
    except UserError:
        return JSONResponse({"status": "the database does not answer"}, 503)
    return Health(status="ready")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request, desk: TheDesk, who: Administrator) -> Response:
    """Numbers of the desk in Prometheus' text format."""
    del who
    desk.work.refresh()
    return Response(metrics_text(desk, request.app.state.timings), media_type="text/plain; version=0.0.4")


@router.get("/api/v1/openapi.json", response_class=JSONResponse)
def openapi(request: Request, who: Reviewer) -> JSONResponse:
    """This description."""
    del who
    return JSONResponse(request.app.openapi())


class Line(BaseModel):
    """A line of the audit log."""

    number: int
    time: str
    reviewer: str
    action: str
    case_name: str | None
    image_sha256: str | None
    detail: str


@router.get("/api/v1/audit", response_model=list[Line])
def audit(
    desk: TheDesk,
    who: Administrator,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[Line]:
    """The audit log: who read, wrote or decided what, and who changed who may."""
    del who
    return [Line(**row) for row in desk.database.notes(after, limit)]
