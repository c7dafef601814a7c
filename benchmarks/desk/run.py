"""The desk on loopback: reviewers at work, the service killed beneath them, rights tried, requests made up.

    python -m benchmarks.desk.run [--reviewers 20] [--cases 5000] [--minutes 10] [--decisions 2400] [--kills 2]
    python -m benchmarks.desk.run --quick   # a minute; the figures mean nothing

SIMULATED images of 256 x 256 pixels. Opening a case is asking for the next one, what is known of it, its image and its
mask, one after the other; saving is a decision until it is acknowledged. The service and the reviewers share the
machine. Requests that a kill cut off are sent again with the same key, and count for what is lost or doubled, not for
the times. The load average before it began is kept, so that the times can be read.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.desk.folder import Service, make_place
from benchmarks.desk.fuzzing import fuzz
from benchmarks.desk.reviewers import Reviewer
from benchmarks.desk.routes import try_routes
from benchmarks.harness.command_line import add_quick, add_runs, begin, plain_parser
from benchmarks.harness.recording import RUNS, print_results, write_results
from benchmarks.harness.tables import heading, table_row
from medfm_rl.feedback import FeedbackStore

_SETTLED = 0.2
"""Share of the time after which memory is compared: caches are full by then."""


def main() -> None:
    parser = plain_parser(__doc__, threads=1)
    add_runs(parser)
    add_quick(parser)
    parser.add_argument("--reviewers", type=int, default=20)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--decisions", type=int, default=2400, help="that all of them are to make in that time")
    parser.add_argument("--kills", type=int, default=2, help="times that the service is killed and started again")
    parser.add_argument("--fuzz", type=int, default=2000, help="requests that are made up")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.reviewers, arguments.cases, arguments.minutes, arguments.kills, arguments.fuzz = 4, 100, 0.5, 1, 100
        arguments.decisions = 60
    started_in = begin(arguments)
    load_before = os.getloadavg()[0]
    folder: Path = (arguments.runs or RUNS / "desk") / str(arguments.cases)
    work = at_work(
        folder, arguments.cases, arguments.reviewers, arguments.minutes, arguments.decisions, arguments.kills
    )
    fuzzed = fuzz(folder.with_name("fuzzed"), arguments.fuzz)
    results = {
        "load_average_before": load_before,
        "minutes": arguments.minutes,
        "cases": arguments.cases,
        "kills": arguments.kills,
        "work": work,
        "fuzzing": fuzzed,
    }
    summary = {
        "p95_next_case_ms": work["opening_ms"]["p95"],
        "p95_save_ms": work["saving_ms"]["p95"],
        "reviewers": arguments.reviewers,
        "decisions": work["decisions"],
        "lost": work["lost"],
        "doubled": work["doubled"],
        "memory_growth_mb": work["memory_growth_mb"],
        "routes_tried": work["rights"]["routes"],
        "routes_open": len(work["rights"]["answered"]),
        "api_fuzz_requests": fuzzed["requests"],
        "api_fuzz_500": sum(count for code, count in fuzzed["codes"].items() if code >= 500),
    }
    if arguments.quick:
        print_results(summary, _table(results, summary, arguments.quick))
    else:
        write_results("desk", started_in, [0], results, summary, _table(results, summary, arguments.quick))


def at_work(folder: Path, cases: int, reviewers: int, minutes: float, decisions: int, kills: int) -> dict[str, Any]:
    """Reviewers at a desk, and what is left of their work."""
    place = make_place(folder, cases, reviewers)
    service = Service(place)
    service.start()
    rights = try_routes(service.address)
    # The limit on requests of nobody is met above; who comes next is not to wait for it.
    time.sleep(1)
    begin_at = time.monotonic()
    until = begin_at + 60 * minutes
    pause = 60 * minutes * reviewers / decisions
    people = [Reviewer(f"r{number:02d}", service.address, until, pause) for number in range(reviewers)]
    for person in people:
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
        "load_average_after": os.getloadavg()[0],
    }


def _spread(values: list[float]) -> dict[str, float]:
    found = np.percentile(values, (50, 95, 99)) if values else np.zeros(3)
    return {
        "count": len(values),
        **{f"p{name}": round(float(v), 1) for name, v in zip((50, 95, 99), found, strict=True)},
    }


def _table(results: dict[str, Any], summary: dict[str, Any], trial: bool) -> str:
    work = results["work"]
    lines = [
        *heading("The desk on loopback", trial),
        f"SIMULATED cases; {summary['reviewers']} reviewers, {results['cases']} cases, {results['minutes']:g} minutes, "
        f"{results['kills']} kills of the service. Load average {results['load_average_before']:.1f} before (others at "
        f"work on the machine) and {work['load_average_after']:.1f} at the end.",
        "",
        table_row(["what", "value"]),
        table_row(["---", "---"]),
        f"| opening the next case, median / p95 / p99 | {_three(work['opening_ms'])} ms |",
        f"| saving a decision, median / p95 / p99 | {_three(work['saving_ms'])} ms |",
        f"| decisions acknowledged | {summary['decisions']} |",
        f"| of these missing in the store | {summary['lost']} |",
        f"| entries that stand twice | {summary['doubled']} |",
        f"| requests cut off by kills, sent again | {work['interrupted']} |",
        f"| memory at the end, growth after the caches were full | {work['memory_mb']['end']:.0f} MiB, "
        f"{summary['memory_growth_mb']:g} MiB |",
        f"| routes tried without a right, with a wrong one and by a lesser role | {summary['routes_tried']} |",
        f"| of these that answered | {summary['routes_open']} |",
        f"| requests made up | {summary['api_fuzz_requests']} |",
        f"| of these answered by 500 or more | {summary['api_fuzz_500']} |",
    ]
    return "\n".join(lines) + "\n"


def _three(spread: dict[str, float]) -> str:
    return f"{spread['p50']:.0f} / {spread['p95']:.0f} / {spread['p99']:.0f}"


if __name__ == "__main__":
    main()
