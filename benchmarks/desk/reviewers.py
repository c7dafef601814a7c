"""People at a desk: each opens cases, thinks, and decides, and sends again what he has no answer to."""

from __future__ import annotations

import random
import threading
import time
import uuid
from dataclasses import dataclass, field

import httpx

from benchmarks.desk.folder import PASSWORD

_PATIENCE = 120.0


@dataclass
class Log:
    """What a reviewer met.

    Attributes:
        opened: Milliseconds until image and mask of a next case were there.
        saved: Milliseconds until a decision was acknowledged.
        acknowledged: Entries of each item that was decided.
        interrupted: Requests that the death of the service cut off.
        problems: Answers that nobody wants to see.
    """

    opened: list[float] = field(default_factory=list)
    saved: list[float] = field(default_factory=list)
    acknowledged: dict[str, list[str]] = field(default_factory=dict)
    interrupted: int = 0
    problems: list[str] = field(default_factory=list)


class Reviewer(threading.Thread):
    """A reviewer with a browser.

    Args:
        name: Whom he logs in as.
        address: Of the desk.
        pause: Seconds that he looks at a case, on average.

    Attributes:
        log: What he met.
        until: When he goes home, by `time.monotonic`.
    """

    def __init__(self, name: str, address: str, pause: float) -> None:
        super().__init__(name=name)
        self.log = Log()
        self.until = 0.0
        self._pause = pause
        self._random = random.Random(name)
        self._client = httpx.Client(base_url=address, timeout=30)

    def run(self) -> None:
        # People do not all look up in the same second.
        time.sleep(self._random.uniform(0, self._pause))
        while time.monotonic() < self.until:
            begin, cut = time.perf_counter(), self.log.interrupted
            item = self._open()
            if item is None:
                return
            if self.log.interrupted == cut:
                self.log.opened.append(1000 * (time.perf_counter() - begin))
            time.sleep(self._random.uniform(0.5, 1.5) * self._pause)
            self._decide(item)

    def log_in(self) -> None:
        """Starts a session."""
        answer = self._ask("POST", "/login", data={"name": self.name, "password": PASSWORD})
        if answer.status_code != 303:
            raise RuntimeError(f"{self.name} cannot log in: {answer.status_code}")
        self._client.headers["X-CSRF-Token"] = self._ask("GET", "/api/v1/me").json()["csrf"]

    def _open(self) -> str | None:
        answer = self._ask("POST", "/api/v1/queue/next", json={})
        if answer.status_code == 204:
            return None
        item = str(answer.json()["item"])
        case = self._ask("GET", f"/api/v1/cases/{item}").json()
        self._ask("GET", f"/api/v1/cases/{item}/image")
        self._ask("GET", f"/api/v1/cases/{item}/masks/{case['masks'][0]['mask']}")
        return item

    def _decide(self, item: str) -> None:
        value = self._random.choice(["accept", "reject"])
        body = {"decisions": [{"kind": "verdict", "value": value}], "seconds": self._pause}
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        begin, cut = time.perf_counter(), self.log.interrupted
        answer = self._ask("POST", f"/api/v1/items/{item}/decisions", json=body, headers=headers)
        if answer.status_code == 201:
            self.log.acknowledged[item] = answer.json()["entries"]
            if self.log.interrupted == cut:
                self.log.saved.append(1000 * (time.perf_counter() - begin))

    def _ask(self, method: str, path: str, **more: object) -> httpx.Response:
        """Asks until there is an answer, as the page does after a lost connection."""
        begin = time.monotonic()
        while True:
            try:
                answer = self._client.request(method, path, **more)  # type: ignore[arg-type]
            except httpx.TransportError:
                self.log.interrupted += 1
                if time.monotonic() - begin > _PATIENCE:
                    raise
                time.sleep(0.5)
                continue
            if answer.status_code >= 400:
                self.log.problems.append(f"{method} {path.split('/')[3:4]}: {answer.status_code} {answer.text[:120]}")
            return answer
