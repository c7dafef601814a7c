"""Overlap of a segmentation with ground truth."""

from __future__ import annotations

import numpy as np

from medfm_rl.types import FloatArray, LabelMap


def dice(prediction: LabelMap, ground_truth: LabelMap, num_classes: int) -> FloatArray:
    """Dice coefficient of each structure, `2 |A and B| / (|A| + |B|)`.

    Args:
        prediction: Class indices `(*S)`.
        ground_truth: Class indices `(*S)`.
        num_classes: K.

    Returns:
        `(K - 1,)` in [0, 1]. A structure that both lack scores 1; one that only one of them lacks scores 0.

    Raises:
        ValueError: The sizes differ, or a class index is not below `num_classes`.
    """
    if prediction.shape != ground_truth.shape:
        raise ValueError(f"prediction has size {prediction.shape}, ground truth {ground_truth.shape}")
    highest = max(prediction.max(initial=0), ground_truth.max(initial=0))
    if highest >= num_classes:
        raise ValueError(f"class index {highest} found, there are {num_classes} classes (0 to {num_classes - 1})")
    joint = np.bincount(
        ground_truth.ravel().astype(np.int64) * num_classes + prediction.ravel(), minlength=num_classes**2
    ).reshape(num_classes, num_classes)
    both = np.diag(joint)[1:]
    total = joint.sum(axis=0)[1:] + joint.sum(axis=1)[1:]
    return np.where(total == 0, 1.0, 2 * both / np.maximum(total, 1)).astype(np.float32)
