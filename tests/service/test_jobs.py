"""Jobs to their end: what was decided at the desk teaches a model, which is compared with the one before."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.desk_client import TOKEN, client_of, decide, items
from support.tiny_runs import tiny_config, train_tiny_source

from medfm_rl.data.layouts import find_cases
from medfm_rl.feedback import FeedbackStore
from medfm_rl.runs.finished import load_run
from medfm_rl.service.desk import Desk
from medfm_rl.service.request import DeskRequest
from medfm_rl.settings import DataSettings, SourceTrainingSettings
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.propose.propose import propose
from medfm_rl.workflows.propose.request import ProposeRequest

_LONGEST = 600


def ended(client: httpx.Client, kind: str, **more: str) -> dict[str, Any]:
    """Starts a job, and waits until it has ended."""
    answer = client.post("/api/v1/jobs", json={"kind": kind, **more})
    assert answer.status_code == 201, answer.text
    name = answer.json()["job"]
    end = time.monotonic() + _LONGEST
    while True:
        found = next(job for job in client.get("/api/v1/jobs").json() if job["job"] == name)
        if found["state"] not in ("waiting", "running"):
            return dict(found)
        assert time.monotonic() < end, found
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(_LONGEST)
def test_what_was_reviewed_teaches_a_model_that_is_compared_with_the_one_before(
    simulated_echo: Path, tmp_path: Path
) -> None:
    training = SourceTrainingSettings(epochs=3, batch_size=8, learning_rate=1e-2)
    model = train_tiny_source(simulated_echo, tmp_path / "source", training)
    adapt(tiny_config(simulated_echo, model, tmp_path / "run", iterations=1), False, lambda *_: None)
    files = find_cases(DataSettings(path=simulated_echo / "b"))
    request = ProposeRequest(budget=2, audit=2)
    propose(load_run(tmp_path / "run", "cpu"), files, tmp_path / "proposals", request, lambda *_: None)
    store = tmp_path / "feedback.sqlite"
    FeedbackStore.create(store).close()
    desk = Desk(
        DeskRequest(store, (), proposals=(tmp_path / "proposals",), run=tmp_path / "run", jobs=tmp_path / "jobs"),
        TOKEN,
    )
    client = client_of(desk)
    for item in items(client):
        assert decide(client, item["item"], {"kind": "verdict", "value": "accept"}).status_code == 201

    adapted = ended(client, "adapt")
    assert (adapted["state"], adapted["error"]) == ("done", None)
    made = tmp_path / "jobs" / adapted["job"] / "run"
    assert load_run(made, "cpu").segmenter.schema.structures == ("LV", "MYO", "LA")
    report = client.get(f"/api/v1/jobs/{adapted['job']}/report")
    assert (report.status_code, "<html" in report.text) == (200, True)

    compared = ended(client, "compare", job=adapted["job"])
    assert (compared["state"], compared["error"]) == ("done", None)
    assert compared["of"] == adapted["job"]
    assert compared["comparison"]["patients"] == 2
    assert [row["structure"] for row in compared["comparison"]["rows"]] == ["LV", "MYO", "LA", "mean"]
    # Accepted masks are the truth of the old model: it is right by definition, and the new one at most as good.
    assert compared["comparison"]["rows"][-1]["before"] == pytest.approx(1.0)
    assert compared["comparison"]["rows"][-1]["after"] <= 1.0
