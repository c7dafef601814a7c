"""Reviewers at work on a desk that is killed beneath them, and what is left of it.

In a process without PyTorch, which `benchmarks.desk.run` starts: the load is that of the desk and of its reviewers.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.desk.folder import Service, make_place
from benchmarks.desk.fuzzing import fuzz
from benchmarks.desk.page import look
from benchmarks.desk.reviewers import Reviewer
from benchmarks.desk.routes import try_routes
from medfm_rl.data.files import write_json
from medfm_rl.feedback import FeedbackStore

_SETTLED = 0.2
"""Share of the time after which memory is compared: caches are full by then."""


def main() -> None:
    """Does the part that the JSON of the first argument describes, and writes what came of it to the second."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    folder = Path(asked.pop("folder"))
    parts: dict[str, Callable[..., dict[str, Any]]] = {"work": at_work, "fuzzing": fuzz, "page": look}
    found = parts[asked.pop("part")](folder, **asked)
    write_json(Path(sys.argv[2]), found)


def at_work(folder: Path, cases: int, reviewers: int, minutes: float, decisions: int, kills: int) -> dict[str, Any]:
    """Reviewers at a desk, and what is left of their work."""
    load_before = os.getloadavg()[0]
    place = make_place(folder, cases, reviewers)
    service = Service(place)
    service.start()
    rights = try_routes(service.address)
    pause = 60 * minutes * reviewers / decisions
    people = [Reviewer(f"r{number:02d}", service.address, pause) for number in range(reviewers)]
    for person in people:
        person.log_in()
    begin_at = time.monotonic()
    for person in people:
        person.until = begin_at + 60 * minutes
        person.start()
    moments = sorted(random.Random(0).uniform(0.3, 0.7) for _ in range(kills))
    memory: list[tuple[float, float]] = []
    killed = 0
    while any(person.is_alive() for person in people):
        time.sleep(1)
        share = (time.monotonic() - begin_at) / (60 * minutes)
        if killed < kills and share >= moments[killed]:
            service.kill()
            service.start()
            killed += 1
            memory = []
        memory.append((share, service.memory()))
    settled = [size for share, size in memory if share >= memory[0][0] + _SETTLED * (memory[-1][0] - memory[0][0])]
    service.kill()
    acknowledged = {name: made for person in people for name, made in person.log.acknowledged.items()}
    with FeedbackStore.open(place.store) as store:
        history = store.history()
    held = Counter(entry.id for entry in history)
    said = Counter((entry.reviewer, getattr(entry, "image_sha256", None)) for entry in history)
    return {
        "decisions": len(acknowledged),
        "lost": sum(name not in held for names in acknowledged.values() for name in names),
        "doubled": sum(count - 1 for count in said.values()),
        "entries": len(history),
        "opening_ms": _spread([value for person in people for value in person.log.opened]),
        "saving_ms": _spread([value for person in people for value in person.log.saved]),
        "interrupted": sum(person.log.interrupted for person in people),
        "problems": [problem for person in people for problem in person.log.problems][:20],
        "memory_mb": {"settled": settled[0], "end": settled[-1], "most": max(settled)},
        "memory_growth_mb": round(settled[-1] - settled[0], 1),
        "rights": rights,
        "load_average_before": load_before,
        "load_average_after": os.getloadavg()[0],
    }


def _spread(values: list[float]) -> dict[str, float]:
    found = np.percentile(values, (50, 95, 99)) if values else np.zeros(3)
    return {
        "count": len(values),
        **{f"p{name}": round(float(v), 1) for name, v in zip((50, 95, 99), found, strict=True)},
    }
