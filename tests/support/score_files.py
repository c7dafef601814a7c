"""A `scores.json` without networks, for what reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from medfm_rl.workflows.deploy import scores_file


def write_scores_file(
    path: Path, cases: Sequence[tuple[str, str, float, float]], verdict: str = "accept", quality: str = "a" * 64
) -> Path:
    """Cases are name, patient, predicted mean Dice and distance from the calibration."""
    content = {
        "format": scores_file._FORMAT,
        "quality": quality,
        "segmenter": None,
        "batch_state": "holds",
        "problems": {},
        "cases": [
            {
                "case_id": name,
                "patient_id": patient,
                "verdict": verdict,
                "mask": f"mask of {name}",
                "scores": [{"structure": "mean", "predicted_dice": predicted, "mean_reward": predicted}],
                "rules": [{"rule": "holes", "passed": True}, {"rule": "size", "passed": False}],
                "shift_distance": distance,
            }
            for name, patient, predicted, distance in cases
        ],
    }
    path.write_text(json.dumps(content))
    return path
