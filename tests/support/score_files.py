"""A `scores.json` without networks, for what reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medfm_rl.anatomy.profiles import RuleResult
from medfm_rl.quality.reports import StructureScore
from medfm_rl.runs.scores import SCORES_FORMAT


def assessed_mask(
    name: str, patient: str, verdict: str, mask: str, predicted: float = 0.5, distance: float = 1.0
) -> dict[str, Any]:
    """A case of `scores.json`: a mask, by its hash, that breaks one of two rules."""
    return {
        "case_id": name,
        "patient_id": patient,
        "verdict": verdict,
        "mask": mask,
        "scores": [asdict(StructureScore("mean", predicted, 0.0, 1.0, predicted, predicted, (0, 0)))],
        "rules": [
            asdict(RuleResult(rule, "LV", None, 1.0, None, 1.0, "", "", passed))
            for rule, passed in (("holes", True), ("size", False))
        ],
        "shift_distance": distance,
    }


def write_scores_file(
    path: Path, cases: Sequence[tuple[str, str, float, float]], verdict: str = "accept", quality: str = "a" * 64
) -> Path:
    """Cases are name, patient, predicted mean Dice and distance from the calibration."""
    content = {
        "format": SCORES_FORMAT,
        "quality": quality,
        "segmenter": None,
        "batch_state": "holds",
        "problems": {},
        "cases": [
            assessed_mask(name, patient, verdict, f"mask of {name}", predicted, distance)
            for name, patient, predicted, distance in cases
        ],
    }
    path.write_text(json.dumps(content))
    return path
