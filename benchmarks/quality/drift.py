"""Drift: studies until a stream that changes from source to target raises an alarm, and alarms without a change.

    python -m benchmarks.quality.drift [--tables FOLDER] [--seeds 0 1 2] [--streams 200] [--before 60]
    python -m benchmarks.quality.drift --simulated   # SIMULATED tables: shows the method, measures nothing

Streams are drawn from the patients of a score table, with replacement, for a table has fewer than a stream needs; a
patient who is drawn again counts as a new one. After 60 source patients the target begins, at once, or slowly: its
share grows from none to all over 60 studies. The delay is counted from the change, or from the beginning of the slow
one; a stream without an alarm within 200 studies counts as 200. False alarms are those of streams of source patients
alone, begun anew after each, for each 1,000 studies. Reviews take no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness.command_line import add_results, add_runs, add_seeds, begin, plain_parser
from benchmarks.harness.tables import heading, table_row
from benchmarks.quality.score_tables import Row, ScoreTable, add_tables, publish, tables_of
from medfm_rl.quality.drift import DriftTest, Numbers

MOST, SLOWLY, QUIET = 200, 60, 1000


def study(patients: Sequence[Sequence[Row]], generator: np.random.Generator) -> Numbers:
    """The numbers of a patient drawn at random: means over his masks."""
    rows = patients[int(generator.integers(len(patients)))]
    return {signal: np.mean([row.numbers[signal] for row in rows], axis=0).tolist() for signal in rows[0].numbers}


def delay(table: ScoreTable, before: int, slowly: bool, seed: int) -> tuple[int, str | None]:
    """Studies from the change to the alarm, and the signal that gave it; less than 0 for an alarm before."""
    generator = np.random.default_rng([table.seed, seed, slowly])
    source, target = list(table.of("source").values()), list(table.of("target").values())
    test = DriftTest(seed)
    for number in range(before + MOST):
        share = 0.0 if number < before else min(1.0, (number - before + 1) / SLOWLY) if slowly else 1.0
        alarm = test.add(study(target if generator.random() < share else source, generator))
        if alarm is not None:
            return number - before + 1, alarm.signal
    return MOST, None


def false_alarms(table: ScoreTable, streams: int) -> float:
    """Alarms of streams of source patients alone, for each 1,000 studies."""
    source, alarms = list(table.of("source").values()), 0
    for seed in range(streams):
        generator, test = np.random.default_rng([table.seed, seed, 2]), DriftTest(seed)
        for number in range(QUIET):
            if test.add(study(source, generator)) is not None:
                alarms += 1
                test = DriftTest(seed + streams * (number + 1))
    return 1000 * alarms / (streams * QUIET)


def measure(table: ScoreTable, streams: int, before: int) -> dict[str, Any]:
    """Delays and false alarms of a table."""
    found: dict[str, Any] = {"false_alarms_per_1000": false_alarms(table, max(1, streams // 10))}
    for name, slowly in (("at once", False), ("slowly", True)):
        drawn = [delay(table, before, slowly, seed) for seed in range(streams)]
        # An alarm before the change is a false one and has no delay.
        late = [studies for studies, _ in drawn if studies > 0]
        signals = [signal for studies, signal in drawn if studies > 0 and signal is not None]
        found[name] = {
            "median_delay": float(np.median(late)) if late else None,
            "noticed": len(signals) / max(1, len(late)),
            "signals": {signal: signals.count(signal) for signal in dict.fromkeys(signals)},
        }
    return found


def main() -> None:
    parser = plain_parser(__doc__)
    add_runs(parser)
    add_seeds(parser)
    add_tables(parser)
    add_results(parser)
    parser.add_argument("--streams", type=int, default=200, help="streams that change; a tenth as many that do not")
    parser.add_argument("--before", type=int, default=60, help="studies before the change")
    arguments = parser.parse_args()
    started_in = begin(arguments)
    tables = [table for table in tables_of(arguments) if table.of("source")]
    if not tables:
        raise SystemExit("no score table has masks of the source, from which a stream could change")
    results = {table.name: measure(table, arguments.streams, arguments.before) for table in tables}
    delays = [found["at once"]["median_delay"] for found in results.values()]
    known = [value for value in delays if value is not None]
    summary = {
        "drift_delay_median": float(np.median(known)) if known else None,
        "false_alarms_per_1000": float(np.mean([found["false_alarms_per_1000"] for found in results.values()])),
    }
    lines = [
        *heading("Drift of streams", False),
        "| masks | median delay, at once | noticed | slowly | noticed | false alarms in 1,000 |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        cells = [_cell(found[kind]) for kind in ("at once", "slowly")]
        lines.append(table_row([name, *cells[0], *cells[1], f"{found['false_alarms_per_1000']:.2f}"]))
    publish(arguments, "quality_drift", started_in, results, summary, lines)


def _cell(found: dict[str, Any]) -> list[str]:
    median = found["median_delay"]
    return ["" if median is None else f"{median:.0f}", f"{found['noticed']:.0%}"]


if __name__ == "__main__":
    main()
