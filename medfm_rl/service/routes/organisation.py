"""The way to the identity provider of an organisation, and back; there where a desk has one."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from medfm_rl.service.asking import ERRORS, client_of, desk_of
from medfm_rl.service.errors import DeskError
from medfm_rl.service.organisation import Organisation
from medfm_rl.service.routes.pages import enter, login_form

router = APIRouter(prefix="/login/organisation", tags=["pages"], responses=ERRORS)


@router.get("", response_class=HTMLResponse)
async def leave(request: Request) -> Response:
    """Sends the browser to the organisation."""
    try:
        request.app.state.addresses.use(client_of(request))
        back = str(request.url_for("come_back"))
        return await _organisation(request).leave_for(request, back)
    except DeskError as error:
        return login_form(request, error)


@router.get("/back", response_class=HTMLResponse)
async def come_back(request: Request) -> Response:
    """Starts a session for whom the organisation vouches."""
    try:
        vouched = await _organisation(request).vouch(request)
    except DeskError as error:
        desk_of(request).database.note("nobody", "login refused", client=client_of(request))
        return login_form(request, error)
    # The browser comes from another site, and would not show a strict cookie if it were sent on by a redirect: a page
    # of our own sends it on.
    return enter(
        request,
        lambda: desk_of(request).access.log_in_vouched(vouched.reviewer, vouched.role),
        vouched.reviewer,
        by_page=True,
    )


def _organisation(request: Request) -> Organisation:
    found: Organisation = request.app.state.organisation
    return found
