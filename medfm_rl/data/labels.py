"""Masks: the structure of every pixel, however a file stores it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from medfm_rl.data.clips.sequences import find_sequence, read_sequence
from medfm_rl.data.images import image_suffix, is_dicom, read_pixels
from medfm_rl.data.nifti import NIFTI_SUFFIXES, step_of_values
from medfm_rl.data.notices import warn_once
from medfm_rl.data.segmentations.dicom import read_dicom_segmentation
from medfm_rl.data.segmentations.pictures import is_picture, only_value, readings_of_picture, refuse_lossy_picture
from medfm_rl.data.segmentations.segments import Segmentation
from medfm_rl.data.segmentations.slicer import read_slicer_segmentation
from medfm_rl.data.text_headers import require_sound_header
from medfm_rl.errors import DataError
from medfm_rl.types import (
    BACKGROUND,
    IGNORED,
    NOTICEABLE_SHIFT,
    FloatArray,
    Geometry,
    IntArray,
    LabelMap,
    LabelSchema,
    where_said,
)

_LARGEST: Final = 255
_ROUNDING: Final = 1e-4
"""Distance from an integer that comes of arithmetic with real numbers, and of no interpolation."""


def read_labels(
    path: Path,
    schema: LabelSchema,
    image_shape: tuple[int, ...],
    geometry: Geometry,
    in_file: LabelSchema | None = None,
    frame: int | None = None,
    may_ignore: bool = False,
    frames: int | None = None,
) -> LabelMap:
    """Reads the mask of an image as class indices `(*S)`.

    Files that name their segments (DICOM SEG, 3D Slicer) are read by the names, without `in_file`.

    Args:
        path: The mask.
        schema: Structures that the class indices stand for.
        image_shape: Size of the image that the mask belongs to, `(*S)`.
        geometry: Geometry of that image.
        in_file: The meaning of the integers in the file, where others stand there than `schema` says; its structures
            are some of those of `schema`.
        frame: Place of the image in its clip, where it is a frame: the mask may be that of the frame, or a sequence of
            masks of all frames, of which this one is taken.
        may_ignore: Whether the caller leaves out pixels of which nothing is said; they have the class index `IGNORED`.
        frames: How many frames the clip has, which a sequence has to have too; None where it is not known.

    Raises:
        DataError: The file cannot be read, is compressed with loss, lies on another grid, or holds labels that the
            schema does not know; or there are pixels of which nothing is said, and may not be.
    """
    own = schema if in_file is None else in_file
    sequence = None if frame is None else _frame_of_sequence(path, frame, image_shape, geometry, frames)
    if sequence is not None:
        return _classes_in(schema, own, sequence, path, may_ignore)
    segmentation = _read_segmentation(path)
    if segmentation is not None:
        by_number = in_file is not None
        if own.overlaps:
            indices = segmentation.overlapping_classes(own, image_shape, geometry, by_number)
        else:
            ids = segmentation.label_ids(own, image_shape, geometry, by_number)
            indices = own.to_indices(ids, str(path))
    else:
        return _classes_in(schema, own, _read_integers(path, own, image_shape, geometry), path, may_ignore)
    return own.indices_in(schema)[indices]


def _classes_in(schema: LabelSchema, own: LabelSchema, ids: IntArray, path: Path, may_ignore: bool) -> LabelMap:
    """Class indices in a schema of integers that mean what another one says.

    Raises:
        DataError: There are others, or nothing is said of some pixels and something has to be.
    """
    indices = own.to_known_indices(ids, str(path))
    unsaid = indices == IGNORED if own.ignored is not None else None
    if unsaid is None or not unsaid.any():
        return own.indices_in(schema)[indices]
    if not may_ignore:
        raise DataError(
            f"{path}: has pixels of the label `ignore` ({own.ignored}), of which nothing is said, and here every pixel "
            "counts; give masks without it. `adapt` (source and evaluation), `train-source` and `evaluate` leave such "
            "pixels out"
        )
    found = own.indices_in(schema)[where_said(indices)]
    found[unsaid] = IGNORED
    return found


def read_label_ids(
    path: Path,
    schema: LabelSchema,
    image_shape: tuple[int, ...],
    geometry: Geometry,
    frame: int | None = None,
    frames: int | None = None,
) -> IntArray:
    """Reads the mask of an image as the integers of a schema, `(*S)`; there may be others, which stand for nothing.

    Args:
        path: The mask.
        schema: Structures that the integers stand for, where the file names its segments.
        image_shape: Size of the image, `(*S)`.
        geometry: Its geometry.
        frame: Place in the sequence of masks that the file holds; None where it holds the mask of one image.
        frames: How many masks such a sequence has to hold; None: nobody knows.

    Raises:
        DataError: The file cannot be read, is compressed with loss, lies on another grid, or does not hold integers; or
            it is no sequence, or one of another length, and a frame is asked for.
    """
    if frame is not None:
        sequence = _frame_of_sequence(path, frame, image_shape, geometry, frames)
        if sequence is None:
            raise DataError(
                f"{path}: has the name of a clip and is no sequence of masks; write X x Y x 1 x T, as predict does, or "
                "a mask for each frame"
            )
        return sequence
    segmentation = _read_segmentation(path)
    if segmentation is not None:
        return segmentation.label_ids(schema, image_shape, geometry, ignore_others=True)
    return _read_integers(path, schema, image_shape, geometry)


@dataclass(frozen=True, eq=False)
class FoundLabels:
    """What a mask holds, read without a segmenter.

    Attributes:
        ids: The integers `(*S)`, 0 to 255.
        names: The name of each integer, the background's among them, as far as it has one.
        schema: Where the integers are class indices, the structures that they are of.
    """

    ids: IntArray
    names: Mapping[int, str]
    schema: LabelSchema | None = None

    @classmethod
    def of(cls, labels: LabelMap, schema: LabelSchema) -> FoundLabels:
        """Those of class indices `(*S)`."""
        return cls(labels, dict(enumerate(schema.class_names)), schema)


def read_any_labels(
    path: Path,
    image_shape: tuple[int, ...],
    geometry: Geometry,
    in_file: LabelSchema | None = None,
    frame: int | None = None,
    frames: int | None = None,
) -> FoundLabels:
    """Reads the mask of an image where no segmenter says which structures to look for.

    Args:
        path: The mask.
        image_shape: Size of the image, `(*S)`.
        geometry: Its geometry.
        in_file: The meaning of the integers, where a description says it; then the mask may hold no others.
        frame: As in `read_labels`.
        frames: Likewise.

    Raises:
        DataError: As in `read_labels`, or there are integers that no structure can have.
    """
    sequence = None if frame is None else _frame_of_sequence(path, frame, image_shape, geometry, frames)
    own, segmentation = in_file, None if sequence is not None else _read_segmentation(path)
    if sequence is not None:
        ids = sequence
    elif segmentation is not None:
        own = in_file or segmentation.own_schema()
        ids = segmentation.label_ids(own, image_shape, geometry, by_number=in_file is not None)
    else:
        ids = _read_integers(path, in_file, image_shape, geometry)
    if own is not None:
        indices = where_said(own.to_known_indices(ids, str(path)))
        if own.overlaps:
            return FoundLabels.of(indices, own)
        return FoundLabels(
            ids if own.ignored is None else np.where(ids == own.ignored, own.ids[0], ids),
            {number: name for name, number in own.integers.items()},
        )
    outside = np.unique(ids[(ids < 0) | (ids > _LARGEST)])
    if len(outside):
        raise DataError(
            f"{path}: holds {outside[0]}{f' and {len(outside) - 1} more values' if len(outside) > 1 else ''} beyond "
            f"the 0 to {_LARGEST} that labels have; is this an image, and not a mask?"
        )
    return FoundLabels(ids, {0: BACKGROUND})


def list_labels(path: Path) -> dict[int, str]:
    """The integers in a mask, with the names that the file itself has for them; "" where it has none.

    Raises:
        DataError: The file cannot be read, is compressed with loss, or does not hold integers.
    """
    segmentation = _read_segmentation(path)
    if segmentation is not None:
        return {segment.number: segment.name for segment in segmentation.segments}
    if is_picture(path):
        refuse_lossy_picture(path)
    readings = readings_of_picture(path)
    if readings is None:
        # Planes over time need not be told from planes of a volume to count integers.
        over_time = find_sequence(path, planes_over_time=False) is not None
        readings = [_as_stored(path, read_sequence(path)[0].swapaxes(0, 1) if over_time else read_pixels(path)[0])]
    return {int(value): "" for value in np.unique(readings[0])}


def as_label_ids(values: npt.ArrayLike, origin: str, step: float = 0.0) -> IntArray:
    """The values of a mask as integers, of its shape.

    Args:
        values: Of any type.
        origin: Where they come from, for the message.
        step: Difference of two values that can be stored, where a file scales integers: a label is then off by up to
            half of it.

    Raises:
        DataError: Not all of them are integers.
    """
    found = np.asarray(values)
    if found.dtype == bool:
        return found.astype(np.int64)
    if not np.isfinite(found).all():
        raise DataError(f"{origin}: a mask holds integers, this one NaN or infinity too")
    with np.errstate(invalid="ignore"):
        # What no integer holds becomes another number, and is refused as that.
        integers: IntArray = np.round(found).astype(np.int64)
    # From a step of 1 on, other integers are nearer than what was meant.
    tolerance = _ROUNDING + (0.5 * step if step < 1 else 0.0)
    if (abs(found - integers) > tolerance).any():
        raise DataError(f"{origin}: a mask holds integers, this one does not; was it interpolated?")
    return integers


def hash_labels(labels: LabelMap) -> str:
    """SHA-256 of a mask's shape and class indices, whatever file it came from."""
    digest = hashlib.sha256(repr(labels.shape).encode())
    digest.update(np.ascontiguousarray(labels, dtype=np.uint8).tobytes())
    return digest.hexdigest()


