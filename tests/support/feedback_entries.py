"""Masks and entries of feedback, small and alike."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from medfm_rl.feedback import CorrectedMask, Mask, Measurement, Verdict
from medfm_rl.types import Geometry

NAMES = ("background", "LV", "MYO")
GRID = Geometry((0.7, 0.5), (3.0, -1.5), (1.0, 0.0, 0.0, 1.0))


def block(rows: slice, label: int = 1, size: tuple[int, int] = (6, 8)) -> Mask:
    """A mask with some rows of one label."""
    labels = np.zeros(size, np.uint8)
    labels[rows] = label
    return Mask.of(labels, NAMES, GRID)


SHOWN, CORRECTED = block(slice(1, 3)), block(slice(1, 4))


def image_hash(case: str) -> str:
    return hashlib.sha256(case.encode()).hexdigest()


def on(case: str = "p1_a", reviewer: str = "r1", **more: Any) -> dict[str, Any]:
    """The fields of an entry on a case, whose patient is what stands before the underscore."""
    fields = {"reviewer": reviewer, "patient": case.split("_")[0], "case": case, "image_sha256": image_hash(case)}
    return {**fields, **more}


def correction(case: str = "p1_a", reviewer: str = "r1", **more: Any) -> CorrectedMask:
    fields = {"mask_sha256": CORRECTED.sha256, "replaces_sha256": SHOWN.sha256, "changed": ("LV",), **more}
    return CorrectedMask(**on(case, reviewer), **fields)


def verdict(decision: Any = "accept", case: str = "p1_a", reviewer: str = "r1", **more: Any) -> Verdict:
    return Verdict(**{**on(case, reviewer), "mask_sha256": SHOWN.sha256, "decision": decision, **more})


def ef(value: float = 55.0, patient: str = "p1", **more: Any) -> Measurement:
    return Measurement(**{"reviewer": "r1", "patient": patient, "name": "EF", "value": value, "unit": "%", **more})
