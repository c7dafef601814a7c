"""Facts of one case: small enough to be kept of every case of a data set, while its pixels are let go."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydantic import TypeAdapter

from medfm_rl.data.layouts import CaseFile
from medfm_rl.structures import pixels_of
from medfm_rl.types import BACKGROUND, Case, FloatArray, Geometry, IntArray, LabelSchema

_SAMPLED = 1_000_000
"""Pixels of a channel from which percentiles are taken: those of more do not differ."""
MOST_VALUES = 16
"""Different values up to which they are counted: images have more."""


@dataclass(frozen=True)
class Values:
    """The values of one channel.

    Attributes:
        least: The smallest.
        low: 1st percentile.
        middle: Median.
        high: 99th percentile.
        most: The largest.
        different: How many different values there are; None for more than `MOST_VALUES`.
    """

    least: float
    low: float
    middle: float
    high: float
    most: float
    different: int | None


@dataclass(frozen=True)
class ImageFacts:
    """What an image is.

    Attributes:
        size: Pixels along x, y and, in 3-D, z: the order of ITK and of the file formats.
        spacing: Distance of pixels in mm in the same order, or None where no file says it.
        orientation: Where x, y and z run in the body, such as LPS: towards left, posterior and superior. None for an
            image without a place in space.
        values: Of each channel.
        grey: Whether there are several channels that are all equal.
        content: SHA-256 of size and pixels, whatever file they came from.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...] | None
    orientation: str | None
    values: tuple[Values, ...]
    grey: bool
    content: str

    @property
    def channels(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class MaskFacts:
    """What a mask holds.

    Attributes:
        pixels: How many pixels each structure has that is there, by its name, or `label N` where nothing names it.
        unnamed: Those of them that nothing names.
        known: All names that the mask could hold, by the description or the segmenter; empty where nothing says so.
        content: SHA-256 of size and labels.
    """

    pixels: Mapping[str, int]
    unnamed: tuple[str, ...]
    known: tuple[str, ...]
    content: str


@dataclass(frozen=True)
class CaseFacts:
    """One case of a data set.

    Attributes:
        case_id: Its name.
        patient_id: Its patient.
        images: Its files, from the folder of the data set.
        mask_file: Its mask, where it has one.
        image: What the image is; None where it could not be read.
        mask: What the mask holds; None where there is none or it could not be read.
        problems: Why the case cannot be used, as the commands would say it; none where it can.
        notices: What a person should know of its files.
    """

    case_id: str
    patient_id: str
    images: tuple[str, ...] = ()
    mask_file: str | None = None
    image: ImageFacts | None = None
    mask: MaskFacts | None = None
    problems: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


_IMAGE: TypeAdapter[ImageFacts | None] = TypeAdapter(ImageFacts | None)
_MASK: TypeAdapter[MaskFacts | None] = TypeAdapter(MaskFacts | None)


def case_facts(file: CaseFile, image: ImageFacts, mask: MaskFacts | None = None) -> CaseFacts:
    """The facts of a case that can be used; its mask has no part in them where it was not read."""
    mask_file = None if mask is None or file.label_path is None else str(file.label_path)
    return CaseFacts(file.case_id, file.patient_id, tuple(map(str, file.image_paths)), mask_file, image, mask)


def record_of_facts(facts: CaseFacts) -> dict[str, Any]:
    """What the facts of a case that can be used say of its files, as JSON values."""
    return {"image": _IMAGE.dump_python(facts.image, mode="json"), "mask": _MASK.dump_python(facts.mask, mode="json")}


def facts_of_record(file: CaseFile, record: Mapping[str, Any]) -> CaseFacts:
    """The facts of a case of which `record_of_facts` gave what its files hold.

    Raises:
        ValueError: It is no such record.
    """
    image, mask = _IMAGE.validate_python(record["image"]), _MASK.validate_python(record["mask"])
    return CaseFacts(file.case_id, file.patient_id, tuple(map(str, file.image_paths)), None, image, mask)


def image_facts(case: Case) -> ImageFacts:
    """The facts of an image that is in memory."""
    geometry = case.geometry
    return ImageFacts(
        tuple(reversed(case.shape)),
        geometry.spacing,
        _orientation(geometry),
        tuple(_values(channel) for channel in case.image),
        len(case.image) > 1 and bool((case.image == case.image[:1]).all()),
        _content(case.image),
    )


def mask_facts(labels: IntArray, names: Mapping[int, str]) -> MaskFacts:
    """The facts of a mask.

    Args:
        labels: Integers from 0 to 255, `(*S)`.
        names: What they stand for, the background among them; those without a name are shown by their number.
    """
    background = next(label for label, name in names.items() if name == BACKGROUND)
    counts = np.bincount(labels.ravel(), minlength=1)
    present = [int(label) for label in np.flatnonzero(counts) if label != background]
    shown = {label: names.get(label, f"label {label}") for label in present}
    return MaskFacts(
        {shown[label]: int(counts[label]) for label in present},
        tuple(shown[label] for label in present if label not in names),
        tuple(name for label, name in names.items() if label != background),
        _content(labels.astype(np.uint8)),
    )


def facts_by_schema(labels: IntArray, schema: LabelSchema) -> MaskFacts:
    """The facts of a mask of class indices `(*S)`; a pixel of several structures counts for each of them."""
    if not schema.overlaps:
        return mask_facts(labels, dict(enumerate(schema.names)))
    sizes = {name: int(pixels_of(labels, schema.classes_of(name)).sum()) for name in schema.structures}
    return MaskFacts({name: size for name, size in sizes.items() if size}, (), schema.structures, _content(labels))


def _orientation(geometry: Geometry) -> str | None:
    grid = geometry.volume or geometry
    if grid.ndim != 3 or grid.spacing is None:
        return None
    found: str = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(grid.direction)
    return found


def _values(channel: FloatArray) -> Values:
    sample = _sample(channel)
    low, middle, high = (float(value) for value in np.percentile(sample, [1, 50, 99]))
    # What a share of the pixels shows in too many values is so of all; a few values have to be so everywhere.
    different = _different(sample)
    if different is not None and sample.size < channel.size:
        different = _different(channel)
    return Values(float(channel.min()), low, middle, high, float(channel.max()), different)


def _sample(channel: FloatArray) -> npt.NDArray[np.float32]:
    """Pixels at equal steps, which do not go along an axis."""
    step = max(1, -(-channel.size // _SAMPLED))
    while step > 1 and any(math.gcd(step, side) > 1 for side in channel.shape):
        step += 1
    return channel.ravel()[::step]


def _different(values: FloatArray) -> int | None:
    # Most images are told by few of their pixels, and sorting all of a volume takes seconds.
    if len(np.unique(values.ravel()[:: max(1, values.size // 4096)])) > MOST_VALUES:
        return None
    count = len(np.unique(values))
    return count if count <= MOST_VALUES else None


def _content(array: npt.NDArray[np.generic]) -> str:
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
