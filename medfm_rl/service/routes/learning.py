"""What the store would teach, and the jobs that have a model learn it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from medfm_rl.data.layouts import is_simulated
from medfm_rl.feedback.standing import standing
from medfm_rl.service import learning
from medfm_rl.service.asking import ERRORS, Lead, Reviewer, TheDesk
from medfm_rl.service.database import digest_of
from medfm_rl.service.desk import Desk
from medfm_rl.service.errors import DeskError, not_found
from medfm_rl.service.jobs import REPORT, Job, Kind, progress_of
from medfm_rl.service.routes.decisions import Key

router = APIRouter(prefix="/api/v1", tags=["learning"], responses=ERRORS)
# Pages of runs have their styles and pictures within them, and no script.
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"


class JobWanted(BaseModel):
    """A job to be started."""

    model_config = ConfigDict(extra="forbid")
    kind: Kind
    job: str | None = Field(
        None, max_length=64, description="Of a comparison: the adaptation whose run is the new one."
    )


class JobFault(BaseModel):
    """Why a job failed."""

    message: str
    remedy: str


class JobShown(BaseModel):
    """A job as the page shows it."""

    job: str
    kind: str
    state: str
    progress: float | None
    step: str
    created: str
    started: str | None
    finished: str | None
    log: list[str]
    report: str | None
    error: JobFault | None
    comparison: dict[str, Any] | None
    of: str | None


@router.get("/learn", response_model=dict[str, Any])
def learn(desk: TheDesk, who: Reviewer) -> dict[str, Any]:
    """What the store holds, and what a new adaptation would use of it."""
    desk.work.refresh()
    history = desk.database.store.history()
    entries = standing(history).in_force
    found = learning.teaching(history, desk.catalogue)
    readings = desk.work.readings()
    run = desk.request.run
    running = any(job.state in ("waiting", "running") for job in desk.jobs.all())
    why_not = (
        "the desk was opened without a run: open it with --run"
        if run is None
        else "nothing that teaches is in the store yet: review cases first"
        if not (found.cases or found.verdicts)
        else "a job is running"
        if running
        else ""
        if who.may("lead")
        else "this takes the role lead"
    )
    images = [(view.first, path) for view in list(desk.catalogue.views.values())[:1] for path in view.first.images]
    simulated = any(is_simulated(place.parent) for case, path in images if (place := case.find(path)) is not None)
    return {
        "store": {
            "name": desk.database.store.where,
            **learning.store_summary(entries),
            "second": {
                "asked": readings.asked,
                "answered": readings.answered,
                "agreement": readings.agreeing / readings.answered if readings.answered else None,
                "disagreements": readings.disagreements,
            },
        },
        "next": {
            "run": None if run is None else str(run),
            "patients": found.patients,
            "cases": found.cases,
            "masks": found.cases,
            "verdicts": found.verdicts,
            "kept_cases": found.kept_cases,
            "kept_patients": found.kept_patients,
            "texts": learning.sentences(found, run),
            "command": None if run is None else learning.command_of(desk.jobs.folder / "JOB"),
        },
        "can_start": not why_not,
        "why_not": why_not,
        "simulated": simulated,
    }


@router.post("/jobs", status_code=201, response_model=JobShown)
def start_job(wanted: JobWanted, desk: TheDesk, who: Lead, key: Key = None) -> JobShown:
    """Starts an adaptation, or the comparison of a finished one with the run that it went on from."""
    run = learning.require_run(desk.request.run)
    arguments = learning.arguments_of_adaptation(desk.catalogue, run)
    if wanted.kind == "compare":
        made = desk.jobs.job(wanted.job or "")
        if made.kind != "adapt" or made.state != "done":
            raise DeskError(409, "not_done", f"job {made.id} is no finished adaptation", "wait until it is done")
        arguments = {
            "old": made.arguments["run"],
            "new": str(desk.jobs.folder / made.id / learning.RUN),
            "images": arguments["images"],
            "of": made.id,
        }
    digest = None if key is None else digest_of("job", who.reviewer, key)
    return _shown(desk, desk.jobs.add(wanted.kind, arguments, who.reviewer, digest))


@router.get("/jobs", response_model=list[JobShown])
def jobs(desk: TheDesk, who: Reviewer) -> list[JobShown]:
    """All jobs, the newest first."""
    del who
    return [_shown(desk, job) for job in desk.jobs.all()]


@router.get("/jobs/{job}", response_model=JobShown)
def job(job: str, desk: TheDesk, who: Reviewer) -> JobShown:
    """A job: its state, how far it is, and what it told last."""
    del who
    return _shown(desk, desk.jobs.job(job))


@router.delete("/jobs/{job}", response_model=JobShown)
def stop_job(job: str, desk: TheDesk, who: Lead) -> JobShown:
    """Ends a job; what it has finished stays."""
    return _shown(desk, desk.jobs.stop(job, who.reviewer))


@router.get("/jobs/{job}/report", response_class=HTMLResponse, responses={200: {"content": {"text/html": {}}}})
def report(job: str, desk: TheDesk, who: Reviewer) -> Response:
    """The page that an adaptation wrote."""
    del who
    path = desk.jobs.folder / desk.jobs.job(job).id / learning.RUN / REPORT
    if not path.is_file():
        raise not_found("report", "an adaptation writes one when it is done")
    return HTMLResponse(path.read_bytes(), headers={"Content-Security-Policy": _REPORT_POLICY})


def _shown(desk: Desk, job: Job) -> JobShown:
    lines = desk.jobs.log(job)
    step, share = progress_of(lines)
    place = desk.jobs.folder / job.id
    fault, _, remedy = (job.error or "").partition("; ")
    return JobShown(
        job=job.id,
        kind=job.kind,
        state=job.state,
        progress=1.0 if job.state == "done" else share,
        step=step,
        created=job.created,
        started=job.started,
        finished=job.ended,
        log=lines,
        report=f"/api/v1/jobs/{job.id}/report" if (place / learning.RUN / REPORT).is_file() else None,
        error=None if job.error is None else JobFault(message=fault, remedy=remedy or "see the log"),
        comparison=learning.comparison_of(place) if job.kind == "compare" and job.state == "done" else None,
        of=job.arguments.get("of"),
    )
