"""The page that learns, on answers that are made up here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.desk_browser import Browser, served
from support.desk_client import TOKEN

from medfm_rl.service.desk import Desk

pytestmark = pytest.mark.browser

TRICK = "<img src=x onerror=document.title='tricked'>"
LEARN = {
    "simulated": True,
    "store": {
        "entries": {"mask": 3, "verdict": 9},
        "cases": 8,
        "patients": 7,
        "reviewers": 2,
        "audit": {"cases": 4, "patients": 4},
        "second": {"asked": 5, "answered": 4, "agreement": 0.75, "disagreements": 1},
    },
    "next": {
        "run": "runs/one",
        "patients": 3,
        "cases": 3,
        "masks": 3,
        "verdicts": 2,
        "kept_cases": 4,
        "kept_patients": 4,
        "texts": [TRICK],
        "command": "medfm-rl adapt ...",
    },
    "can_start": True,
    "why_not": None,
}
JOB = {
    "job": "j1",
    "kind": "adapt",
    "state": "running",
    "progress": 0.25,
    "step": "PPO",
    "started": "2026-01-02T03:04:05Z",
    "finished": None,
    "log": ["fine-tuning"],
    "report": None,
    "error": None,
    "comparison": None,
}
COMPARISON = {
    "cases": 4,
    "patients": 4,
    "texts": ["better"],
    "rows": [{"structure": TRICK, "before": 0.8, "after": 0.85, "difference": 0.05, "low": 0.01, "high": 0.09}],
}
DONE = {**JOB, "state": "done", "report": "/api/v1/jobs/j1/report"}
STATES: list[list[dict[str, Any]]] = [
    [JOB],
    [DONE],
    [{**DONE, "job": "j2", "kind": "compare", "of": "j1", "comparison": COMPARISON}, DONE],
    [{**JOB, "state": "failed", "error": {"message": "the disk is full", "remedy": "free 2 GB"}}],
]


@pytest.fixture
def learn(desk: Desk) -> Iterator[Browser]:
    browser = Browser()
    answers = json.dumps({"learn": LEARN, "states": STATES})
    code = (
        f"window.answers = {answers}; window.posted = []; window.state = 0; const real = window.fetch;"
        "window.fetch = async (path, options) => {"
        "  const give = (body) => new Response(JSON.stringify(body), {status: 200});"
        "  if (options?.method === 'POST') { window.posted.push(JSON.parse(options.body)); return give({}); }"
        "  if (path === '/api/v1/learn') return give(window.answers.learn);"
        "  if (path === '/api/v1/jobs') return give(window.answers.states[window.state]);"
        "  return real(path, options); };"
    )
    with served(desk) as address:
        browser.open(f"{address}/login?token={TOKEN}")
        browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": code})
        browser.open(f"{address}/learn")
        browser.until(lambda: browser.all(".job"), "the job is shown")
        yield browser
        assert browser.complaints() == []
        browser.close()


def test_the_page_follows_a_job_to_its_comparison(learn: Browser) -> None:
    assert learn.one("progress").get_attribute("value") == "0.25"
    assert "75 %" in learn.text("#store")
    assert learn.one("#learn-simulated").is_displayed()
    learn.click("#adapt")
    learn.until(lambda: learn.script("return window.posted") == [{"kind": "adapt"}], "the adaptation is asked for")
    learn.click("#status .toast button")
    learn.script("window.state = 1")
    learn.until(lambda: learn.all(".job a"), "the report is there")
    learn.click("[data-focus='compare-j1']")
    learn.until(lambda: learn.script("return window.posted.at(-1)") == {"kind": "compare", "job": "j1"}, "a comparison")
    learn.script("window.state = 2")
    learn.until(lambda: "+0.050" in learn.text("#jobs"), "the difference is shown")
    assert "+0.010 to +0.090" in learn.text("#jobs")
    assert learn.all("[data-focus='compare-j1']") == []
    learn.script("window.state = 3")
    learn.until(lambda: "The disk is full; free 2 GB" in learn.text("#jobs"), "the fault and its remedy are shown")


def test_names_and_sentences_are_shown_as_text(learn: Browser) -> None:
    learn.script("window.state = 2")
    learn.until(lambda: TRICK in learn.text("#jobs"), "the name is shown as it is")
    assert TRICK in learn.text("#use-texts")
    assert learn.all("main img") == []
    assert "tricked" not in learn.driver.title
