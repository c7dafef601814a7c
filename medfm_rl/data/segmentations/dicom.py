"""DICOM objects as masks: SEG by the names of its segments; structure sets are refused with a way out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from medfm_rl.data.dicom_pixels import DAMAGED
from medfm_rl.data.segmentations.segments import Segment, Segmentation
from medfm_rl.errors import DataError
from medfm_rl.types import Geometry

if TYPE_CHECKING:
    from highdicom.seg import Segmentation as DicomSegmentation

_RT_STRUCTURE_SET: Final = "1.2.840.10008.5.1.4.1.1.481.3"
_SEG: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation, and Label Map Segmentation."""
_LOSSY: Final = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.203",
)
"""Transfer syntaxes that need not give back what was stored: JPEG, near-lossless JPEG-LS, JPEG 2000."""
_INVALID: Final = DAMAGED
"""What highdicom and pydicom raise where an object is not as the standard wants it."""


def read_dicom_segmentation(path: Path) -> Segmentation | None:
    """Reads the segments of a DICOM SEG; None for an image, whose pixels are the labels.

    Raises:
        DataError: It is an RT structure set, compressed with loss, or not as the standard wants it.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError, *_INVALID) as error:
        raise DataError(f"{path}: cannot be read; the file is damaged, truncated or not what its name says") from error
    kind = str(header.get("SOPClassUID", ""))
    if kind == _RT_STRUCTURE_SET:
        raise DataError(
            f"{path}: is an RT structure set (RTSTRUCT), which holds contours and no pixels; write it as DICOM SEG or "
            "NIfTI on the grid of the image, with 3D Slicer or plastimatch for example"
        )
    syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
    if syntax in _LOSSY or str(header.get("LossyImageCompression", "")) == "01":
        raise DataError(
            f"{path}: the pixels are compressed with loss, which changes labels near every contour; write the mask "
            "again without, from the tool that made it"
        )
    if kind not in _SEG:
        return None
    from highdicom.seg import segread

    try:
        return _segmentation(path, segread(path))
    except _INVALID as error:
        lacking = error.name if isinstance(error, AttributeError) else None
        reason = f"it lacks {lacking}" if lacking else str(error).strip().split("\n")[0][:160]
        raise DataError(
            f"{path}: is a DICOM SEG that is not as the standard wants it ({reason}); write it again with 3D Slicer, "
            "dcmqi or highdicom, or convert it into NIfTI"
        ) from error


def _segmentation(path: Path, content: DicomSegmentation) -> Segmentation:
    grid = content.get_volume_geometry()
    segments = []
    for number in content.segment_numbers:
        values = _values(content, int(number), grid is not None)
        if not np.isin(values, (0, 1)).all():
            raise DataError(f"{path}: holds shares of pixels (a fractional SEG); save it as a binary one")
        label = str(content.get_segment_description(number).segment_label)
        segments.append(Segment(label, int(number), values == 1))
    if grid is None:
        return Segmentation(path, segments, None)
    # highdicom has the axes slice, row, column; ours are x, y, z, the other way round.
    spacing, direction = grid.spacing[::-1], np.asarray(grid.direction)[:, ::-1]
    geometry = Geometry(tuple(spacing), tuple(grid.position), tuple(direction.ravel().tolist()))
    return Segmentation(path, segments, geometry)


def _values(content: DicomSegmentation, number: int, in_space: bool) -> npt.NDArray[np.number]:
    """The pixels of a segment `(D, H, W)`."""
    if in_space:
        values: npt.NDArray[np.number] = content.get_volume(segment_numbers=[number]).array
        return values[..., 0]
    images = {uid for _, _, uid in content.get_source_image_uids()}
    if len(images) != 1:
        raise ValueError(f"its frames are no slices of one volume, and it is of {len(images)} images")
    found: npt.NDArray[np.number] = content.get_pixels_by_source_instance(
        list(images), segment_numbers=[number], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    return found[..., 0]
