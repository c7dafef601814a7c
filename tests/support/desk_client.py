"""A desk in this process, and what people and programs do with it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from argon2 import PasswordHasher
from fastapi.testclient import TestClient
from support.desk import DeskFolder

from medfm_rl.service import access
from medfm_rl.service.app import create_app
from medfm_rl.service.desk import Desk
from medfm_rl.service.request import DeskRequest

TOKEN = "the-token-of-the-tests"
PASSWORD = "a password long enough"
# Passwords of tests are nobody's, and hashing them as is right for those of people takes most of the time.
access.HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def open_desk(folder: DeskFolder, **more: Any) -> Desk:
    """A desk on all that lies in a folder."""
    fields = {
        "store": folder.store,
        "scores": (folder.scores,),
        "corrections": (folder.corrections,),
        "streams": (folder.stream,),
        "jobs": folder.store.parent / "jobs",
        **more,
    }
    return Desk(DeskRequest(**fields), TOKEN)


def on_this_machine(app: Any) -> TestClient:
    """A client that asks as programs and browsers of the desk's own machine do."""
    return TestClient(
        app,
        base_url="http://localhost",
        client=("127.0.0.1", 50000),
        raise_server_exceptions=False,
        follow_redirects=False,
    )


def client_of(desk: Desk, token: str | None = TOKEN) -> TestClient:
    """A program that shows a token, or none."""
    client = on_this_machine(create_app(desk))
    if token is not None:
        client.headers["Authorization"] = f"Bearer {token}"
    return client


def make_users(desk: Desk, **roles: Any) -> None:
    """Users by name and role, all with one password; the first of them administrates."""
    for name, role in roles.items():
        desk.access.set_user("test", name, role, PASSWORD)


def logged_in(desk: Desk, name: str) -> TestClient:
    """The browser of a user, with what the page sends along."""
    client = client_of(desk, None)
    answer = client.post("/login", data={"name": name, "password": PASSWORD})
    assert answer.status_code == 303, answer.text
    client.headers["X-CSRF-Token"] = client.get("/api/v1/me").json()["csrf"]
    return client


def items(client: httpx.Client, **filters: str) -> list[dict[str, Any]]:
    """The queue."""
    answer = client.get("/api/v1/queue", params=filters)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


def item_of(client: httpx.Client, kind: str) -> str:
    """The first item of a kind."""
    return str(items(client, kind=kind)[0]["item"])


def decide(
    client: httpx.Client, item: str, *parts: Mapping[str, Any], key: str | None = None, **more: Any
) -> httpx.Response:
    """Sends a decision."""
    headers = {"Idempotency-Key": key or str(uuid.uuid4())}
    body = {"decisions": list(parts), "seconds": 2.0, **more}
    return client.post(f"/api/v1/items/{item}/decisions", json=body, headers=headers)


def pixels(client: httpx.Client, path: str) -> np.ndarray:
    """An array as the page gets it."""
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    shape = tuple(map(int, answer.headers["X-Shape"].split(",")))
    return np.frombuffer(answer.content, answer.headers["X-Dtype"]).reshape(shape)


def send_labels(client: httpx.Client, item: str, labels: np.ndarray) -> str:
    """Sends a mask as the page does; returns its hash."""
    answer = client.post(
        f"/api/v1/cases/{item}/masks",
        content=labels.astype(np.uint8).tobytes(),
        headers={"Content-Type": "application/octet-stream"},
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["mask"])


def send_file(client: httpx.Client, item: str, path: Path, name: str | None = None) -> httpx.Response:
    """Sends a mask as a file."""
    return client.post(f"/api/v1/cases/{item}/masks", files={"file": (name or path.name, path.read_bytes())})
