"""Whatever is sent by the description of the service, it makes no mistake: never a 500. SIMULATED cases."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from support.desk import DeskFolder
from support.desk_client import TOKEN, client_of, item_of, open_desk

from medfm_rl.service.app import create_app

_EXAMPLES = 8
"""For each route; `benchmarks.desk.run` makes thousands."""


ALLOWED = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def api(made_once: DeskFolder, tmp_path_factory: pytest.TempPathFactory) -> object:
    place: Path = tmp_path_factory.mktemp("fuzzed")
    store = place / "feedback.sqlite"
    store.write_bytes(made_once.store.read_bytes())
    desk = open_desk(DeskFolder(**{**vars(made_once), "store": store}))
    app = create_app(desk, requests_a_minute=10**9)
    app.state.desk_item = item_of(client_of(desk), "refer")
    return schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers=ALLOWED)


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(
    max_examples=_EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
def test_no_request_makes_the_service_fail(case: Case) -> None:
    if case.path == "/logout":
        return
    # An id that is there, every second time, so that what is behind it is met too.
    if case.path_parameters and len(str(case.body)) % 2:
        item = case.operation.schema.app.state.desk_item
        case.path_parameters.update({name: item for name in case.path_parameters if name in ("item", "case")})
    case.call_and_validate(headers=ALLOWED, checks=[not_a_server_error])
