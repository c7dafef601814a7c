"""Turning a volume to the axes that a tool was trained on, and its result back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medfm_rl.types import Case, FloatArray, GridAxes

CANONICAL = "RAS"
_OPPOSITE = {"R": "L", "A": "P", "S": "I"}


@dataclass(frozen=True)
class Orientation:
    """How a case lies in its file.

    Attributes:
        code: Orientation of the case, as ITK writes it (`LPS`, ...): the directions in which its axes x, y, z grow.
    """

    code: str

    @classmethod
    def of(cls, case: Case) -> Orientation:
        """The orientation of a 3-D case; an oblique one has that of the nearest axes."""
        return cls(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(case.geometry.direction))

    def to_canonical(self, case: Case) -> tuple[FloatArray, tuple[float, ...]]:
        """The image `(C, D, H, W)` with axes that grow to the right, front and head, and its spacing (z, y, x) in mm.

        Axes are swapped and flipped; no pixel is interpolated. The spacing of the case must be known.
        """
        turned = []
        for channel in case.image:
            image = sitk.GetImageFromArray(channel)
            image.SetDirection(case.geometry.direction)
            image.SetSpacing(case.geometry.spacing)
            turned.append(sitk.DICOMOrient(image, CANONICAL))
        pixels = np.stack([sitk.GetArrayFromImage(image) for image in turned])
        return pixels, tuple(reversed(turned[0].GetSpacing()))

    def to_native(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Labels or a map `(D, H, W)` on canonical axes, back on those of the case."""
        return self._turn(values, CANONICAL, self.code)

    def labels_to_canonical(self, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A mask `(D, H, W)` of the case, on canonical axes."""
        return self._turn(labels, self.code, CANONICAL)

    @property
    def canonical_axes(self) -> GridAxes:
        """How canonical axes (z, y, x) run in the case."""
        order, flipped = [], []
        for letter in reversed(CANONICAL):
            axis = next(index for index, own in enumerate(self.code) if own in (letter, _OPPOSITE[letter]))
            order.append(len(CANONICAL) - 1 - axis)
            flipped.append(self.code[axis] != letter)
        return GridAxes(tuple(order), tuple(flipped))

    @staticmethod
    def _turn(values: npt.NDArray[Any], start: str, end: str) -> npt.NDArray[Any]:
        image = sitk.GetImageFromArray(values)
        image.SetDirection(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(start))
        turned: npt.NDArray[Any] = sitk.GetArrayFromImage(sitk.DICOMOrient(image, end))
        return turned
