"""Distances between the surfaces of a segmentation and of ground truth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medfm_rl.structures import Structures, bounding_box, pixels_of
from medfm_rl.types import FloatArray, LabelMap


def surface_distances(
    prediction: LabelMap, ground_truth: LabelMap, structures: Structures, array_spacing: tuple[float, ...] | None
) -> tuple[FloatArray, FloatArray]:
    """95 % Hausdorff distance and average symmetric surface distance of each structure.

    A surface is the pixels of a structure that touch one outside of it across a face; what lies beyond the image counts
    as background. HD95 is the larger of the two directed 95th percentiles; ASSD the mean over both surfaces together.

    Args:
        prediction: Class indices `(*S)`.
        ground_truth: Class indices `(*S)`.
        structures: Class indices of each structure.
        array_spacing: Size of a pixel in mm in array order; None gives distances in pixels.

    Returns:
        HD95 and ASSD, each `(R,)`, for each structure. Both 0 where both lack the structure, NaN where only one does.

    Raises:
        ValueError: The sizes differ.
    """
    if prediction.shape != ground_truth.shape:
        raise ValueError(f"prediction has size {prediction.shape}, ground truth {ground_truth.shape}")
    spacing = array_spacing or (1.0,) * prediction.ndim
    hd95, assd = [], []
    for classes in structures:
        ours, theirs = pixels_of(prediction, classes), pixels_of(ground_truth, classes)
        if not ours.any() or not theirs.any():
            value = 0.0 if ours.any() == theirs.any() else np.nan
            hd95.append(value)
            assd.append(value)
            continue
        box = bounding_box(ours | theirs)
        assert box is not None
        to_theirs, to_ours = _directed(ours[box], theirs[box], spacing)
        hd95.append(max(np.percentile(to_theirs, 95), np.percentile(to_ours, 95)))
        assd.append(float(np.concatenate([to_theirs, to_ours]).mean()))
    return np.asarray(hd95, dtype=np.float32), np.asarray(assd, dtype=np.float32)


def _directed(
    ours: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_], spacing: tuple[float, ...]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    surface, other = _surface(ours), _surface(theirs)
    to_theirs = ndimage.distance_transform_edt(~other, sampling=spacing)[surface]
    to_ours = ndimage.distance_transform_edt(~surface, sampling=spacing)[other]
    return to_theirs, to_ours


def _surface(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = ndimage.binary_erosion(mask, border_value=0)
    return mask & ~inside
