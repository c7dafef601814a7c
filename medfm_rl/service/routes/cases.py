"""A case: what is known of it, its pixels, masks that come back, and all of it to take along."""

from __future__ import annotations

import io
import zipfile
from typing import Annotated, Any
from urllib.parse import quote
from zlib import crc32

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.files import scratch_folder
from medfm_rl.data.images import write_labels
from medfm_rl.service.access import Principal
from medfm_rl.service.asking import ERRORS, Reviewer, TheDesk, client_of
from medfm_rl.service.catalogue import Item
from medfm_rl.service.desk import Desk
from medfm_rl.service.errors import DeskError, not_found
from medfm_rl.service.pixels import Array, packed, raw
from medfm_rl.service.showing import mask_named
from medfm_rl.service.uploads import labels_of_bytes, labels_of_file

router = APIRouter(prefix="/api/v1/cases", tags=["cases"], responses=ERRORS)
_LOOPBACK = ("127.0.0.1", "::1")
_BYTES = "application/octet-stream"
_PIXELS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Little-endian values in C order, (z or frame, y, x[, channel]); X-Shape and X-Dtype say which",
        "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "What If-None-Match names"},
}
_From = Annotated[int, Query(alias="from", ge=0, le=10_000_000, description="First plane or frame.")]
_To = Annotated[int | None, Query(ge=0, le=10_000_000, description="The plane or frame behind the last one.")]


class Kept(BaseModel):
    """A mask that is kept until a decision names it."""

    mask: str


@router.get("/{case}", response_model=dict[str, Any])
def case(case: str, desk: TheDesk, who: Reviewer) -> dict[str, Any]:
    """All that is known of a case but for its pixels."""
    item = desk.item(case)
    found = desk.showing.describe(item, who.reviewer, desk.work.readings_of(item))
    _note(desk, who, "read case", item)
    return found


@router.get("/{case}/image", responses=_PIXELS, response_class=Response)
def image(case: str, request: Request, desk: TheDesk, who: Reviewer, first: _From = 0, to: _To = None) -> Response:
    """Pixels of the image."""
    item = desk.item(case)
    picture = desk.showing.pixels.picture(item.view)
    _note(desk, who, "read image", item)
    return _array(request, picture.values[_some(picture.planes, first, to)], f"{picture.files[0][1]}:{first}:{to}")


@router.get("/{case}/masks/{mask}", responses=_PIXELS, response_class=Response)
def mask_pixels(
    case: str, mask: str, request: Request, desk: TheDesk, who: Reviewer, first: _From = 0, to: _To = None
) -> Response:
    """Class indices of a mask that is shown, or that the same reviewer has sent."""
    item = desk.item(case)
    readings = desk.work.readings_of(item)
    shown = desk.showing.masks(item, who.reviewer, readings)
    if any(mask in (each.id, each.role) for each in shown):
        labels = desk.showing.labels(item, mask_named(shown, mask).source, readings)
    else:
        shape = desk.showing.pixels.picture(item.view).shape
        labels = desk.drafts.labels(item.view.id, mask, shape, who.reviewer)
    _note(desk, who, "read mask", item)
    return _array(request, labels[_some(len(labels), first, to)], f"{mask}:{first}:{to}")


@router.get("/{case}/rewards", responses=_PIXELS, response_class=Response)
def rewards(case: str, request: Request, desk: TheDesk, who: Reviewer, first: _From = 0, to: _To = None) -> Response:
    """The reward map of the mask that was scored: 255 where a pixel is right with probability 1."""
    item = desk.item(case)
    found = desk.showing.pixels.rewards(item.view)
    if found is None:
        raise not_found("reward map", "ask GET /cases/CASE whether there is one (has_rewards)")
    _note(desk, who, "read rewards", item)
    return _array(request, found[_some(len(found), first, to)], f"rewards:{item.id}:{first}:{to}")


@router.post(
    "/{case}/masks",
    response_model=Kept,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                _BYTES: {"schema": {"type": "string", "format": "binary"}},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"file": {"type": "string", "format": "binary"}},
                        "required": ["file"],
                    }
                },
            },
        }
    },
    responses={415: ERRORS[422]},
)
async def send_mask(case: str, request: Request, desk: TheDesk, who: Reviewer) -> Kept:
    """Keeps a mask until a decision names it: one byte for each pixel of the grid, or a file of any tool."""
    item = await run_in_threadpool(desk.item, case)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _BYTES:
        body = await request.body()
        coding = request.headers.get("content-encoding", "identity").lower()
        if coding not in ("identity", "gzip"):
            raise DeskError(415, "encoding", f"Content-Encoding {coding} is not known", "send it by gzip, or as it is")
        name: str | None = None
    elif kind == "multipart/form-data":
        body, name = await _file_of(request, desk.request.most_upload)
        coding = "identity"
    else:
        raise DeskError(415, "content_type", f"Content-Type {kind or 'is missing'}", f"send {_BYTES}, or a form")
    return Kept(
        mask=await run_in_threadpool(
            _keep, desk, who, item, body, coding == "gzip", name, request.headers.get("x-shape")
        )
    )


