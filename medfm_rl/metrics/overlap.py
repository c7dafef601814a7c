"""Overlap of a segmentation with ground truth."""

from __future__ import annotations

import numpy as np

from medfm_rl.structures import Structures, count_classes
from medfm_rl.types import IGNORED, FloatArray, LabelMap


def dice(prediction: LabelMap, ground_truth: LabelMap, structures: Structures) -> FloatArray:
    """Dice coefficient of each structure, `2 |A and B| / (|A| + |B|)`.

    Args:
        prediction: Class indices `(*S)`.
        ground_truth: Class indices `(*S)`. Pixels that are `IGNORED` there count in neither mask.
        structures: Class indices of each structure.

    Returns:
        `(R,)` in [0, 1], for each structure. One that both lack scores 1; one that only one of them lacks scores 0.

    Raises:
        ValueError: The sizes differ, or a class index is of no structure.
    """
    if prediction.shape != ground_truth.shape:
        raise ValueError(f"prediction has size {prediction.shape}, ground truth {ground_truth.shape}")
    num_classes = count_classes(structures)
    if num_classes <= IGNORED:
        prediction, ground_truth = where_both_are_said(prediction, ground_truth)
    highest = max(prediction.max(initial=0), ground_truth.max(initial=0))
    if highest >= num_classes:
        raise ValueError(f"class index {highest} found, there are {num_classes} classes (0 to {num_classes - 1})")
    joint = np.bincount(
        ground_truth.ravel().astype(np.int64) * num_classes + prediction.ravel(), minlength=num_classes**2
    ).reshape(num_classes, num_classes)
    members = np.zeros((len(structures), num_classes), dtype=np.int64)
    for row, classes in zip(members, structures, strict=True):
        row[list(classes)] = 1
    both = (members @ joint * members).sum(axis=1)
    total = members @ (joint.sum(axis=0) + joint.sum(axis=1))
    return np.where(total == 0, 1.0, 2 * both / np.maximum(total, 1)).astype(np.float32)


def where_both_are_said(prediction: LabelMap, ground_truth: LabelMap) -> tuple[LabelMap, LabelMap]:
    """Both masks with background where the ground truth is `IGNORED`; the same ones where it is nowhere."""
    unsaid = ground_truth == IGNORED
    if not unsaid.any():
        return prediction, ground_truth
    return np.where(unsaid, np.uint8(0), prediction), np.where(unsaid, np.uint8(0), ground_truth)
