"""What the pixels of a DICOM file mean: stored values, rescaled slice by slice, and colours as RGB."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.errors import BytesLengthException
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import pixel_array

from medfm_rl.errors import DataError
from medfm_rl.types import FloatArray

_Array = npt.NDArray[np.float64]
_MEASURED = ("CT", "PT")
"""Modalities whose rescaled values are of a unit even where the header names none."""
DAMAGED = (
    *(AttributeError, ValueError, RuntimeError, LookupError, TypeError, ArithmeticError, EOFError, MemoryError),
    *(AssertionError, BytesLengthException, struct.error, zlib.error),
)
"""What pydicom and its decoders raise where a file is damaged or described in contradiction; and OSError."""
_UNREADABLE = (*DAMAGED, OSError)


def read_values(dataset: Dataset, path: Path, frame: int | None = None) -> FloatArray:
    """All frames of a file as `(F, C, H, W)`, in the units of the file, or one of them alone, `(1, C, H, W)`.

    A picture that is stored as its negative (MONOCHROME1) is turned round, unless its values are measured: a number in
    Hounsfield units says the same however it is shown.

    Args:
        dataset: The file with its pixels.
        path: Its name, for the message.
        frame: The frame, counted from 0; None for all.

    Raises:
        DataError: The pixels cannot be decoded.
    """
    try:
        stored = pixel_array(dataset, index=frame)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            stored = _as_8_bits(apply_color_lut(stored, dataset))
        channels = (
            stored.shape[-1] if dataset.SamplesPerPixel > 1 or "PALETTE" in dataset.PhotometricInterpretation else 1
        )
        values = stored.reshape(-1, dataset.Rows, dataset.Columns, channels).astype(np.float64)
        if channels == 1:
            values = _in_units(values, dataset, frame)
    except _UNREADABLE as error:
        found = "; ".join(line.strip() for line in str(error).splitlines())
        raise DataError(
            f"{path}: its pixels cannot be read ({found}); the file is damaged, truncated or compressed in a way that "
            "is not known here. Export it uncompressed"
        ) from error
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(np.moveaxis(values, -1, 1), dtype=np.float32)


def _as_8_bits(colours: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return colours if colours.dtype.itemsize == 1 else np.right_shift(colours, 8)


def _in_units(values: _Array, dataset: Dataset, frame: int | None) -> _Array:
    """Applies the modality LUT, or the slope and intercept of each frame (PS3.3 C.11.1), and turns negatives round."""
    count = len(values) if frame is None else int(dataset.get("NumberOfFrames") or 1)
    rescales = _rescales(dataset, count)[slice(None) if frame is None else slice(frame, frame + 1)]
    if dataset.PhotometricInterpretation == "MONOCHROME1" and not _is_measured(dataset, rescales):
        values = _turned_round(values, dataset)
    if "ModalityLUTSequence" in dataset:
        return apply_modality_lut(values.astype(np.int64), dataset).astype(np.float64)
    for index, rescale in enumerate(rescales):
        if rescale is not None:
            slope, intercept = _stated(rescale, "RescaleSlope"), _stated(rescale, "RescaleIntercept")
            values[index] = values[index] * (1.0 if slope is None else slope) + (intercept or 0.0)
    return values


def _rescales(dataset: Dataset, frames: int) -> list[Dataset | None]:
    """What holds slope and intercept of each frame; None where nothing does."""
    if any(_stated(dataset, name) is not None for name in ("RescaleSlope", "RescaleIntercept")):
        return [dataset] * frames
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * frames
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    found = [
        group.get("PixelValueTransformationSequence") or shared.get("PixelValueTransformationSequence") or [None]
        for group in per_frame
    ]
    return [sequence[0] for sequence in found]


def _stated(rescale: Dataset, name: str) -> float | None:
    """A number of a header; None where it is missing or, as archives leave it, empty."""
    value = rescale.get(name)
    return None if value is None or value == "" else float(value)


def _is_measured(dataset: Dataset, rescales: list[Dataset | None]) -> bool:
    """Whether rescaled values are of a physical unit; "US" stands for unspecified."""
    if not rescales or rescales[0] is None:
        return False
    unit = rescales[0].get("RescaleType")
    return dataset.get("Modality") in _MEASURED if unit in (None, "") else unit != "US"


def _turned_round(values: _Array, dataset: Dataset) -> _Array:
    bits = int(dataset.BitsStored)
    if "PixelData" not in dataset:
        return -values
    # The least value that can be stored becomes the largest.
    return (-1 if dataset.PixelRepresentation else 2**bits - 1) - values