@router.get("/{case}/download", responses={200: {"content": {"application/zip": {}}}}, response_class=Response)
def download(case: str, desk: TheDesk, who: Reviewer, mask: str | None = None) -> Response:
    """The image as it is and its mask as NIfTI, for 3D Slicer or ITK-SNAP; what comes back goes to POST .../masks."""
    item = desk.item(case)
    readings = desk.work.readings_of(item)
    picture = desk.showing.pixels.picture(item.view)
    shown = desk.showing.masks(item, who.reviewer, readings)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, scratch_folder(desk.scratch(), "download") as folder:
        for path in picture.files[0][0].image_paths:
            inside = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
            for file in inside:
                archive.write(file, f"image/{file.relative_to(path.parent)}", zipfile.ZIP_DEFLATED, 1)
        if shown:
            chosen = mask_named(shown, mask) if mask is not None else shown[0]
            labels = desk.showing.labels(item, chosen.source, readings)
            made = folder / "mask.nii.gz"
            schema = desk.showing.pixels.schema
            if picture.form == "clip":
                write_sequence(made, schema.to_ids(labels), picture.geometry, picture.times)
            else:
                own = labels if picture.form == "volume" else labels[0]
                write_labels(made, own, picture.geometry, schema)
            archive.write(made, "mask.nii.gz")
        named = "\n".join(f"{number} {name}" for name, number in desk.showing.pixels.schema.integers.items())
        archive.writestr("labels.txt", f"{named}\n", zipfile.ZIP_DEFLATED)
    _note(desk, who, "download", item)
    # Names of cases come from file names: quoted, so that none of them is a header of its own.
    header = f"attachment; filename=\"case.zip\"; filename*=UTF-8''{quote(item.view.name, safe='')}.zip"
    return Response(buffer.getvalue(), media_type="application/zip", headers={"Content-Disposition": header})


async def _file_of(request: Request, most: int) -> tuple[bytes, str]:
    """The file that a form holds, and what it is called.

    Raises:
        DeskError: It holds none, or cannot be read.
    """
    try:
        async with request.form(max_files=1, max_fields=4, max_part_size=most) as form:
            found = form.get("file")
            if not isinstance(found, UploadFile):
                raise DeskError(422, "form", "the form has no file of the name `file`", "send the mask as `file`")
            return await found.read(), found.filename or ""
    except HTTPException as error:
        raise DeskError(400, "form", f"the form cannot be read: {error.detail}", "send it again") from error


def _keep(
    desk: Desk, who: Principal, item: Item, body: bytes, compressed: bool, name: str | None, shape: str | None
) -> str:
    pixels = desk.showing.pixels
    picture = pixels.picture(item.view)
    if name is None:
        labels = labels_of_bytes(body, compressed, picture, pixels.schema, shape)
    else:
        labels = labels_of_file(name, body, picture, pixels.schema, item.view.name)
    sha256 = desk.drafts.keep(item.view.id, labels, who.reviewer)
    _note(desk, who, "send mask", item, mask=sha256)
    return sha256


def _note(desk: Desk, who: Principal, action: str, item: Item, **more: Any) -> None:
    sha256 = desk.showing.pixels.picture(item.view).files[0][1]
    desk.database.note(who.reviewer, action, item.view.name, sha256, item=item.id, **more)


def _some(count: int, first: int, to: int | None) -> slice:
    last = count if to is None else min(to, count)
    if first >= last:
        raise DeskError(422, "range", f"there is nothing from {first} to {last}", f"ask for a part of 0 to {count}")
    return slice(first, last)


def _array(request: Request, values: Array, content: str) -> Response:
    tag = f'"{_tag(content, values)}"'
    headers = {"ETag": tag, "X-Shape": ",".join(map(str, values.shape)), "X-Dtype": str(values.dtype)}
    headers["Vary"] = "Accept-Encoding"
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    # Labels shrink to little; to pack grey values for the same machine takes longer than to send them.
    worth = (values.dtype == np.uint8 and values.ndim == 3) or client_of(request) not in _LOOPBACK
    if worth and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(packed(values), media_type=_BYTES, headers={**headers, "Content-Encoding": "gzip"})
    return Response(raw(values), media_type=_BYTES, headers=headers)


def _tag(content: str, values: Array) -> str:
    return f"{crc32(content.encode()):08x}{crc32(np.ascontiguousarray(values).data):08x}"
