"""Scores by REST are those of the command, byte for byte, and of files within the roots alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from support.desk import DeskFolder
from support.desk_client import client_of, open_desk

from medfm_rl.data.layouts import find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import DataSettings
from medfm_rl.workflows.deploy.score import ScoreRequest, score


@pytest.fixture
def scoring(folder: DeskFolder, quality_run: Path, tmp_path: Path) -> Iterator[TestClient]:
    desk = open_desk(folder, run=quality_run, roots=(quality_run.parent,), jobs=tmp_path / "jobs")
    yield client_of(desk)
    assert desk.scorer is not None
    desk.scorer.close()


def test_scores_are_those_of_the_command_byte_for_byte(scoring: TestClient, quality_run: Path, tmp_path: Path) -> None:
    data = quality_run.parent / "data"
    image = sorted((data / "images").glob("*.nii.gz"))[0]
    mask = data / "labels" / image.name
    name = image.name.removesuffix(".nii.gz")
    sent = {"image": (image.name, image.read_bytes()), "mask": (mask.name, mask.read_bytes())}
    answer = scoring.post("/api/v1/score", files=sent, data={"name": name})
    assert answer.status_code == 200, answer.text
    (place,) = (tmp_path / "jobs" / "scored").glob(f"{name}-*")
    files = find_cases(DataSettings(path=place / "images"))
    score(load_run(quality_run), files, tmp_path / "out", ScoreRequest(masks=find_masks(place / "masks", files)))
    assert answer.content == (tmp_path / "out" / "scores.json").read_bytes()
    assert scoring.post("/api/v1/score", files=sent, data={"name": name}).content == answer.content
    by_path = {"images": str(place / "images"), "masks": str(place / "masks")}
    assert scoring.post("/api/v1/score/paths", json=by_path).status_code == 403
    inside = {"images": str(data / "images"), "masks": str(data / "labels")}
    found = scoring.post("/api/v1/score/paths", json=inside)
    assert found.status_code == 200, found.text
    assert len(found.json()["cases"]) == len(list((data / "images").glob("*.nii.gz")))


def test_what_a_full_disk_cut_off_is_sent_again_and_scored(
    scoring: TestClient, quality_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = quality_run.parent / "data"
    image = sorted((data / "images").glob("*.nii.gz"))[0]
    sent = {
        "image": (image.name, image.read_bytes()),
        "mask": (image.name, (data / "labels" / image.name).read_bytes()),
    }
    write = Path.write_bytes

    def cut_off(path: Path, content: bytes) -> int:
        write(path, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut_off)
        refused = scoring.post("/api/v1/score", files=sent, data={"name": "p1"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage")
    assert "No space left on device" in refused.json()["error"]["message"]
    assert int(refused.headers["Retry-After"]) > 0
    answer = scoring.post("/api/v1/score", files=sent, data={"name": "p1"})
    assert answer.status_code == 200, answer.text
    assert not list((tmp_path / "jobs").rglob("*unfinished*"))


def test_what_is_wrong_with_a_file_is_said_without_where_it_lies(scoring: TestClient, tmp_path: Path) -> None:
    sent = {"image": ("a.nii.gz", b"none"), "mask": ("a.nii.gz", b"none")}
    refused = scoring.post("/api/v1/score", files=sent, data={"name": "p1"})
    assert refused.status_code == 422
    assert "images/p1.nii.gz: cannot be read" in refused.text
    assert str(tmp_path) not in refused.text


def test_paths_lead_nowhere_else(scoring: TestClient, quality_run: Path, tmp_path: Path) -> None:
    root = quality_run.parent / "linked"
    root.mkdir(exist_ok=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.png").write_bytes(b"x")
    link, within = root / "folder", root / "inside"
    within.mkdir(exist_ok=True)
    for path, target in ((link, outside), (within / "x.png", outside / "x.png")):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    wrong = [
        str(outside),
        str(link),
        str(within),
        "/",
        "/etc",
        f"{root}/../..",
        "relative",
        "\0",
        "x" * 5000,
        "/proc/self",
    ]
    answers = [scoring.post("/api/v1/score/paths", json={"images": text, "masks": text}) for text in wrong]
    assert {answer.status_code for answer in answers} <= {403, 422}
    # What is not there and what may not be seen get the same answer.
    missing = scoring.post("/api/v1/score/paths", json={"images": "/none", "masks": "/none"})
    assert missing.json() == answers[0].json()


def test_headers_that_name_other_files_are_refused(scoring: TestClient, quality_run: Path, tmp_path: Path) -> None:
    """Sent or by path: they could name any file that the server may read."""
    (tmp_path / "secret.raw").write_bytes(bytes(16))
    header = (
        "ObjectType = Image\nNDims = 2\nDimSize = 4 4\nElementType = MET_UCHAR\n"
        f"ElementDataFile = {tmp_path / 'secret.raw'}\n"
    ).encode()
    detached = f"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 4 4\ndata file: {tmp_path / 'secret.raw'}\n".encode()
    listed = header.replace(b"ElementDataFile = ", b"ElementDataFile = LIST\n")
    many = detached.replace(b"secret.raw", b"secre%d.raw 1 1 1")
    named = {"a.mhd": header, "a.nhdr": detached, "a.nrrd": detached, "b.nrrd": many, "a.mha": header, "b.mha": listed}
    for name, content in named.items():
        sent = {"image": (name, content), "mask": (name, content)}
        refused = scoring.post("/api/v1/score", files=sent, data={"name": "p1"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "kind")
    assert not list((tmp_path / "jobs").rglob("*.raw")) + list((tmp_path / "jobs").rglob("*.mha"))
    within = quality_run.parent / "headers"
    within.mkdir(exist_ok=True)
    (within / "a.mhd").write_bytes(header)
    asked = {"images": str(within), "masks": str(within)}
    assert scoring.post("/api/v1/score/paths", json=asked).status_code == 403
    (within / "a.raw").write_bytes(bytes(16))
    (within / "a.mhd").write_bytes(header.replace(str(tmp_path / "secret.raw").encode(), b"a.raw"))
    assert scoring.post("/api/v1/score/paths", json=asked).status_code == 422


@pytest.mark.parametrize("name", ["a/b", "..\\x", "a\nb", "x" * 201, os.sep])
def test_names_of_cases_are_no_paths(scoring: TestClient, name: str) -> None:
    sent = {"image": ("a.png", b"x"), "mask": ("a.png", b"x")}
    assert scoring.post("/api/v1/score", files=sent, data={"name": name}).status_code == 422
