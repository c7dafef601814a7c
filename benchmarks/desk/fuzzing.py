"""Requests made up from the description of the service by schemathesis: it must not fail on any."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok

from benchmarks.desk.folder import Place, make_place
from medfm_rl.service.app import LOOPBACK_NAMES, create_app
from medfm_rl.service.desk import Desk
from medfm_rl.service.limits import RateLimit
from medfm_rl.service.request import DeskRequest

_TOKEN = "token-of-the-fuzzing-desk"
_CASES = 20


def fuzz(folder: Path, requests: int) -> dict[str, Any]:
    """Sends about so many requests, as the one person of a desk.

    Args:
        folder: For its cases.
        requests: How many.
    """
    place: Place = make_place(folder, _CASES, 0)
    for user in ("desk_users", "desk_sessions"):
        desk = Desk(DeskRequest(place.store, (place.scores,), jobs=folder / "jobs"), _TOKEN)
        with desk.database.writing() as connection:
            connection.exec_driver_sql(f"DELETE FROM {user}")
    items = list(desk.catalogue.items)
    app = create_app(desk, LOOPBACK_NAMES | {"testserver"}, requests_a_minute=10**9)
    # What is slowed down is not tried.
    app.state.logins = app.state.addresses = app.state.failures = RateLimit(10**9, 1.0, "requests")
    allowed = {"Authorization": f"Bearer {_TOKEN}"}
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers=allowed)
    operations: list[Any] = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    each = -(-requests // len(operations))
    codes: Counter[int] = Counter()
    failed: list[str] = []
    for operation in operations:
        if operation.path == "/logout":
            continue

        @settings(
            max_examples=each,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=True,
        )
        @given(case=operation.as_strategy())
        def send(case: Any) -> None:
            # Every second request is about something that is there.
            if case.path_parameters and sum(codes.values()) % 2:
                chosen = items[sum(codes.values()) % len(items)]
                case.path_parameters.update({name: chosen for name in case.path_parameters if name in ("item", "case")})
            # With users, the one token would open nothing any more.
            if case.method.upper() == "PUT" and "users" in case.path:
                case.path_parameters = {**case.path_parameters, "name": "x" * 65}
            answer = case.call(headers=allowed)
            codes[answer.status_code] += 1
            if answer.status_code >= 500:
                failed.append(f"{case.method} {case.formatted_path}: {answer.status_code}")

        send()
    return {"requests": sum(codes.values()), "codes": dict(sorted(codes.items())), "failed": failed[:20]}
