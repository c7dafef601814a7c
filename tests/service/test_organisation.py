"""People sign in at the identity provider of their organisation, by OpenID Connect."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from support.desk import DeskFolder
from support.desk_browser import Browser, served
from support.desk_client import TOKEN, client_of, make_users, open_desk
from support.identity_provider import CLIENT, SECRET, Provider, provider

from medfm_rl.errors import ConfigError
from medfm_rl.service.desk import Desk
from medfm_rl.settings import OpenIDSettings
from medfm_rl.settings.files import load_config


@pytest.fixture(scope="module")
def started() -> Iterator[Provider]:
    with provider() as found:
        yield found


@pytest.fixture
def organisation(started: Provider) -> Provider:
    """The provider as it is at first."""
    fresh = Provider()
    started.claims, started.issuer, started.refuses = fresh.claims, fresh.issuer, fresh.refuses
    return started


@pytest.fixture
def desk(folder: DeskFolder, organisation: Provider, tmp_path: Path) -> Desk:
    return open_desk(folder, openid=settings(organisation, tmp_path))


def settings(organisation: Provider, folder: Path, **more: Any) -> OpenIDSettings:
    secret = folder / "secret"
    secret.write_text(f"{SECRET}\n")
    return OpenIDSettings(
        issuer=organisation.address,
        client_id=CLIENT,
        client_secret_file=secret,
        **{"roles": {"echo-lab": "reviewer", "echo-leads": "lead", "it": "administrator"}, **more},
    )


def sign_in(desk: Desk) -> tuple[TestClient, httpx.Response]:
    """A browser's way to the provider and back."""
    client = client_of(desk, None)
    leaving = client.get("/login/organisation")
    assert leaving.status_code == 302, leaving.text
    back = httpx.get(leaving.headers["location"])
    assert back.is_redirect
    return client, client.get(back.headers["location"])


def test_who_an_organisation_vouches_for_reviews_under_an_id_that_tells_nobody(
    desk: Desk, organisation: Provider
) -> None:
    client, answer = sign_in(desk)
    # A redirect from another site would come without the strict cookie; a page of the desk sends the browser on.
    assert (answer.status_code, 'content="0; url=/"' in answer.text) == (200, True)
    me = client.get("/api/v1/me").json()
    assert (me["role"], me["reviewer"][:2], len(me["reviewer"])) == ("reviewer", "u-", 14)
    assert "person-1" not in me["reviewer"]
    assert client.get("/").status_code == 200
    again, _ = sign_in(desk)
    assert again.get("/api/v1/me").json()["reviewer"] == me["reviewer"]
    organisation.claims["sub"] = "person-2"
    other, _ = sign_in(desk)
    assert other.get("/api/v1/me").json()["reviewer"] != me["reviewer"]
    assert {user.name for user in desk.access.users()} == {me["reviewer"], other.get("/api/v1/me").json()["reviewer"]}


def test_the_highest_group_counts_and_a_change_counts_from_the_next_sign_in(desk: Desk, organisation: Provider) -> None:
    organisation.claims["groups"] = ["echo-lab", "it", "choir"]
    client, _ = sign_in(desk)
    assert client.get("/api/v1/me").json()["role"] == "administrator"
    organisation.claims["groups"] = "echo-leads"
    client, _ = sign_in(desk)
    assert client.get("/api/v1/me").json()["role"] == "lead"


@pytest.mark.parametrize("groups", [["choir"], [], None, {"echo-lab": 1}])
def test_who_is_in_no_group_is_not_let_in(desk: Desk, organisation: Provider, groups: object) -> None:
    organisation.claims["groups"] = groups
    client, answer = sign_in(desk)
    assert (answer.status_code, "none of your groups may use this desk" in answer.text) == (403, True)
    assert client.get("/api/v1/me").status_code == 401
    assert not desk.access.users()


