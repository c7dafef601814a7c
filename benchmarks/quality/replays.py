"""Promises replayed: patients in random orders as they come to a hospital, k of them reviewed, the others not.

    python -m benchmarks.quality.replays [--tables FOLDER] [--seeds 0 1 2] [--replays 200]
    python -m benchmarks.quality.replays --simulated   # SIMULATED tables: shows the method, measures nothing

Of each score table the target patients are put in 200 random orders. With k = 0 the verdicts of the default calibration
stand. With k = 8, 16, 24 and 32 the first k patients are reviewed, a promise is sought from them (at most 10 % of the
accepted masks below the limit, 90 % confidence), and the others are accepted by it. Recorded are the share of the
others' masks that is accepted, the share of failures among these, and how often the promise broke: the mean over
patients of the share of failures among their accepted masks above 10 %. What the promise is about are all patients
like the reviewed ones, and the others are few: it can break on them and hold, so that up to 10 % of the replays and
the chance of few patients are no fault.

The same reviewed patients move predicted Dice and its intervals (`medfm_rl.quality.reviewed_errors`): how often these
hold the Dice of the others, and what predictions miss it by before and after. The triage is that by these errors: a
mask is accepted where the probability that it lies below the limit is at most 10 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness.command_line import add_results, add_runs, add_seeds, begin, plain_parser
from benchmarks.harness.tables import heading, table_row
from benchmarks.quality.score_tables import Row, ScoreTable, add_tables, publish, tables_of
from medfm_rl.metrics.scores import MEAN
from medfm_rl.quality.conformal import fewest_for_intervals
from medfm_rl.quality.promises import PromiseTarget, ReviewedMask, prove
from medfm_rl.quality.reports import QualityReport, StructureScore
from medfm_rl.quality.reviewed_errors import Origin, ReviewedPrediction, fit_reviewed_errors

REVIEWED = (0, 8, 16, 24, 32)
ALPHA, CONFIDENCE, COVERAGE = 0.1, 0.9, 0.9
OF_MOVED = {
    "interval_coverage": ".1%",
    "interval_width": ".2f",
    "mae_before": ".3f",
    "mae_after": ".3f",
    "triage_accepted_share": ".0%",
    "triage_failures": ".1%",
}
"""Figures of moved predictions in the table, and how they are written."""
_WHOLE = "all structures"
"""Tables have the mean over structures alone."""


def replay(table: ScoreTable, reviewed: int, replays: int) -> dict[str, Any]:
    """What came of replays with so many reviewed patients."""
    patients = list(table.of("target").values())
    generator = np.random.default_rng(table.seed)
    shares, failures, broken, proven = [], [], 0, 0
    moved: list[dict[str, float]] = []
    for _ in range(replays):
        order = [patients[index] for index in generator.permutation(len(patients))]
        others = order[reviewed:]
        moved += _moved(order[:reviewed], others, table.limit)
        accepted = _accepted(order[:reviewed], others, table.limit)
        masks = [row for own in accepted for row in own]
        shares.append(len(masks) / sum(len(own) for own in others))
        if masks:
            proven += 1
            failures.append(float(np.mean([row.dice < table.limit for row in masks])))
            broken += float(np.mean([np.mean([row.dice < table.limit for row in own]) for own in accepted])) > ALPHA
    return {
        "accepted_share": float(np.mean(shares)),
        "failures_among_accepted": float(np.mean(failures)) if failures else None,
        "with_accepts": proven / replays,
        "promise_broken_share": broken / replays,
        **{
            key: float(np.mean([each[key] for each in moved if key in each]))
            for key in OF_MOVED
            if any(key in each for each in moved)
        },
    }


def _moved(reviewed: Sequence[Sequence[Row]], others: Sequence[Sequence[Row]], limit: float) -> list[dict[str, float]]:
    """What reviewed patients make of the predictions of the others; nothing where they are too few for intervals."""
    known = [
        ReviewedPrediction(row.patient, {_WHOLE: row.predicted}, {_WHOLE: row.dice}) for own in reviewed for row in own
    ]
    if len(reviewed) < fewest_for_intervals(COVERAGE):
        return []
    errors = fit_reviewed_errors(known, COVERAGE, Origin("", "", "", ""))
    rows = [row for own in others for row in own if row.predicted is not None]
    reports = [errors.moved(_report(row)) for row in rows]
    held, width, before, after = [], [], [], []
    accepted: list[bool] = []
    for row, report in zip(rows, reports, strict=True):
        mean, value = report.mean, report.mean.predicted_dice
        assert row.predicted is not None
        assert value is not None
        assert mean.low is not None
        assert mean.high is not None
        held.append(mean.low <= row.dice <= mean.high)
        width.append(mean.high - mean.low)
        before.append(abs(row.predicted - row.dice))
        after.append(abs(value - row.dice))
        probable = errors.risk(report, {MEAN: limit})
        accepted.append(probable is not None and probable <= ALPHA)
    figures: dict[str, Sequence[float]] = {
        "interval_coverage": held,
        "interval_width": width,
        "mae_before": before,
        "mae_after": after,
        "triage_accepted_share": accepted,
        "triage_failures": [row.dice < limit for row, kept in zip(rows, accepted, strict=True) if kept],
    }
    return [{name: float(np.mean(values)) for name, values in figures.items() if len(values)}]


def _report(row: Row) -> QualityReport:
    """What the errors of reviewed patients ask of a report."""
    scores = tuple(StructureScore(name, row.predicted, None, None, row.reward, 0.0, (0, 0)) for name in (_WHOLE, MEAN))
    return QualityReport("", row.patient, scores, (), row.distance, 1.0, "refer", ())


def _accepted(reviewed: Sequence[Sequence[Row]], others: Sequence[Sequence[Row]], limit: float) -> list[list[Row]]:
    """The accepted masks of the others, of each patient who has some."""
    if not reviewed:
        found = [[row for row in own if row.verdict == "accept"] for own in others]
    else:
        masks = [
            ReviewedMask(f"{row.patient} {place}", row.patient, row.predicted, row.rules_met, row.dice)
            for own in reviewed
            for place, row in enumerate(own)
        ]
        promise = prove(masks, PromiseTarget(dice=limit, alpha=ALPHA, confidence=CONFIDENCE))
        found = [[row for row in own if promise.accepts(row.predicted, row.rules_met)] for own in others]
    return [own for own in found if own]


def measure(table: ScoreTable, replays: int) -> dict[str, Any]:
    """A table with as many reviewed as its patients allow."""
    target = table.of("target")
    masks = [row for own in target.values() for row in own]
    known = [(row.predicted, row.dice) for row in masks if row.predicted is not None]
    return {
        "patients": len(target),
        "failures": float(np.mean([row.dice < table.limit for row in masks])),
        "mae_predicted_dice": float(np.mean([abs(predicted - dice) for predicted, dice in known])),
        "replays": {str(k): replay(table, k, replays) for k in REVIEWED if k < len(target)},
    }


def summarise(results: dict[str, Any], shifts: dict[str, str]) -> dict[str, Any]:
    """Means over models and seeds by shift, of promises with 24 reviewed patients, of predictions with 16."""
    keys = ("accepted_share", "promise_broken_share", "mae_predicted_dice", "mae_reviewed_16", "interval_coverage_16")
    summary: dict[str, dict[str, float]] = {key: {} for key in keys}
    for shift in dict.fromkeys(shifts.values()):
        own = [found for name, found in results.items() if shifts[name] == shift]
        of_24 = [found["replays"]["24"] for found in own if "24" in found["replays"]]
        for key in ("accepted_share", "promise_broken_share"):
            if of_24:
                summary[key][shift] = float(np.mean([found[key] for found in of_24]))
        of_16 = [found["replays"]["16"] for found in own if "16" in found["replays"]]
        for key, name in (("mae_reviewed_16", "mae_after"), ("interval_coverage_16", "interval_coverage")):
            if of_16:
                summary[key][shift] = float(np.mean([found[name] for found in of_16]))
        summary["mae_predicted_dice"][shift] = float(np.mean([found["mae_predicted_dice"] for found in own]))
    return summary


def _shown(values: dict[str, Any], key: str, form: str) -> str:
    return format(values[key], form) if key in values else ""


def main() -> None:
    parser = plain_parser(__doc__)
    add_runs(parser)
    add_seeds(parser)
    add_tables(parser)
    add_results(parser)
    parser.add_argument("--replays", type=int, default=200, help="random orders of the patients")
    arguments = parser.parse_args()
    started_in = begin(arguments)
    tables = tables_of(arguments)
    results = {table.name: measure(table, arguments.replays) for table in tables}
    summary = summarise(results, {table.name: table.shift for table in tables})
    lines = [
        *heading("Replayed promises", False),
        "| masks | patients | failures | k | accepted | failures among these | replays with accepts | broke "
        "| intervals hold | width | missed by, before | after | triage accepts | failures among these |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        for k, values in found["replays"].items():
            bad = values["failures_among_accepted"]
            cells = [f"{values['accepted_share']:.0%}", "" if bad is None else f"{bad:.1%}"]
            cells += [f"{values['with_accepts']:.0%}", f"{values['promise_broken_share']:.1%}"]
            cells += [_shown(values, key, form) for key, form in OF_MOVED.items()]
            lines.append(table_row([name, str(found["patients"]), f"{found['failures']:.0%}", k, *cells]))
    publish(arguments, "quality_replays", started_in, results, summary, lines)


if __name__ == "__main__":
    main()