def _read_segmentation(path: Path) -> Segmentation | None:
    """The segments of a file that names them; None where it holds integers alone.

    Raises:
        DataError: It cannot be read, or is a structure set or compressed with loss.
    """
    if path.is_dir():
        return read_dicom_segmentation(path)
    match path.is_file() and image_suffix(path):
        case ".dcm":
            return read_dicom_segmentation(path)
        case None if is_dicom(path):
            return read_dicom_segmentation(path)
        case ".seg.nrrd" | ".nrrd" | ".nhdr":
            require_sound_header(path)
            return read_slicer_segmentation(path)
        case _:
            return None


def _read_integers(
    path: Path, schema: LabelSchema | None, image_shape: tuple[int, ...], geometry: Geometry
) -> IntArray:
    """The integers in a file; where it can be read in two ways, in the one that has the integers of the schema."""
    if is_picture(path):
        refuse_lossy_picture(path)
    readings = readings_of_picture(path)
    if readings is not None:
        _require_size(path, readings[0].shape, image_shape)
        return readings[0] if schema is None else _fitting(readings, schema, path)
    pixels, own = read_pixels(path)
    _require_size(path, pixels.shape[1:], image_shape)
    _require_place(path, own, image_shape, geometry)
    return _as_stored(path, pixels)


