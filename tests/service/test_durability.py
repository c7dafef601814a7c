"""Acknowledged is durable: the service is killed in the middle of saving, and nothing is missing or there twice."""

from __future__ import annotations

import os
import re
import signal
import threading
import uuid
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
from support.commands import run_command, start_command
from support.desk import DeskFolder, make_desk_folder
from support.desk_client import open_desk

from medfm_rl.feedback import FeedbackStore
from medfm_rl.service.jobs import is_alive

_LONGEST_START = 120


def start(folder: DeskFolder, *options: str) -> tuple[BaseProcess, httpx.Client]:
    """A desk in a process of its own, and a program that asks it."""
    token, place = folder.store.with_name("token"), folder.store.parent
    (place / "stdout").unlink(missing_ok=True)
    command = ["desk", "--store", folder.store, "--scores", folder.scores, "--port", "0"]
    process = start_command(*command, "--token-file", token, *options, folder=place)
    begin, address = monotonic(), None
    while address is None:
        assert process.is_alive(), (place / "stderr").read_text()
        assert monotonic() - begin < _LONGEST_START
        sleep(0.05)
        printed = (place / "stdout").read_text() if (place / "stdout").exists() else ""
        address = re.search(r"Desk: (http://[^/]+)/", printed)
    headers = {"Authorization": f"Bearer {token.read_text().strip()}"}
    return process, httpx.Client(base_url=address[1], headers=headers, timeout=30)


def end(process: BaseProcess, client: httpx.Client) -> None:
    """Ends a desk as Ctrl-C does."""
    client.close()
    process.terminate()
    process.join()


def test_a_killed_service_has_lost_nothing_that_it_acknowledged_and_doubled_nothing(tmp_path: Path) -> None:
    folder = make_desk_folder(tmp_path, count=40, volume=False, clip=False)
    process, client = start(folder, "--accepted")
    queue = client.get("/api/v1/queue", params={"limit": 500}).json()["items"]
    sent: dict[str, str] = {each["item"]: str(uuid.uuid4()) for each in queue}
    acknowledged: dict[str, list[str]] = {}

    def send(client: httpx.Client, item: str) -> None:
        body = {"decisions": [{"kind": "verdict", "value": "reject"}], "seconds": 1.0}
        answer = client.post(f"/api/v1/items/{item}/decisions", json=body, headers={"Idempotency-Key": sent[item]})
        assert answer.status_code == 201, answer.text
        acknowledged[item] = answer.json()["entries"]

    threading.Timer(1.5, process.kill).start()
    for item in sent:
        try:
            send(client, item)
        except httpx.TransportError:
            break
    process.join()
    client.close()
    before = dict(acknowledged)
    assert 0 < len(before) <= len(sent)
    with FeedbackStore.open(folder.store) as store:
        held = {entry.id for entry in store.history()}
    assert {entry for names in before.values() for entry in names} <= held
    # A browser sends again whatever it has no answer to; nothing stands twice.
    process, client = start(folder, "--accepted")
    for item in sent:
        send(client, item)
    end(process, client)
    assert {item: acknowledged[item] for item in before} == before
    with FeedbackStore.open(folder.store) as store:
        history = store.history()
    assert len(history) == len(sent)
    assert {entry.id for entry in history} == {entry for names in acknowledged.values() for entry in names}


def test_two_reviewers_never_hold_the_same_case(folder: DeskFolder) -> None:
    """Eight threads on two services of one store."""
    desks = [open_desk(folder), open_desk(folder)]
    taken: list[str] = []

    def work(number: int) -> None:
        desk = desks[number % 2]
        lease = desk.leases.take_first(desk.catalogue.items, f"r{number}")
        assert lease is not None
        taken.append(lease.item)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 8


def test_a_second_desk_at_the_same_port_is_told_so(folder: DeskFolder) -> None:
    process, client = start(folder)
    port = str(client.base_url.port)
    again = run_command(
        "desk", "--store", folder.store, "--scores", folder.scores, "--port", port, folder=folder.store.parent
    )
    end(process, client)
    assert again.returncode == 2
    assert f"--port {port}: another program listens there" in again.stderr


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_job_outlives_the_service_and_says_how_it_ended(folder: DeskFolder, tmp_path: Path, end: str) -> None:
    desk = open_desk(folder)
    # Without a run the command refuses: the job fails, and says so.
    made = desk.jobs.add("adapt", {"run": str(tmp_path / "none"), "images": []}, "r1")
    if end == "kill":
        assert made.process is not None
        os.kill(int(made.process.partition(":")[0]), signal.SIGKILL)
    del desk
    other: Any = open_desk(folder)
    begin = monotonic()
    while other.jobs.job(made.id).state == "running" and monotonic() - begin < _LONGEST_START:
        sleep(0.2)
    job = other.jobs.job(made.id)
    assert job.state == "failed"
    assert ("without a word" if end == "kill" else "config.yaml") in str(job.error)


def test_jobs_wait_for_each_other_and_can_be_stopped(folder: DeskFolder, tmp_path: Path) -> None:
    desk = open_desk(folder)
    arguments: dict[str, Any] = {"run": str(tmp_path / "none"), "images": []}
    first = desk.jobs.add("adapt", arguments, "r1", "key")
    assert desk.jobs.add("adapt", arguments, "r1", "key").id == first.id
    second = desk.jobs.add("adapt", arguments, "r1")
    assert (first.state, second.state) == ("running", "waiting")
    assert desk.jobs.stop(second.id, "r1").state == "stopped"
    assert desk.jobs.stop(first.id, "r1").state == "stopped"
    begin = monotonic()
    while is_alive(first.process or ":") and monotonic() - begin < _LONGEST_START:
        sleep(0.1)
    assert desk.jobs.job(first.id).state == "stopped"
