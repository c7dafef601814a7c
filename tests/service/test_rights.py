"""No route answers who has no right: every one of them is tried by nobody, by a wrong token, and by a lesser role."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.routing import APIRoute
from support.desk import DeskFolder
from support.desk_client import (
    PASSWORD,
    TOKEN,
    client_of,
    decide,
    item_of,
    items,
    logged_in,
    make_users,
    open_desk,
)

from medfm_rl.service.app import PARTS, create_app
from medfm_rl.service.asking import Needs
from medfm_rl.service.desk import Desk
from medfm_rl.service.limits import RateLimit

OPEN = {("GET", "/health"), ("GET", "/ready"), ("GET", "/login"), ("POST", "/login")}
"""What anybody may ask: whether it runs, and to be let in."""
PAGES = {("GET", "/"), ("GET", "/learn")}
"""Lead to the login."""


def routes(desk: Desk) -> list[tuple[str, str]]:
    """Every route of the description, with an id of nothing in its path."""
    described = create_app(desk).openapi()["paths"]
    return [(method.upper(), path) for path, methods in described.items() for method in methods]


def filled(path: str) -> str:
    return re.sub(r"{\w+}", "r07", path)


def needs() -> dict[tuple[str, str], str]:
    """The role that each route takes; nothing where it takes none."""
    found: dict[tuple[str, str], str] = {}
    for route in (route for part in PARTS for route in part.router.routes if isinstance(route, APIRoute)):
        roles = [each.call.role for each in route.dependant.dependencies if isinstance(each.call, Needs)]
        for method in route.methods:
            found[method, route.path] = roles[0] if roles else ""
    return found


def test_no_route_answers_without_a_token_or_with_a_wrong_one(desk: Desk) -> None:
    tried = set(routes(desk)) - OPEN
    assert len(tried) >= 25
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": "desk_session=x"},
    ):
        client = client_of(desk, None)
        client.app.state.failures = RateLimit(10_000, 1.0, "tries")  # type: ignore[attr-defined]
        for method, path in tried:
            answer = client.request(method, filled(path), headers=headers, json={})
            expected = 303 if (method, path) in PAGES else 401
            assert answer.status_code == expected, (method, path, headers, answer.text)
            if expected == 303:
                assert answer.headers["location"] == "/login"


def test_every_route_is_described_and_takes_a_role_unless_it_is_meant_to_be_open(desk: Desk) -> None:
    roles = needs()
    assert set(routes(desk)) == roles.keys()
    assert {route for route, role in roles.items() if not role} == OPEN | PAGES


@pytest.mark.parametrize(("role", "refused"), [("reviewer", {"lead", "administrator"}), ("lead", {"administrator"})])
def test_a_lesser_role_is_refused(folder: DeskFolder, role: str, refused: set[str]) -> None:
    desk = open_desk(folder)
    roles = needs()
    assert set(roles.values()) >= {"reviewer", "lead", "administrator"}
    make_users(desk, chief="administrator", r07=role)
    client = logged_in(desk, "r07")
    for (method, path), needed in roles.items():
        if needed in refused:
            answer = client.request(method, filled(path), json={"kind": "adapt"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role"), (method, path)


def test_a_change_by_a_session_needs_its_csrf_token(folder: DeskFolder) -> None:
    desk = open_desk(folder)
    make_users(desk, chief="administrator", r07="reviewer")
    client, other = logged_in(desk, "chief"), logged_in(desk, "r07")
    for wrong in ("", "0" * 64, other.headers["X-CSRF-Token"], "ä"):
        answer = client.post("/api/v1/queue/next", headers={"X-CSRF-Token": wrong.encode()}, json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "csrf")
    assert client.post("/api/v1/queue/next", json={}).status_code == 200


def test_a_page_of_another_site_changes_nothing_and_logs_nobody_in(folder: DeskFolder) -> None:
    desk = open_desk(folder)
    make_users(desk, chief="administrator")
    client = logged_in(desk, "chief")
    foreign = [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
    for headers in foreign:
        for path, body in (("/login", {"name": "chief", "password": PASSWORD}), ("/api/v1/queue/next", None)):
            answer = client.post(path, data=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin")
    for own in ({"Origin": "http://localhost:8765"}, {"Origin": "null", "Sec-Fetch-Site": "same-origin"}):
        assert client.post("/api/v1/queue/next", json={}, headers=own).status_code == 200


def test_a_login_gives_a_new_session_and_ends_the_one_before(folder: DeskFolder) -> None:
    desk = open_desk(folder)
    make_users(desk, chief="administrator")
    client = client_of(desk, None)
    client.cookies.set("desk_session", "chosen-by-somebody-else")
    answer = client.post("/login", data={"name": "chief", "password": PASSWORD})
    first = answer.cookies["desk_session"]
    assert first != "chosen-by-somebody-else"
    flags = answer.headers["set-cookie"].lower()
    assert "httponly" in flags
    assert "samesite=strict" in flags
    client.cookies.clear()
    client.cookies.set("desk_session", first)
    client.post("/login", data={"name": "chief", "password": PASSWORD})
    assert desk.access.by_session(first) is None


def test_a_session_ends_with_the_logout_and_is_not_taken_again(folder: DeskFolder) -> None:
    desk = open_desk(folder)
    make_users(desk, chief="administrator")
    client = logged_in(desk, "chief")
    session = client.cookies["desk_session"]
    assert client.post("/logout").status_code == 303
    replayed = client_of(desk, None)
    replayed.cookies.set("desk_session", session)
    assert replayed.get("/api/v1/me").status_code == 401


def test_a_new_password_or_a_lost_right_ends_sessions_at_once(folder: DeskFolder) -> None:
    desk = open_desk(folder)
    make_users(desk, chief="administrator", r07="reviewer")
    client = logged_in(desk, "r07")
    desk.access.set_user("chief", "r07", "reviewer", "another password, also long")
    assert client.get("/api/v1/me").status_code == 401
    desk.access.set_user("chief", "r07", "reviewer", PASSWORD)
    client = logged_in(desk, "r07")
    desk.access.set_user("chief", "r07", "reviewer", None, active=False)
    assert client.get("/api/v1/me").status_code == 401
    assert client_of(desk, None).post("/login", data={"name": "r07", "password": PASSWORD}).status_code == 401


def test_the_one_token_opens_nothing_once_there_are_users(desk: Desk) -> None:
    program = client_of(desk)
    browser = client_of(desk, None)
    assert browser.get("/login", params={"token": TOKEN}).status_code == 303
    assert program.get("/api/v1/me").status_code == browser.get("/api/v1/me").status_code == 200
    make_users(desk, chief="administrator")
    assert program.get("/api/v1/me").status_code == browser.get("/api/v1/me").status_code == 401
    assert browser.get("/login", params={"token": TOKEN}).status_code == 401


def test_the_last_administrator_stays_one(desk: Desk) -> None:
    client = client_of(desk)
    answer = client.put("/api/v1/users/r07", json={"role": "reviewer", "password": PASSWORD})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_administrator")
    assert client.put("/api/v1/users/chief", json={"role": "administrator", "password": PASSWORD}).status_code == 200
    with pytest.raises(Exception, match="no administrator would be left"):
        desk.access.set_user("chief", "chief", "administrator", None, active=False)


def test_guessing_the_password_of_a_name_is_slowed_down(folder: DeskFolder) -> None:
    desk = open_desk(folder)
    make_users(desk, chief="administrator")
    client = client_of(desk, None)
    codes = [client.post("/login", data={"name": "chief", "password": "wrong"}).status_code for _ in range(12)]
    assert codes[:10] == [401] * 10
    assert codes[10:] == [429] * 2
    late = client.post("/login", data={"name": "chief", "password": PASSWORD})
    assert late.status_code == 429
    assert int(late.headers["Retry-After"]) > 0


def test_a_token_of_a_program_acts_for_its_user_and_no_further(folder: DeskFolder) -> None:
    desk = open_desk(folder)
    make_users(desk, chief="administrator", r07="reviewer")
    made: Any = logged_in(desk, "r07").post("/api/v1/tokens", json={"label": "script"}).json()
    program = client_of(desk, made["token"])
    assert program.get("/api/v1/me").json()["reviewer"] == "r07"
    assert program.get("/api/v1/users").status_code == 403
    # A token is no session, and the other way round.
    browser = client_of(desk, None)
    browser.cookies.set("desk_session", made["token"])
    assert browser.get("/api/v1/me").status_code == 401


def test_every_read_and_write_of_a_case_is_in_the_audit_log(desk: Desk) -> None:
    client = client_of(desk)
    item = item_of(client, "refer")
    client.get(f"/api/v1/cases/{item}")
    client.get(f"/api/v1/cases/{item}/image")
    client.get(f"/api/v1/cases/{item}/masks/given")
    client.get(f"/api/v1/cases/{item}/rewards")
    client.get(f"/api/v1/cases/{item}/download")
    decided = decide(client, item, {"kind": "verdict", "value": "reject"}).json()
    client.post(f"/api/v1/decisions/{decided['decision']}/undo")
    lines = client.get("/api/v1/audit").json()
    name = next(each["name"] for each in items(client) if each["item"] == item)
    actions = [line["action"] for line in lines if line["case_name"] == name]
    assert actions == ["read case", "read image", "read mask", "read rewards", "download", "decide", "undo"]
    assert {line["reviewer"] for line in lines} == {"r1"}
    with pytest.raises(Exception, match="only added to"), desk.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM desk_audit")