def _require_place(path: Path, own: Geometry, image_shape: tuple[int, ...], geometry: Geometry) -> None:
    """Raises DataError where a mask lies elsewhere than its image; a warning says where it lies a little beside it."""
    if not own.matches(geometry, image_shape):
        ours, theirs = (own.volume, geometry.volume) if own.volume and geometry.volume else (own, geometry)
        raise DataError(
            f"{path}: the mask lies elsewhere in space than its image (spacing {ours.spacing} and {theirs.spacing}, "
            f"origin {ours.origin} and {theirs.origin}, direction {ours.direction} and {theirs.direction}); resample "
            "one onto the other or, where only the header is wrong and pixel by pixel it lies on its image, copy that "
            "of the image (CopyInformation of SimpleITK)"
        )
    if (shift := own.shift(geometry, image_shape)) > NOTICEABLE_SHIFT:
        warn_once(f"{path}: lies {shift:.2g} of a pixel beside its image by its header, and is taken to lie on it")


@lru_cache(maxsize=1)
def _sequence(path: Path, changed: int) -> tuple[FloatArray, Geometry] | None:
    """Masks of all frames and the grid of one, kept for the next frame unless the file has `changed`."""
    del changed
    if find_sequence(path, planes_over_time=True) is None:
        return None
    values, _, geometry = read_sequence(path)
    return values, geometry


def _frame_of_sequence(
    path: Path, frame: int, image_shape: tuple[int, ...], geometry: Geometry, frames: int | None
) -> IntArray | None:
    """The integers of one frame in a sequence of masks; None where the file is no sequence.

    Raises:
        DataError: It has another number of frames than the clip, or they are of another size or spacing than the image,
            or lie elsewhere.
    """
    found = _sequence(path, path.stat().st_mtime_ns) if path.is_file() else None
    if found is None:
        return None
    values, own = found
    if frame >= len(values):
        raise DataError(f"{path}: has masks of {len(values)} frames, and none of frame {frame} (counted from 0)")
    if frames is not None and len(values) != frames:
        raise DataError(
            f"{path}: has masks of {len(values)} frames, and its clip has {frames}; which mask is of which frame is "
            "anybody's guess, so write one for each, in their order"
        )
    _require_size(path, values.shape[2:], image_shape)
    if own.spacing and geometry.spacing and not np.allclose(own.spacing, geometry.spacing, rtol=NOTICEABLE_SHIFT):
        raise DataError(
            f"{path}: its pixels are {own.spacing} mm, and those of its clip {geometry.spacing} mm; they must be equal"
        )
    _require_place(path, own, image_shape, geometry)
    return _as_stored(path, values[frame])


def _as_stored(path: Path, pixels: npt.NDArray[np.generic]) -> IntArray:
    """Integers of the pixels of a file, as near as it can store them."""
    step = step_of_values(path) if image_suffix(path) in NIFTI_SUFFIXES else 0.0
    return as_label_ids(only_value(pixels, path), str(path), step)


def _require_size(path: Path, shape: tuple[int, ...], image_shape: tuple[int, ...]) -> None:
    if shape != image_shape:
        raise DataError(f"{path}: the mask has size {shape}, its image {image_shape}; they must be equal")


def _fitting(readings: Sequence[IntArray], schema: LabelSchema, path: Path) -> IntArray:
    """The reading of a mask that has the integers of a schema alone; the first where none has.

    Raises:
        DataError: Two have, and differ.
    """
    known = [*schema.labels, *([] if schema.ignored is None else [schema.ignored])]
    fitting = [reading for reading in readings if np.isin(reading, known).all()]
    if len(fitting) > 1 and not all(np.array_equal(fitting[0], other) for other in fitting[1:]):
        raise DataError(
            f"{path}: its pixels can be the labels {np.unique(fitting[0]).tolist()} or "
            f"{np.unique(fitting[1]).tolist()}, and both are labels here; write the mask again with 8 bits a pixel and "
            "no palette"
        )
    return fitting[0] if fitting else readings[0]
