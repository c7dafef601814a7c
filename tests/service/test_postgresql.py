"""A desk on a PostgreSQL server: what SQLite does for one machine, the server does for many."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import DBAPIError
from support.desk import DeskFolder
from support.desk_client import client_of, decide, items, logged_in, make_users, open_desk, pixels, send_labels
from support.postgresql_server import Server

from medfm_rl.errors import UserError
from medfm_rl.feedback import FeedbackStore
from medfm_rl.service.desk import Desk

pytestmark = pytest.mark.postgresql


@pytest.fixture
def url(server: Server) -> str:
    found = server.new_database(f"desk_{uuid.uuid4().hex}")
    FeedbackStore.create(found).close()
    return found


@pytest.fixture
def desk(folder: DeskFolder, url: str) -> Iterator[Desk]:
    opened = open_desk(folder, store=url)
    yield opened
    opened.database.close()


def test_decisions_masks_undo_and_the_log_are_kept_by_the_server(desk: Desk, url: str, folder: DeskFolder) -> None:
    client = client_of(desk)
    audit, refer = (items(client, kind=kind)[0]["item"] for kind in ("audit", "refer"))
    accepted = decide(client, audit, {"kind": "verdict", "value": "accept"})
    assert accepted.status_code == 201, accepted.text
    labels = pixels(client, f"/api/v1/cases/{refer}/masks/given").copy()
    labels[labels == 1] = 2
    sent = send_labels(client, refer, labels)
    assert decide(client, refer, {"kind": "mask", "mask": sent}).status_code == 201
    undone = client.post(f"/api/v1/decisions/{accepted.json()['decision']}/undo")
    assert undone.status_code == 201, undone.text
    again = open_desk(folder, store=url)
    assert [entry.kind for entry in again.database.store.history()] == ["verdict", "mask", "removal"]
    actions = [line["action"] for line in again.database.notes(0, 1000)]
    assert [actions.count(action) for action in ("decide", "undo")] == [2, 1]
    with pytest.raises((DBAPIError, UserError), match="only added to"), again.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM desk_audit")
    again.database.close()


def test_while_the_server_is_away_decisions_can_be_sent_again(desk: Desk, server: Server) -> None:
    client = client_of(desk)
    item, key = items(client, kind="audit")[0]["item"], str(uuid.uuid4())
    server.stop()
    try:
        answers = [decide(client, item, {"kind": "verdict", "value": "accept"}, key=key), client.get("/api/v1/me")]
    finally:
        server.start()
    # A page keeps what it gets a 5xx for; by a 4xx it would give the decision up.
    assert [answer.status_code for answer in answers] == [503, 503]
    assert answers[0].json()["error"]["code"] == "storage"
    assert "the database went away" in answers[0].json()["error"]["message"]
    assert decide(client, item, {"kind": "verdict", "value": "accept"}, key=key).status_code == 201


def test_two_reviewers_at_once_take_different_cases_and_nothing_is_doubled(desk: Desk) -> None:
    make_users(desk, ada="administrator", ben="reviewer", cem="reviewer")
    kinds = ["audit", "refer", "correct"]
    made: dict[str, list[str]] = {"ben": [], "cem": []}

    def review(name: str, client: TestClient) -> None:
        while (given := client.post("/api/v1/queue/next", json={"kinds": kinds})).status_code == 200:
            item = given.json()["item"]
            key = str(uuid.uuid4())
            answers = [decide(client, item, {"kind": "verdict", "value": "accept"}, key=key) for _ in range(2)]
            assert {answer.status_code for answer in answers} <= {200, 201}, answers[0].text
            made[name].append(item)

    threads = [threading.Thread(target=review, args=(name, logged_in(desk, name))) for name in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not set(made["ben"]) & set(made["cem"])
    entries = desk.database.store.history()
    said = [(entry.reviewer, entry.image_sha256) for entry in entries if entry.image_sha256]
    assert len(said) == len(set(said))
    asked = [item for item in desk.catalogue.items.values() if item.kind in kinds]
    assert len(made["ben"]) + len(made["cem"]) == len(asked)
