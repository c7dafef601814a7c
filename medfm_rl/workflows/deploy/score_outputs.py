"""The outputs of scoring: tables, the page, and lines of the audit log."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from medfm_rl.data.files import write_parts, write_text
from medfm_rl.quality.packed import InTurn
from medfm_rl.quality.reports import QualityReport
from medfm_rl.reports.scores import PageCase, write_page
from medfm_rl.runs.scores import SCORES_FILE
from medfm_rl.workflows.deploy.clip_verdicts import CLIPS_FILE, clip_table
from medfm_rl.workflows.deploy.scores_file import batch_columns, interval_state, places, write_scores
from medfm_rl.workflows.deploy.scoring import CaseTrace, Scoring, thumbnail_path

TABLE_FILE: Final = "scores.csv"
PAGE_FILE: Final = "report.html"
_COLUMNS = (
    *("case_id", "patient_id", "structure", "predicted_dice", "low", "high", "interval_state", "mean_reward"),
    *("worst_reward", "worst_centre", "shift_distance", "shift_probability", "shift_seen_by", "view", "rules_failed"),
    *("risk", "verdict", "reason_code", "reasons", "guarantee", "evidence", "action", "action_reason", "policy"),
    *("stream", "audit"),
    *("batch_state", "batch_guarantee", "batch_patients", "batch_meaning"),
    *("image_files", "mask_file"),
)


def withdraw_results(out: Path) -> None:
    """Removes tables and page of an earlier call: where this one is cut short they must not look like its own."""
    if (out / SCORES_FILE).exists():
        for name in (TABLE_FILE, PAGE_FILE, SCORES_FILE, CLIPS_FILE):
            (out / name).unlink(missing_ok=True)


def write_results(out: Path, scoring: Scoring, simulated: bool) -> None:
    """Writes `scores.csv`, `scores.json` and `report.html` with the pictures of the cases, and `clips.csv` of clips.

    Args:
        out: Output folder.
        scoring: The result.
        simulated: Whether the images are simulated; page and `scores.json` say so.
    """
    write_parts(out / TABLE_FILE, _table(scoring))
    clips = clip_table(scoring)
    if clips is not None:
        write_text(out / CLIPS_FILE, clips)
    write_scores(out / SCORES_FILE, scoring, simulated)
    reports = scoring.batch.reports
    scorer = scoring.scorer
    drawn = [] if scoring.place is None else [report.case_id for report in reports if scoring.is_drawn(report.case_id)]

    def page_case(index: int) -> PageCase:
        report = reports[index]
        return PageCase(report, thumbnail_path(out, report.case_id))

    cases = InTurn(len(reports), page_case)
    write_page(out / PAGE_FILE, cases, scoring.problems, scoring.batch, scorer.model, scorer.policy, simulated, drawn)


def _table(scoring: Scoring) -> Iterator[str]:
    """Lines of CSV, one for each case and structure."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n", restval="")

    def written() -> str:
        line = text.getvalue()
        text.seek(0)
        text.truncate()
        return line

    writer.writeheader()
    for report in scoring.batch.reports:
        of_report = {
            **_of_case(scoring, report.case_id),
            **_of_report(report),
            "interval_state": interval_state(scoring),
        }
        for item in report.scores:
            writer.writerow(
                {
                    **of_report,
                    "structure": item.structure,
                    "predicted_dice": item.predicted_dice,
                    "low": item.low,
                    "high": item.high,
                    "mean_reward": item.mean_reward,
                    "worst_reward": item.worst_reward,
                    "worst_centre": " ".join(map(str, item.worst_centre)),
                }
            )
        yield written()
    for case_id, found in scoring.unassessed.items():
        verdict = {"verdict": "refer", "reason_code": found.cause, "reasons": found.problem, "action": "refer"}
        writer.writerow({**_of_case(scoring, case_id), **verdict})
    yield written()


def _of_case(scoring: Scoring, case_id: str) -> dict[str, Any]:
    trace = scoring.traces[case_id]
    found = places(trace)
    names = {"case_id": case_id, "patient_id": trace.file.patient_id, "policy": scoring.scorer.policy.name}
    if scoring.place is not None:
        names |= {"stream": str(scoring.place.path), "audit": "drawn" if scoring.is_drawn(case_id) else ""}
    return {**batch_columns(scoring), **names, **found, "image_files": "; ".join(found["image_files"])}


def _of_report(report: QualityReport) -> dict[str, Any]:
    return {
        "shift_distance": report.shift_distance,
        "shift_probability": report.shift_probability,
        "shift_seen_by": report.shift_seen_by,
        "view": "" if report.view is None else report.view.view,
        "rules_failed": "; ".join(str(rule) for rule in report.rules if not rule.passed),
        "risk": report.risk,
        "verdict": report.verdict,
        "reason_code": report.reason_code,
        "reasons": "; ".join(report.reasons),
        "guarantee": report.guarantee,
        "evidence": report.evidence,
        "action": report.action,
        "action_reason": report.action_reason,
    }


def audit_lines(scoring: Scoring) -> Iterator[dict[str, Any]]:
    """One line for each verdict that is handed out."""
    scorer, batch = scoring.scorer, scoring.batch
    common = {
        **scorer.gates,
        "made_by": scorer.made_by,
        "batch": {"state": batch.state, "patients": batch.patients, "guarantee": batch.guarantee},
        "policy": scorer.policy.model_dump(mode="json"),
        **scorer.reviews,
        "stream": None if scoring.place is None else str(scoring.place.path),
    }

    def line(trace: CaseTrace, **found: object) -> dict[str, Any]:
        return {**common, "case": trace.file.case_id, "inputs": trace.inputs, **found}

    for report in batch.reports:
        trace = scoring.traces[report.case_id]
        yield line(
            trace,
            outputs=trace.outputs,
            verdict=report.verdict,
            reason_code=report.reason_code,
            guarantee=report.guarantee,
            action=report.action,
            audit=scoring.is_drawn(report.case_id),
        )
    for case_id, found in scoring.unassessed.items():
        yield line(
            scoring.traces[case_id],
            verdict="refer",
            reason_code=found.cause,
            guarantee=None,
            action="refer",
            problem=found.problem,
        )
