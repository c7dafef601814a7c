"""Damaged and contradictory inputs against every reader, and commands that are killed and called again.

    python -m benchmarks.robustness.run [--inputs 250] [--kills 50] [--seed 0] [--runs FOLDER]
    python -m benchmarks.robustness.run --only "DICOM series" --inputs 40   # prints, and writes nothing
    python -m benchmarks.robustness.run --only "DICOM series" --number 17   # the same of one input

Every input has to be read with the values that an oracle finds in it (nibabel, pydicom, Pillow, json, safetensors, or
a few lines of ours where there is no other library), or be refused by a UserError that names the file. Counted are
other exceptions (tracebacks), processes that end (aborts), more than 20 s or 400 MiB for an input of a few KiB (hangs),
and values that differ from those of the oracle (silent errors). An input is named by its kind and number, and is the
same each time.

The commands adapt, score, correct and calibrate are killed by SIGKILL at random moments and called again, on tiny
networks and SIMULATED frames; weights, masks, tables and reports are then compared with those of a call that ran
through. Kills of the same commit are kept in `--runs`, and not made again.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.harness.command_line import add_quick, add_runs, begin, plain_parser
from benchmarks.harness.recording import RUNS, environment, print_results, quiet, write_results
from benchmarks.harness.tables import heading, table_row
from benchmarks.robustness.every_kind import every_kind
from benchmarks.robustness.kills import kill_commands
from benchmarks.robustness.kind import ABORT, HANG, READ, REFUSED, SILENT, TRACEBACK, UNJUDGED, Outcome
from benchmarks.robustness.supervision import Job, judge_all

_COUNTED = {"tracebacks": TRACEBACK, "aborts": ABORT, "hangs": HANG, "silent_errors": SILENT}
_FAILURES = frozenset(_COUNTED.values())


def summarise(outcomes: Sequence[Outcome], killed: dict[str, Any]) -> dict[str, Any]:
    """The figures that others quote."""
    counts = Counter(outcome.result for outcome in outcomes)
    return {
        "inputs_tried": len(outcomes),
        **{name: counts[result] for name, result in _COUNTED.items()},
        "kinds": len({outcome.kind for outcome in outcomes}),
        "kills": sum(found["kills"] for found in killed.values()),
        "unequal": sum(found["unequal"] for found in killed.values()),
    }


def by_kind(outcomes: Sequence[Outcome]) -> dict[str, Counter[str]]:
    """How often each result came of each kind."""
    found: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        unjudged = outcome.result == READ and outcome.detail == UNJUDGED
        found.setdefault(outcome.kind, Counter())[UNJUDGED if unjudged else outcome.result] += 1
    return found


def write_table(outcomes: Sequence[Outcome], killed: dict[str, Any], trial: bool) -> str:
    """The results in Markdown."""
    columns = (READ, UNJUDGED, REFUSED, *_COUNTED.values())
    lines = [
        *heading("Damaged inputs, and commands that are killed", trial),
        f"{len(outcomes)} inputs. *read*: with the values of an oracle; *{UNJUDGED}*: read, where the oracle does not "
        "know that part of the format; *refused*: by a UserError that names the file.",
        "",
        table_row(["kind", *columns]),
        table_row(["---"] * (1 + len(columns))),
    ]
    for kind, counts in by_kind(outcomes).items():
        lines.append(table_row([kind, *(str(counts[column]) for column in columns)]))
    lines += ["", "Commands killed by SIGKILL at a random moment and called again, on SIMULATED frames.", ""]
    lines += [table_row(["command", "seconds", "kills", "unequal"]), table_row(["---"] * 4)]
    for name, found in killed.items():
        seconds = "" if found["seconds"] is None else f"{found['seconds']:.1f}"
        lines.append(table_row([name, seconds, str(found["kills"]), str(found["unequal"])]))
    return "\n".join(lines) + "\n"


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    """The inputs that were asked for."""
    kinds = [kind for kind in every_kind() if arguments.only is None or arguments.only in kind.name]
    count = 12 if arguments.quick else arguments.inputs
    numbers = range(count) if arguments.number is None else [arguments.number]
    return [Job(kind, number) for kind in kinds for number in numbers]


def main() -> None:
    parser = plain_parser(__doc__, threads=1)
    add_runs(parser)
    add_quick(parser)
    parser.add_argument("--inputs", type=int, default=250, help="of each kind")
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--minutes", type=float, default=120, help="after which nothing more is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--only", help="kinds whose name holds this; nothing is killed and nothing written")
    parser.add_argument("--number", type=int, help="one input of each kind, by its number; likewise")
    arguments = parser.parse_args()
    # Children are forked from this process, so it computes nothing with torch itself.
    started_in = begin(arguments)
    outcomes = list(judge_all(_jobs(arguments), partial(quiet, "inputs")))
    shown = [outcome for outcome in outcomes if outcome.result in _FAILURES or arguments.number is not None]
    for outcome in shown:
        print(f"{outcome.kind} {outcome.number} {', '.join(outcome.faults)}: {outcome.result}: {outcome.detail}")
    killed: dict[str, Any] = {}
    if arguments.only is None and arguments.number is None:
        runs = arguments.runs or RUNS / "robustness"
        count, commit = 1 if arguments.quick else arguments.kills, environment()["commit"]
        killed = kill_commands(runs, count, arguments.seed, commit, arguments.minutes)
    summary, table = summarise(outcomes, killed), write_table(outcomes, killed, arguments.quick)
    if not killed or not outcomes:
        print_results(summary, table)
        return
    results = {
        "kinds": {kind: dict(counts) for kind, counts in by_kind(outcomes).items()},
        "failures": [asdict(outcome) for outcome in outcomes if outcome.result in _FAILURES],
        "killed": killed,
    }
    name = f"robustness{'-quick' if arguments.quick else ''}"
    write_results(name, started_in, [arguments.seed], results, summary, table)


if __name__ == "__main__":
    main()
