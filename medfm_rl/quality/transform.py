"""A dictionary transform in the style of MONAI: a pipeline that has an image and a mask gets its quality too."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms.transform import MapTransform

from medfm_rl.data.images import holds_spacing, image_stem
from medfm_rl.data.labels import as_label_ids
from medfm_rl.errors import DataError
from medfm_rl.quality.controller import QualityController
from medfm_rl.types import Case, Geometry

_FILE = "filename_or_obj"
"""Where MONAI's readers keep the name of the file in the meta data of an image."""


class AssessQualityd(MapTransform):  # type: ignore[misc]
    """Adds the `QualityReport` of a mask to the dictionary of a case.

    Image and mask are `(C, X, Y[, Z])` and `(1, X, Y[, Z])` or `(X, Y[, Z])`, as MONAI's readers give them, on one
    grid: it comes after `EnsureChannelFirstd` and before what resamples, or after `Invertd`. Spacing, origin and
    direction are taken from the affine of a `MetaTensor`, and unknown without one and for files that hold no spacing
    (PNG).

    Args:
        controller: Assesses the masks.
        image_key: Key of the image.
        label_key: Key of its mask, in the integers of the label files.
        report_key: Where the report goes.
        case_key: Key of the case's name; without it the name is that of the image's file, without its suffix.
        patient_key: Key of the patient's name; without it each case is of a patient of its own.
            `controller.settle` tests a batch by patient.
    """

    def __init__(
        self,
        controller: QualityController,
        image_key: str = "image",
        label_key: str = "pred",
        report_key: str = "quality",
        case_key: str | None = None,
        patient_key: str | None = None,
    ) -> None:
        super().__init__([image_key, label_key])
        self.controller = controller
        self.image_key = image_key
        self.label_key = label_key
        self.report_key = report_key
        self.case_key = case_key
        self.patient_key = patient_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The same dictionary with the report.

        Raises:
            DataError: Image and mask do not belong together, the mask holds no integers or labels that the segmenter
                does not know, the case has no name, or the affine of the image describes no grid.
            KeyError: There is no such key.
        """
        found = dict(data)
        image = found[self.image_key]
        labels = np.asarray(found[self.label_key])
        if labels.ndim == image.ndim and labels.shape[0] == 1:
            labels = labels[0]
        # MONAI's axes are those of the file (x, y, z), ours those of an array of slices, rows and columns.
        pixels = np.moveaxis(np.asarray(image, dtype=np.float32).T, -1, 0)
        labels = labels.T
        geometry = self._geometry(image)
        if geometry.ndim == 3 and pixels.shape[1] == 1 and labels.shape[:1] == (1,):
            pixels, labels, geometry = pixels[:, 0], labels[0], Geometry.slice_of(geometry)
        indices = self.controller.schema.to_indices(as_label_ids(labels, self.label_key), self.label_key)
        name = self._name(found)
        # The name alone may be that of another patient's image in another folder.
        unknown = _file(image) if self.case_key is None else name
        patient = str(unknown if self.patient_key is None else found[self.patient_key])
        found[self.report_key] = self.controller.assess(Case(name, patient, pixels, geometry), indices)
        return found

    def _name(self, data: Mapping[Hashable, Any]) -> str:
        if self.case_key is not None:
            return str(data[self.case_key])
        file = _file(data[self.image_key])
        if file is None:
            raise DataError(
                f"{self.image_key}: its meta data name no file, and a case needs a name; give AssessQualityd a case_key"
            )
        return image_stem(file)

    def _geometry(self, image: Any) -> Geometry:
        ndim, file = image.ndim - 1, _file(image)
        affine = getattr(image, "affine", None)
        if affine is None or (file is not None and not holds_spacing(file)):
            return Geometry.unknown(ndim)
        matrix = np.asarray(affine, dtype=np.float64)
        if getattr(image, "meta", {}).get("space") != "LPS":
            # MONAI's axes grow to the right and to the front, those of ITK and of DICOM to the left and to the back.
            matrix = np.diag([-1.0, -1.0, *[1.0] * (len(matrix) - 2)]) @ matrix
        try:
            geometry = Geometry.from_affine(matrix)
        except ValueError as error:
            raise DataError(f"{self.image_key}: the affine of the image describes no grid ({error})") from error
        return Geometry.slice_of(geometry) if geometry.ndim > ndim else geometry


def _file(image: Any) -> Path | None:
    """The file that an image was read from, where its meta data say so."""
    file = getattr(image, "meta", {}).get(_FILE)
    return Path(str(file)) if file else None
