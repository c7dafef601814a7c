"""Every route of the description, asked by nobody, with a wrong token, and by who has a lesser role."""

from __future__ import annotations

import re
from typing import Any

import httpx

from benchmarks.desk.folder import PASSWORD

MEANT_TO_BE_OPEN = frozenset({("GET", "/health"), ("GET", "/ready"), ("GET", "/login"), ("POST", "/login")})
_LEAD = re.compile(r"^(POST|DELETE) /api/v1/jobs|^GET /api/v1/readings$")
_ADMINISTRATOR = re.compile(r"^\w+ /api/v1/(users|audit)|^GET /metrics$")


def try_routes(address: str) -> dict[str, Any]:
    """Asks each route, and lists those that answered whom they must not.

    Args:
        address: Of a desk with the users `chief` and `r00`.
    """
    reviewer = _logged_in(address, "r00")
    described = reviewer.get("/api/v1/openapi.json").json()["paths"]
    routes = [(method.upper(), path) for path, methods in described.items() for method in methods]
    answered = []
    with httpx.Client(base_url=address, timeout=30) as nobody:
        for method, path in routes:
            place = re.sub(r"{\w+}", "r07", path)
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "desk_session=wrong"}):
                answer = nobody.request(method, place, headers=headers, json={})
                leads_in = answer.status_code == 303 and answer.headers["location"] == "/login"
                if (method, path) not in MEANT_TO_BE_OPEN and answer.status_code != 401 and not leads_in:
                    answered.append(f"{method} {path}: {answer.status_code} {headers}")
            named = f"{method} {path}"
            if _LEAD.match(named) or _ADMINISTRATOR.match(named):
                answer = reviewer.request(method, place, json={"kind": "adapt"})
                if answer.status_code != 403:
                    answered.append(f"{named} as reviewer: {answer.status_code}")
    return {"routes": len(routes), "open_on_purpose": len(MEANT_TO_BE_OPEN), "answered": answered}


def _logged_in(address: str, name: str) -> httpx.Client:
    client = httpx.Client(base_url=address, timeout=30)
    client.post("/login", data={"name": name, "password": PASSWORD})
    client.headers["X-CSRF-Token"] = client.get("/api/v1/me").json()["csrf"]
    return client
