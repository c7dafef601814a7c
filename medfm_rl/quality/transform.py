"""A dictionary transform in the style of MONAI: a pipeline that has an image and a mask gets its quality too."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.transforms.transform import MapTransform

from medfm_rl.quality.controller import QualityController
from medfm_rl.types import Case, Geometry


class AssessQualityd(MapTransform):  # type: ignore[misc]
    """Adds the `QualityReport` of a mask to the dictionary of a case.

    Image and mask are `(C, X, Y[, Z])` and `(1, X, Y[, Z])` or `(X, Y[, Z])`, as MONAI's readers give them, on the grid
    of the image's file: it comes after `EnsureChannelFirstd` and before what resamples, or after `Invertd`. The spacing
    is taken from a `MetaTensor`, and unknown without one.

    Args:
        controller: Judges the masks.
        image_key: Of the image.
        label_key: Of its mask, in the integers of the label files.
        report_key: Where the report goes.
    """

    def __init__(
        self,
        controller: QualityController,
        image_key: str = "image",
        label_key: str = "pred",
        report_key: str = "quality",
    ) -> None:
        super().__init__([image_key, label_key])
        self.controller = controller
        self.image_key = image_key
        self.label_key = label_key
        self.report_key = report_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The same dictionary with the report.

        Raises:
            DataError: Image and mask do not belong together, or the mask has labels that the segmenter does not know.
        """
        found = dict(data)
        image = np.asarray(found[self.image_key], dtype=np.float32)
        labels = np.asarray(found[self.label_key])
        ndim = image.ndim - 1
        if labels.ndim == image.ndim and labels.shape[0] == 1:
            labels = labels[0]
        # MONAI's axes are those of the file (x, y, z), ours those of an array of slices, rows and columns.
        reversed_axes = tuple(reversed(range(ndim)))
        pixels = image.transpose(0, *(axis + 1 for axis in reversed_axes))
        indices = self.controller.schema.to_indices(
            labels.transpose(tuple(reversed(range(labels.ndim)))).astype(np.int64), self.label_key
        )
        spacing = getattr(found[self.image_key], "pixdim", None)
        unknown = Geometry.unknown(ndim)
        geometry = unknown
        if spacing is not None:
            geometry = Geometry(tuple(float(value) for value in spacing[:ndim]), unknown.origin, unknown.direction)
        name = str(found.get("case_id", self.image_key))
        found[self.report_key] = self.controller.assess(Case(name, name, pixels, geometry), indices)
        return found
