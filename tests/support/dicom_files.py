"""Writes small DICOM files as scanners do, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
ULTRASOUND_CLIP = "1.2.840.10008.5.1.4.1.1.3.1"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def numbers(values: Any, digits: int = 9) -> list[str]:
    """Values as a header holds them."""
    return [f"{value:.{digits}g}" for value in values]


def item(**fields: Any) -> Dataset:
    """A data set of these fields."""
    made = Dataset()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    position: Any = None,
    orientation: Any = AXIAL,
    spacing: tuple[float, float] | None = (1.0, 1.0),
    series: str = "1.2.3.9",
    sop: str = CT,
    photometric: str = "MONOCHROME2",
    **fields: Any,
) -> Path:
    """Writes `(H, W)`, `(H, W, 3)`, or frames of these; `spacing` is that of columns and rows. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, sop
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = sop, meta.MediaStorageSOPInstanceUID
    made.SeriesInstanceUID, made.Modality = series, "CT" if sop == CT else "US"
    colours = 3 if photometric in ("RGB", "YBR_FULL", "YBR_FULL_422") else 1
    axes = pixels.ndim - (colours > 1)
    if position is not None:
        made.ImagePositionPatient, made.ImageOrientationPatient = numbers(position), numbers(orientation)
    if spacing is not None:
        made.PixelSpacing = numbers(reversed(spacing))
    if axes == 3:
        made.NumberOfFrames = len(pixels)
    made.Rows, made.Columns = pixels.shape[axes - 2 : axes]
    made.SamplesPerPixel, made.PhotometricInterpretation = colours, photometric
    if colours > 1:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in fields.items():
        setattr(made, name, value)
    made.HighBit = made.BitsStored - 1
    content = pixels.tobytes()
    made.PixelData = content + b"\0" * (len(content) % 2)
    pydicom.dcmwrite(path, made, enforce_file_format=True)
    return path


def edit_dicom(path: Path, **fields: Any) -> None:
    """Sets fields of a file."""
    made = pydicom.dcmread(path)
    for name, value in fields.items():
        setattr(made, name, value)
    made.save_as(path)
