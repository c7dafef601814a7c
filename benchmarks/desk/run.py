"""The desk on loopback: reviewers at work, the service killed, rights tried, requests made up, the page looked at.

    python -m benchmarks.desk.run [--reviewers 20] [--cases 5000] [--minutes 10] [--decisions 2400]
        [--kills 2] [--fuzz 2800]
    python -m benchmarks.desk.run --quick   # a minute; the figures mean nothing

SIMULATED images of 256 x 256 pixels. Opening a case is asking for the next one, what is known of it, its image and its
mask, one after the other; saving is a decision until it is acknowledged. The service and the reviewers share the
machine. Requests that a kill cut off are sent again with the same key, and count for what is lost or doubled, not for
the times. The load average before it began is kept, so that the times can be read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness.command_line import add_quick, add_runs, begin, plain_parser
from benchmarks.harness.recording import RUNS, print_results, write_results
from benchmarks.harness.tables import heading, table_row


def main() -> None:
    parser = plain_parser(__doc__, threads=1)
    add_runs(parser)
    add_quick(parser)
    parser.add_argument("--reviewers", type=int, default=20)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--decisions", type=int, default=2400, help="that all of them are to make in that time")
    parser.add_argument("--kills", type=int, default=2, help="times that the service is killed and started again")
    parser.add_argument("--fuzz", type=int, default=2800, help="requests that are made up, at most")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.reviewers, arguments.cases, arguments.minutes, arguments.kills, arguments.fuzz = 4, 100, 0.5, 1, 100
        arguments.decisions = 60
    started_in = begin(arguments)
    runs: Path = arguments.runs or RUNS / f"desk{'-quick' if arguments.quick else ''}"
    work = _part(
        runs,
        "work",
        folder=str(runs / str(arguments.cases)),
        cases=arguments.cases,
        reviewers=arguments.reviewers,
        minutes=arguments.minutes,
        decisions=arguments.decisions,
        kills=arguments.kills,
    )
    fuzzed = _part(runs, "fuzzing", folder=str(runs / "fuzzed"), requests=arguments.fuzz)
    page = _part(runs, "page", folder=str(runs / "page"), cases_to_accept=5)
    results = {
        "minutes": arguments.minutes,
        "cases": arguments.cases,
        "kills": arguments.kills,
        "work": work,
        "fuzzing": fuzzed,
        "page": page,
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
        "api_fuzz_500": sum(count for code, count in fuzzed["codes"].items() if int(code) >= 500),
        "axe_serious": sum(map(len, page["serious"].values())),
        "clicks_to_accept": max(page["clicks"]),
    }
    if arguments.quick:
        print_results(summary, _table(results, summary, arguments.quick))
    else:
        write_results("desk", started_in, [0], results, summary, _table(results, summary, arguments.quick))


def _part(runs: Path, name: str, **asked: Any) -> dict[str, Any]:
    """A part of the benchmark, made in a process of its own unless its file is there."""
    path = runs / f"{name}.json"
    if not path.exists():
        code = "from benchmarks.desk.work import main; main()"
        subprocess.run([sys.executable, "-c", code, json.dumps({"part": name, **asked}), str(path)], check=True)
    return dict(json.loads(path.read_text()))


def _table(results: dict[str, Any], summary: dict[str, Any], trial: bool) -> str:
    work = results["work"]
    lines = [
        *heading("The desk on loopback", trial),
        f"SIMULATED cases; {summary['reviewers']} reviewers, {results['cases']} cases, {results['minutes']:g} minutes, "
        f"{results['kills']} kills of the service. Load average {work['load_average_before']:.1f} before (others at "
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
        f"| serious faults by axe-core, on {len(results['page']['serious'])} pages | {summary['axe_serious']} |",
        f"| clicks to accept a case | {summary['clicks_to_accept']} |",
    ]
    return "\n".join(lines) + "\n"


def _three(spread: dict[str, float]) -> str:
    return f"{spread['p50']:.0f} / {spread['p95']:.0f} / {spread['p99']:.0f}"


if __name__ == "__main__":
    main()
