"""What scoring leaves: tables, the page, and lines of the audit log."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfm_rl import __version__
from medfm_rl.data.files import write_json, write_text
from medfm_rl.data.layouts import CaseFile
from medfm_rl.quality import QualityController
from medfm_rl.reports.scores import PageCase, write_page
from medfm_rl.workflows.deploy.scoring_queue import Scoring, ScoringQueue

SCORES_FILE = "scores.json"
TABLE_FILE = "scores.csv"
PAGE_FILE = "report.html"


def withdraw_results(out: Path) -> None:
    """Removes tables and page of an earlier call: where this one is cut short they must not look like its own."""
    if (out / SCORES_FILE).exists():
        for name in (TABLE_FILE, PAGE_FILE, SCORES_FILE):
            (out / name).unlink(missing_ok=True)


def write_tables(
    out: Path, files: Sequence[CaseFile], scoring: Scoring, controller: QualityController, queue: ScoringQueue
) -> None:
    """`scores.csv`, one row for each case and structure, and `scores.json`."""
    batch, of_case = scoring.batch, {file.case_id: file for file in files}
    # Of two promises the first is that of the intervals.
    interval_state = batch.guarantees[0].status
    of_batch = {"batch_state": batch.state, "batch_patients": batch.patients, "batch_meaning": batch.meaning}
    columns = ["case_id", "patient_id", "structure", "predicted_dice", "low", "high", "interval_state", "mean_reward"]
    columns += ["worst_reward", "worst_centre", "shift_distance", "shift_probability"]
    columns += ["shift_seen_by", "view", "rules_failed"]
    columns += ["verdict", "reason_code", "reasons", *of_batch, "image_files", "mask_file"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()

    def places(case_id: str) -> dict[str, Any]:
        mask = queue.mask_path(case_id)
        images = [str(path) for path in of_case[case_id].image_paths]
        return {"image_files": images, "mask_file": None if mask is None else str(mask)}

    def common(case_id: str) -> dict[str, Any]:
        found = places(case_id)
        images = "; ".join(found["image_files"])
        return {
            **of_batch,
            "case_id": case_id,
            "patient_id": of_case[case_id].patient_id,
            **found,
            "image_files": images,
        }

    cases = []
    for report in batch.reports:
        for item in report.scores:
            writer.writerow(
                {
                    **common(report.case_id),
                    "structure": item.structure,
                    "predicted_dice": item.predicted_dice,
                    "low": item.low,
                    "high": item.high,
                    "interval_state": interval_state,
                    "mean_reward": item.mean_reward,
                    "worst_reward": item.worst_reward,
                    "worst_centre": " ".join(map(str, item.worst_centre)),
                    "shift_distance": report.shift_distance,
                    "shift_probability": report.shift_probability,
                    "shift_seen_by": report.shift_seen_by,
                    "view": "" if report.view is None else report.view.view,
                    "rules_failed": "; ".join(str(rule) for rule in report.rules if not rule.passed),
                    "verdict": report.verdict,
                    "reason_code": report.reason_code,
                    "reasons": "; ".join(report.reasons),
                }
            )
        content = report.to_json()
        del content["embedding"]
        cases.append({**content, **places(report.case_id), "mask": queue.mask_hashes[report.case_id]})
    problems = {}
    for case_id, found in scoring.unassessed.items():
        verdict = {"verdict": "refer", "reason_code": found.cause}
        writer.writerow({**common(case_id), **verdict, "reasons": found.problem})
        patient = of_case[case_id].patient_id
        problems[case_id] = {"problem": found.problem, "patient_id": patient, **verdict, **places(case_id)}
    write_text(out / TABLE_FILE, text.getvalue())
    write_json(
        out / SCORES_FILE,
        {
            "format": 3,
            "medfm_rl": __version__,
            "calibrated_on": controller.model.origin,
            "quality": queue.networks["quality"],
            # None where the masks came as files.
            "segmenter": queue.maker.get("weights"),
            **of_batch,
            "batch_shift_probability": batch.shift_probability,
            "accept_untested": controller.accept_untested,
            "interval_state": interval_state,
            "guarantees": [vars(guarantee) for guarantee in batch.guarantees],
            "cases": cases,
            "problems": problems,
        },
    )


def write_scores_page(out: Path, scoring: Scoring, controller: QualityController, simulated: bool) -> None:
    """`report.html`, with the pictures that the queue has made."""
    cases = [PageCase(report, out / "thumbnails" / f"{report.case_id}.png") for report in scoring.batch.reports]
    path = out / PAGE_FILE
    write_page(path, cases, scoring.problems, scoring.batch, controller.model, controller.schema, simulated)


def audit_lines(
    scoring: Scoring,
    queue: ScoringQueue,
    common: Mapping[str, str | None],
) -> list[dict[str, Any]]:
    """One line for each verdict that is handed out."""
    batch = {
        "state": scoring.batch.state,
        "patients": scoring.batch.patients,
        "accept_untested": queue.controller.accept_untested,
    }
    lines = [
        {
            **common,
            "case": report.case_id,
            "batch": batch,
            "inputs": queue.hashes[report.case_id],
            "outputs": queue.records.files_of(report.case_id),
            "verdict": report.verdict,
            "reason_code": report.reason_code,
        }
        for report in scoring.batch.reports
    ]
    return lines + [
        {
            **common,
            "case": case_id,
            "batch": batch,
            "inputs": queue.hashes[case_id],
            "verdict": "refer",
            "reason_code": found.cause,
            "problem": found.problem,
        }
        for case_id, found in scoring.unassessed.items()
    ]
