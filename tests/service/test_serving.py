"""Where a desk may be served, and the token that opens it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.desk import DeskFolder
from support.desk_client import TOKEN, on_this_machine, open_desk
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from medfm_rl.errors import ConfigError
from medfm_rl.service.app import create_app
from medfm_rl.service.serving import Address, _token


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_nothing(host: str) -> None:
    assert Address(host).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "desk.hospital.example"])
def test_other_addresses_need_tls_or_a_proxy_that_has_it(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="others on the network could read along"):
        Address(host)
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("x")
    Address(host, certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    Address(host, behind_proxy="10.0.0.1")
    with pytest.raises(ConfigError, match="go together"):
        Address(host, certificate=tmp_path / "cert.pem")
    with pytest.raises(ConfigError, match="no such file"):
        Address(host, certificate=tmp_path / "none.pem", key=tmp_path / "key.pem")


def test_behind_a_proxy_only_what_came_by_https_is_answered(folder: DeskFolder) -> None:
    app = create_app(open_desk(folder), https_only=True)
    trusted = on_this_machine(ProxyHeadersMiddleware(app, trusted_hosts="127.0.0.1"))
    assert trusted.get("/health").status_code == 403
    secure = trusted.get("/health", headers={"X-Forwarded-Proto": "https"})
    assert secure.status_code == 200
    assert "max-age" in secure.headers["strict-transport-security"]
    stranger = on_this_machine(ProxyHeadersMiddleware(app, trusted_hosts="10.0.0.1"))
    assert stranger.get("/health", headers={"X-Forwarded-Proto": "https"}).status_code == 403


def test_the_token_of_a_file_stays_and_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "token"
    first = _token(path)
    assert _token(path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read the token"):
        _token(path)
    assert _token(None) != _token(None)


@pytest.mark.parametrize("sent", ["/apps/desk", ""])
def test_a_proxy_may_serve_it_under_a_path_and_take_that_off_or_not(folder: DeskFolder, sent: str) -> None:
    client = on_this_machine(create_app(open_desk(folder), under="/apps/desk"))
    out = client.get(f"{sent}/")
    assert (out.status_code, out.headers["location"]) == (303, "/apps/desk/login")
    page = client.get(f"{sent}/login")
    assert 'action="/apps/desk/login"' in page.text
    assert 'href="/apps/desk/static/base.css"' in page.text
    style = client.get(f"{sent}/static/base.css")
    assert (style.status_code, style.headers["cache-control"]) == (200, "no-cache")
    entered = client.post(f"{sent}/login", data={"token": TOKEN})
    assert (entered.status_code, entered.headers["location"]) == (303, "/apps/desk/")
    # Neither other desks of that name nor other services are shown the session.
    assert "path=/apps/desk;" in entered.headers["set-cookie"].lower()
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    assert client.get(f"{sent}/api/v1/me").json()["reviewer"] == "r1"
    assert client.get("/apps/deskx/api/v1/me").status_code == 404


@pytest.mark.parametrize("under", ["desk", "/desk/", "/", "/a//b", "/..", "/a b", "/api/desk", '/"><script>'])
def test_paths_that_a_desk_cannot_lie_under_are_refused(under: str) -> None:
    with pytest.raises(ConfigError, match="must be a path such as /desk"):
        Address(under=under)
    assert Address(under="/apps/desk-2.0").under == "/apps/desk-2.0"
