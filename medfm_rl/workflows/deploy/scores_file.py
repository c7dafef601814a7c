"""`scores.json`: verdicts and scores of a batch for programs; `medfm_rl.runs.scores` reads it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from medfm_rl.data.files import json_with_list, write_parts
from medfm_rl.quality.reports import QualityReport
from medfm_rl.runs.scores import SCORES_FORMAT
from medfm_rl.version import __version__
from medfm_rl.workflows.deploy.clip_verdicts import clip_verdicts
from medfm_rl.workflows.deploy.scoring import CaseTrace, Scoring


def batch_columns(scoring: Scoring) -> dict[str, Any]:
    """Everything that holds for the whole batch, by the names that tables and JSON share."""
    batch = scoring.batch
    return {
        "batch_state": batch.state,
        "batch_guarantee": batch.guarantee,
        "batch_patients": batch.patients,
        "batch_meaning": batch.meaning,
    }


def interval_state(scoring: Scoring) -> str:
    """Whether the intervals hold: of the promises the first is theirs."""
    return scoring.batch.promises[0].status


def places(trace: CaseTrace) -> dict[str, Any]:
    """The files of image and mask."""
    mask = None if trace.mask is None else str(trace.mask)
    return {"image_files": [str(path) for path in trace.file.image_paths], "mask_file": mask}


def write_scores(path: Path, scoring: Scoring, simulated: bool) -> None:
    """Writes the file, which says of simulated images that they are."""
    scorer, traces = scoring.scorer, scoring.traces
    problems = {
        case_id: {
            "problem": found.problem,
            "patient_id": traces[case_id].file.patient_id,
            "verdict": "refer",
            "reason_code": found.cause,
            "guarantee": None,
            "action": "refer",
            **places(traces[case_id]),
        }
        for case_id, found in scoring.unassessed.items()
    }
    clips = {clip.clip_id: clip.to_json() for clip in clip_verdicts(scoring)}
    content = {
        "format": SCORES_FORMAT,
        "medfm_rl": __version__,
        "calibrated_on": scorer.model.origin,
        "quality": scorer.quality_hash,
        "segmenter": scorer.segmenter,
        **batch_columns(scoring),
        "batch_shift_probability": scoring.batch.shift_probability,
        "batch_evidence": scoring.batch.evidence,
        "policy": scorer.policy.model_dump(mode="json"),
        **scorer.reviews,
        "stream": None if scoring.place is None else str(scoring.place.path),
        "interval_state": interval_state(scoring),
        "promises": [vars(promise) for promise in scoring.batch.promises],
        "cases": [],
        "problems": problems,
        **({"clips": clips} if clips else {}),
        **({"simulated": True} if simulated else {}),
    }
    write_parts(path, json_with_list(content, "cases", map(partial(_case, scoring), scoring.batch.reports)))


def _case(scoring: Scoring, report: QualityReport) -> dict[str, Any]:
    content, trace = report.to_json(), scoring.traces[report.case_id]
    del content["embedding"]
    return {**content, **places(trace), "mask": trace.mask_hash, "audit": scoring.is_drawn(report.case_id)}
