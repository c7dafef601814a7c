"""Scores for programs: what `medfm-rl score` says of an image and its mask, byte for byte."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from medfm_rl.service.asking import ERRORS, Reviewer, TheDesk
from medfm_rl.service.desk import Desk
from medfm_rl.service.errors import DeskError
from medfm_rl.service.scorer import Scorer

router = APIRouter(prefix="/api/v1/score", tags=["scoring"], responses=ERRORS)
_LONGEST_PATH = 4096
_JSON: dict[int | str, dict[str, Any]] = {
    200: {"description": "scores.json", "content": {"application/json": {"schema": {"type": "object"}}}}
}


class Places(BaseModel):
    """Folders of the machine that the service runs on."""

    model_config = ConfigDict(extra="forbid")
    images: str = Field(max_length=_LONGEST_PATH, description="Folder of images, within a --root.")
    masks: str = Field(max_length=_LONGEST_PATH, description="Folder of their masks.")


@router.post("", response_class=Response, responses=_JSON)
def score_upload(
    desk: TheDesk,
    who: Reviewer,
    image: Annotated[UploadFile, File(description="The image.")],
    mask: Annotated[UploadFile, File(description="Its mask.")],
    name: Annotated[str, Form(max_length=200, description="Name of the case, PATIENT_VIEW.")] = "case",
) -> Response:
    """Scores an image and its mask."""
    scorer = _scorer(desk)
    sent = ((image.filename or "", image.file.read()), (mask.filename or "", mask.file.read()))
    found = scorer.upload(name, *sent)
    desk.database.note(who.reviewer, "score", None, None, name=name)
    return Response(found, media_type="application/json")


@router.post("/paths", response_class=Response, responses=_JSON)
def score_paths(places: Places, desk: TheDesk, who: Reviewer) -> Response:
    """Scores the images of a folder and their masks."""
    found = _scorer(desk).by_path(places.images, places.masks)
    desk.database.note(who.reviewer, "score", None, None, images=places.images, masks=places.masks)
    return Response(found, media_type="application/json")


def _scorer(desk: Desk) -> Scorer:
    if desk.scorer is None:
        raise DeskError(409, "no_run", "the desk was opened without a run", "open it with the run of `adapt` (--run)")
    return desk.scorer
