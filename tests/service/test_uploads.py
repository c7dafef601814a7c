"""Masks that come back, names with script in them, paths that lead elsewhere, and what is too large."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from support.desk import PLANE, SCHEMA, SIZE, DeskFolder, rings
from support.desk_client import client_of, decide, item_of, items, open_desk, pixels, send_file

from medfm_rl.data.images import write_labels
from medfm_rl.feedback import FeedbackStore
from medfm_rl.service.desk import Desk
from medfm_rl.types import Geometry

RAW = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def referred(desk: Desk) -> tuple[Any, str]:
    client = client_of(desk)
    return client, item_of(client, "refer")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd", ".png"])
def test_a_mask_of_any_tool_is_taken_and_comes_back(referred: tuple[Any, str], tmp_path: Path, suffix: str) -> None:
    client, item = referred
    labels = rings(SIZE, 20)
    write_labels(tmp_path / f"mask{suffix}", labels, PLANE, SCHEMA)
    answer = send_file(client, item, tmp_path / f"mask{suffix}")
    assert answer.status_code == 200, answer.text
    assert np.array_equal(pixels(client, f"/api/v1/cases/{item}/masks/{answer.json()['mask']}")[0], labels)


def test_raw_labels_may_be_packed(referred: tuple[Any, str]) -> None:
    client, item = referred
    body = rings(SIZE, 3).tobytes()
    path = f"/api/v1/cases/{item}/masks"
    plain = client.post(path, content=body, headers=RAW)
    packed = client.post(path, content=gzip.compress(body), headers={**RAW, "Content-Encoding": "gzip"})
    assert plain.json() == packed.json()


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", RAW, 422),
        (bytes(10), RAW, 422),
        (bytes(SIZE[0] * SIZE[1] + 1), RAW, 422),
        (b"\xff" * (SIZE[0] * SIZE[1]), RAW, 422),
        (bytes(SIZE[0] * SIZE[1]), {**RAW, "X-Shape": f"1,{SIZE[1]},{SIZE[0]}"}, 422),
        (gzip.compress(bytes(50_000_000)), {**RAW, "Content-Encoding": "gzip"}, 422),
        (b"no gzip", {**RAW, "Content-Encoding": "gzip"}, 422),
        (gzip.compress(bytes(100))[:-4], {**RAW, "Content-Encoding": "gzip"}, 422),
        (bytes(10), {**RAW, "Content-Encoding": "br"}, 415),
        (b"{}", {"Content-Type": "application/json"}, 415),
        (b"{}", {}, 415),
        (b"--x", {"Content-Type": "multipart/form-data"}, 400),
        (b"--x--", {"Content-Type": "multipart/form-data; boundary=x"}, 422),
        (b"x", {**RAW, "Content-Length": "99999999999"}, 413),
        (b"x", {**RAW, "Content-Length": "-1"}, 400),
    ],
    ids=[
        "nothing",
        "too short",
        "too long",
        "unknown integers",
        "another shape",
        "50 MB of zeros",
        "no gzip",
        "gzip cut off",
        "brotli",
        "JSON",
        "no type",
        "no boundary",
        "no parts",
        "longer than said",
        "shorter than nothing",
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(
    referred: tuple[Any, str], content: bytes, headers: dict[str, str], status: int
) -> None:
    client, item = referred
    answer = client.post(f"/api/v1/cases/{item}/masks", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert {"code", "message", "remedy"} == answer.json()["error"].keys()


def test_a_body_without_a_length_is_cut_off_at_the_limit(folder: DeskFolder) -> None:
    client = client_of(open_desk(folder, most_upload=100_000))
    item = item_of(client, "refer")

    def endless() -> Any:
        for _ in range(1000):
            yield bytes(10_000)

    answer = client.post(f"/api/v1/cases/{item}/masks", content=endless(), headers=RAW)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_files_that_unpack_to_more_than_a_mask_can_be_are_refused(referred: tuple[Any, str], tmp_path: Path) -> None:
    client, item = referred
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(bytes(200_000_000), 9))
    answer = send_file(client, item, bomb)
    assert answer.status_code == 422
    assert "unpacks to more than" in answer.json()["error"]["message"]


def test_a_mask_larger_than_memory_is_refused_by_its_header(referred: tuple[Any, str], tmp_path: Path) -> None:
    client, item = referred
    header = nib.Nifti1Header()
    header.set_data_shape((30_000, 30_000, 1000))
    header.set_data_dtype(np.uint8)
    path = tmp_path / "huge.nii"
    path.write_bytes(header.binaryblock + bytes(4) + bytes(1000))
    answer = send_file(client, item, path)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert "900000000000 pixels, and the image has 3072" in error["message"]
    assert str(tmp_path) not in answer.text


def test_a_header_that_names_another_file_reads_nothing(referred: tuple[Any, str], tmp_path: Path) -> None:
    client, item = referred
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(SIZE[0] * SIZE[1]))
    sizes = f"DimSize = {SIZE[1]} {SIZE[0]}"
    for name, text in {
        "m.mha": f"ObjectType = Image\nNDims = 2\n{sizes}\nElementType = MET_UCHAR\nElementDataFile = {secret}\n",
        "m.mhd": f"ObjectType = Image\nNDims = 2\n{sizes}\nElementType = MET_UCHAR\nElementDataFile = {secret}\n",
        "m.nrrd": f"NRRD0004\ntype: uchar\ndimension: 2\nsizes: {SIZE[1]} {SIZE[0]}\n"
        f"encoding: raw\ndata file: {secret}\n\n",
    }.items():
        (tmp_path / name).write_text(text)
        answer = send_file(client, item, tmp_path / name)
        assert answer.status_code == 422, (name, answer.text)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.nii.gz", "C:\\x\\m.nii.gz", "a\r\nX-Evil: 1.nii.gz", "<script>.nii.gz"]
)
def test_the_name_of_a_file_that_is_sent_leads_nowhere(
    referred: tuple[Any, str], folder: DeskFolder, tmp_path: Path, name: str
) -> None:
    client, item = referred
    write_labels(tmp_path / "mask.nii.gz", rings(SIZE, 3), PLANE, SCHEMA)
    before = set(folder.store.parent.rglob("*"))
    answer = send_file(client, item, tmp_path / "mask.nii.gz", name)
    assert answer.status_code in (200, 400, 422)
    assert "X-Evil" not in answer.headers
    new = set(folder.store.parent.rglob("*")) - before
    assert not [path for path in new if path.suffix == ".gz" and path.name != "mask.nii.gz"]


def test_a_mask_on_another_grid_is_told_apart(referred: tuple[Any, str], tmp_path: Path) -> None:
    client, item = referred
    write_labels(tmp_path / "mask.nii.gz", rings(SIZE, 3), Geometry((2.0, 2.0), (0.0, 0.0), PLANE.direction), SCHEMA)
    answer = send_file(client, item, tmp_path / "mask.nii.gz")
    assert answer.status_code == 422
    assert "the mask that was sent" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "a" * 5000, "%ff%fe"])
def test_ids_lead_to_no_file(desk: Desk, path: str) -> None:
    client = client_of(desk)
    for place in ("/api/v1/cases/{}", "/api/v1/cases/{}/image", "/static/{}", "/api/v1/jobs/{}/report", "/{}"):
        answer = client.get(place.format(path))
        assert answer.status_code in (400, 404, 405, 422), (place, answer.status_code)
        assert b"root:" not in answer.content


def test_script_in_names_and_comments_stays_text(folder: DeskFolder, tmp_path: Path) -> None:
    """In cases, structures, reasons and comments: it comes as JSON, and a page that shows it has no inline script."""
    place = tmp_path / "scores"
    place.mkdir()
    content = json.loads((folder.scores / "scores.json").read_text())
    evil = '<img src=x onerror=alert(1)>"\r\nSet-Cookie: a=b'
    for case in content["cases"]:
        case["case_id"] = f"{evil}{case['case_id']}"[:240]
        case["reasons"] = [evil]
        case["rules"][0]["structure"] = evil
    (place / "scores.json").write_text(json.dumps(content))
    client = client_of(open_desk(DeskFolder(**{**vars(folder), "scores": place}), streams=(), corrections=()))
    for each in items(client):
        case = client.get(f"/api/v1/cases/{each['item']}")
        assert case.headers["content-type"] == "application/json"
        assert evil in case.json()["name"]
        download = client.get(f"/api/v1/cases/{each['item']}/download")
        assert download.status_code == 200
        assert "set-cookie" not in download.headers
        assert "\r" not in download.headers["content-disposition"]
    decide(client, items(client)[0]["item"], {"kind": "verdict", "value": "accept"}, comment=evil)
    with FeedbackStore.open(folder.store) as store:
        assert store.entries()[0].comment == evil
    policy = client.get("/login").headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy


def test_a_foreign_name_of_the_host_gets_no_answer(desk: Desk) -> None:
    client = client_of(desk)
    for host in ("evil.example", "127.0.0.1.evil.example", "", "evil.example:8765", "a@evil.example"):
        answer = client.get("/api/v1/me", headers={"Host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "host"), host
    assert client.get("/health", headers={"Host": "localhost:8765"}).status_code == 200


def test_what_is_downloaded_opens_elsewhere(referred: tuple[Any, str], folder: DeskFolder, tmp_path: Path) -> None:
    client, item = referred
    name = next(each["name"] for each in items(client) if each["item"] == item)
    answer = client.get(f"/api/v1/cases/{item}/download")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert set(archive.namelist()) == {f"image/{name}.nii.gz", "mask.nii.gz", "labels.txt"}
        assert archive.read(f"image/{name}.nii.gz") == (folder.images / f"{name}.nii.gz").read_bytes()
        archive.extract("mask.nii.gz", tmp_path)
    again = send_file(client, item, tmp_path / "mask.nii.gz")
    assert again.status_code == 200
    shown = pixels(client, f"/api/v1/cases/{item}/masks/given")
    assert np.array_equal(pixels(client, f"/api/v1/cases/{item}/masks/{again.json()['mask']}"), shown)
