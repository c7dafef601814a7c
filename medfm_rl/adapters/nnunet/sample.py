"""A case as nnU-Net sees it, and what it takes to bring a result back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from medfm_rl.adapters.grid import Sample
from medfm_rl.adapters.nnunet.folder import NnUNetTool
from medfm_rl.adapters.nnunet.orientation import Orientation
from medfm_rl.errors import DataError
from medfm_rl.types import Case, FloatArray


@dataclass(frozen=True, eq=False)
class NnUNetSample(Sample):
    """A case as nnU-Net's preprocessor leaves it, padded to the patch.

    Attributes:
        properties: What nnU-Net needs for the way back.
        content: The part of the padded grid that shows the image.
        orientation: How the case lies, where the model wants canonical axes.
    """

    properties: dict[str, Any]
    content: tuple[slice, ...]
    orientation: Orientation | None


@dataclass(frozen=True)
class Arranged:
    """A case as nnU-Net's reader of a model would have given it.

    Attributes:
        image: `(C, D, H, W)`.
        spacing: (z, y, x) in mm.
        orientation: How the case lies, where the model wants canonical axes.
    """

    image: FloatArray
    spacing: tuple[float, ...]
    orientation: Orientation | None = None

    def mask(self, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A mask `(*S)` of the case with the axes of the image, `(D, H, W)`."""
        mask = labels[None] if labels.ndim == 2 else labels
        return mask if self.orientation is None else self.orientation.labels_to_canonical(mask)


def arrange(case: Case, tool: NnUNetTool, canonical: bool) -> Arranged:
    """The image as nnU-Net's reader of a model would have given it.

    Args:
        case: As the model takes it (`conform`).
        tool: The model.
        canonical: Turn volumes to canonical axes.

    Raises:
        DataError: The file does not say its spacing, or the model slices volumes along another axis.
    """
    where, flat = f"case {case.case_id}", len(case.shape) == 2
    if flat and tool.plans.transpose_forward[0] != 0:
        raise DataError(f"{where}: this nnU-Net slices volumes along another axis than the first; give volumes")
    image = case.image[:, None] if flat else case.image
    if tool.reader == "NaturalImage2DIO":
        return Arranged(image, (999.0, 1.0, 1.0))
    spacing = case.geometry.array_spacing
    if spacing is None:
        raise DataError(
            f"{where}: the file does not say its spacing in mm, and this nnU-Net resamples by it; convert the "
            "image to a format that holds it (.nii.gz, .mha)"
        )
    if flat:
        # As nnU-Net's readers do it: the third axis is so coarse that nothing is resampled along it.
        return Arranged(image, (max(spacing) * 999, *spacing))
    if canonical:
        orientation = Orientation.of(case)
        return Arranged(*orientation.to_canonical(case), orientation)
    return Arranged(image, spacing)
