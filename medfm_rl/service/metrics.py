"""Numbers of a running desk, in Prometheus' text format."""

from __future__ import annotations

import resource
import threading
from collections import defaultdict
from time import perf_counter
from typing import final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medfm_rl.service.catalogue import KINDS
from medfm_rl.service.desk import Desk

_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@final
class Timings:
    """How long answers took, by route and status."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * (len(_BOUNDS) + 1))
        self._sums: dict[tuple[str, str], float] = defaultdict(float)

    def add(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        key = (route, f"{status // 100}xx")
        place = next((index for index, bound in enumerate(_BOUNDS) if seconds <= bound), len(_BOUNDS))
        with self._lock:
            self._counts[key][place] += 1
            self._sums[key] += seconds

    def lines(self) -> list[str]:
        """A histogram for each route."""
        name = "medfm_rl_desk_request_seconds"
        found = [f"# HELP {name} Time until an answer, by route.", f"# TYPE {name} histogram"]
        with self._lock:
            for (route, status), counts in sorted(self._counts.items()):
                labels = f'route="{route}",status="{status}"'
                below = 0
                for bound, count in zip((*map(str, _BOUNDS), "+Inf"), counts, strict=True):
                    below += count
                    found.append(f'{name}_bucket{{{labels},le="{bound}"}} {below}')
                found.append(f"{name}_sum{{{labels}}} {self._sums[route, status]:.6f}")
                found.append(f"{name}_count{{{labels}}} {below}")
        return found


@final
class Timed:
    """Takes the time of every answer.

    Args:
        app: The service.
        timings: Where it is counted.
    """

    def __init__(self, app: ASGIApp, timings: Timings) -> None:
        self._app, self._timings = app, timings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = perf_counter(), 500

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        finally:
            # Only routes have a name here: what somebody made up is no label of a metric.
            route = getattr(scope.get("route"), "path", "other")
            self._timings.add(route, status, perf_counter() - begin)


def metrics_text(desk: Desk, timings: Timings) -> str:
    """All numbers."""
    items = [*desk.catalogue.items.values()]
    open_items = dict.fromkeys(KINDS, 0)
    for item in items:
        if not desk.work.is_done(item):
            open_items[item.kind] += 1
    readings = desk.work.readings()
    lines = [
        *_gauge("medfm_rl_desk_open_items", "Items to review.", {f'kind="{k}"': n for k, n in open_items.items()}),
        *_gauge(
            "medfm_rl_desk_decisions",
            "Decisions recorded, by kind.",
            {f'kind="{k}"': n for k, n in desk.work.count().items()},
        ),
        *_gauge("medfm_rl_desk_leases", "Items that somebody works on.", {"": len(desk.leases.held())}),
        *_gauge(
            "medfm_rl_desk_disagreements", "Second readings that differ, not settled.", {"": readings.disagreements}
        ),
        *_gauge(
            "medfm_rl_desk_median_seconds", "Median seconds of a decision.", {"": desk.work.median_seconds() or 0.0}
        ),
        *_gauge(
            "medfm_rl_desk_peak_memory_bytes",
            "Largest resident memory so far.",
            {"": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024},
        ),
        *timings.lines(),
    ]
    return "\n".join(lines) + "\n"


def _gauge(name: str, meaning: str, values: dict[str, float]) -> list[str]:
    rows = [f"{name}{{{labels}}} {value:g}" if labels else f"{name} {value:g}" for labels, value in values.items()]
    return [f"# HELP {name} {meaning}", f"# TYPE {name} gauge", *rows]