@pytest.mark.parametrize(
    "wrong",
    [
        {"aud": "another-client"},
        {"iss": "https://elsewhere.example"},
        {"nonce": "of another sign-in"},
        {"exp": int(time.time()) - 3600},
        {"sub": None},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_token_that_does_not_hold_signs_nobody_in(desk: Desk, organisation: Provider, wrong: dict[str, Any]) -> None:
    organisation.claims |= wrong
    client, answer = sign_in(desk)
    assert (answer.status_code, "did not sign you in" in answer.text) == (401, True)
    assert client.get("/api/v1/me").status_code == 401
    notes = [line["action"] for line in desk.database.notes(0, 100)]
    assert notes[-1] == "login refused"


def test_a_code_counts_in_the_browser_that_asked_for_it_alone(desk: Desk) -> None:
    client = client_of(desk, None)
    back = httpx.get(client.get("/login/organisation").headers["location"]).headers["location"]
    other = client_of(desk, None)
    assert other.get(back).status_code == 401
    assert client.get(back).status_code == 200
    # And once.
    assert client.get(back).status_code == 401


def test_who_was_shut_out_stays_so_and_a_user_with_a_password_is_nobody_else(
    folder: DeskFolder, organisation: Provider, tmp_path: Path
) -> None:
    desk = open_desk(folder, openid=settings(organisation, tmp_path, reviewer_claim="staff_number"))
    organisation.claims["staff_number"] = "r07"
    client, _ = sign_in(desk)
    assert client.get("/api/v1/me").json()["reviewer"] == "r07"
    desk.access.set_user("chief", "r07", "reviewer", None, active=False)
    assert client.get("/api/v1/me").status_code == 401
    _, answer = sign_in(desk)
    assert "r07 was shut out" in answer.text
    make_users(desk, chief="administrator")
    organisation.claims["staff_number"] = "chief"
    _, answer = sign_in(desk)
    assert (answer.status_code, "logs in by password" in answer.text) == (401, True)
    organisation.claims["staff_number"] = "Ada Byron, cardiology"
    _, answer = sign_in(desk)
    assert "holds no opaque id" in answer.text


def test_the_token_of_the_command_opens_nothing_where_an_organisation_lets_in(desk: Desk) -> None:
    assert client_of(desk, TOKEN).get("/api/v1/me").status_code == 401
    assert client_of(desk, None).get(f"/login?token={TOKEN}").status_code == 401
    page = client_of(desk, None).get("/login").text
    assert "Sign in with your organisation" in page
    assert 'name="password"' not in page
    assert 'name="token"' not in page
    make_users(desk, chief="administrator")
    assert 'name="password"' in client_of(desk, None).get("/login").text


def test_a_provider_that_refuses_is_away_or_is_another_is_told(
    desk: Desk, folder: DeskFolder, organisation: Provider, tmp_path: Path
) -> None:
    organisation.refuses = True
    _, answer = sign_in(desk)
    assert (answer.status_code, "access_denied" in answer.text) == (401, True)
    organisation.issuer = "https://elsewhere.example"
    answer = client_of(open_desk(folder, openid=settings(organisation, tmp_path))).get("/login/organisation")
    assert "it calls itself https://elsewhere.example" in answer.text
    away = settings(Provider(address="http://127.0.0.1:9"), tmp_path)
    answer = client_of(open_desk(folder, openid=away)).get("/login/organisation")
    assert (answer.status_code, "ConnectError" in answer.text) == (401, True)


def test_a_desk_without_an_organisation_has_no_such_way(folder: DeskFolder) -> None:
    client = client_of(open_desk(folder))
    assert client.get("/login/organisation").status_code == 404
    assert "organisation" not in client.get("/login").text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"issuer": "http://sso.example"}, "must begin with https://"),
        ({"issuer": "sso.example"}, "must begin with https://"),
        ({"scopes": ["email"]}, "openid is missing"),
        ({"roles": {}}, "roles"),
        ({"roles": {"it": "owner"}}, "roles"),
    ],
)
def test_settings_that_cannot_be_used_are_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    import yaml

    content = {"issuer": "https://sso.example", "client_id": "desk", "roles": {"it": "lead"}}
    path = tmp_path / "openid.yaml"
    path.write_text(yaml.safe_dump(content))
    assert load_config(path, OpenIDSettings).scopes == ("openid",)
    path.write_text(yaml.safe_dump(content | change))
    with pytest.raises(ConfigError, match=told):
        load_config(path, OpenIDSettings)


def test_a_person_signs_in_by_the_button(desk: Desk) -> None:
    with served(desk) as address:
        browser = Browser()
        try:
            browser.open(address)
            browser.click("a.button")
            browser.wait_for_case("p0000_4CH")
            assert browser.text("#reviewer").startswith("u-")
            assert browser.complaints() == []
        finally:
            browser.close()
