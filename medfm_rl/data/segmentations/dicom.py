"""DICOM objects as masks: SEG by the names of its segments; structure sets are refused with a way out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from pydicom.errors import InvalidDicomError

from medfm_rl.data.dicom import SEGMENTATIONS, read_header
from medfm_rl.data.dicom_pixels import DAMAGED
from medfm_rl.data.files import cannot_be_read
from medfm_rl.data.segmentations.segments import Segment, Segmentation
from medfm_rl.errors import DataError
from medfm_rl.types import Geometry

if TYPE_CHECKING:
    from highdicom.seg import Segmentation as DicomSegmentation

_RT_STRUCTURE_SET: Final = "1.2.840.10008.5.1.4.1.1.481.3"
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
_MOST_NAMED = 5
"""Files of a folder that are named."""


def read_dicom_segmentation(path: Path) -> Segmentation | None:
    """Reads the segments of a DICOM SEG; None for images, whose pixels are the labels.

    Args:
        path: The file, or a folder, in which the SEG may lie beside others.

    Raises:
        DataError: It is an RT structure set, compressed with loss, or not as the standard wants it; or the folder holds
            several SEG.
    """
    found = [file for file in _objects(path) if _is_segmentation(file)]
    if len(found) > 1:
        raise DataError(
            f"{path}: holds {len(found)} DICOM SEG ({', '.join(file.name for file in found[:_MOST_NAMED])}"
            f"{', ...' if len(found) > _MOST_NAMED else ''}), and a mask is one file with all structures; join "
            "them, or leave out the others"
        )
    if not found:
        return None
    from highdicom.seg import segread

    file = found[0]
    try:
        return _segmentation(file, segread(file))
    except _INVALID as error:
        lacking = error.name if isinstance(error, AttributeError) else None
        reason = f"it lacks {lacking}" if lacking else str(error).strip().split("\n")[0][:160]
        raise DataError(
            f"{file}: is a DICOM SEG that is not as the standard wants it ({reason}); write it again with 3D Slicer, "
            "dcmqi or highdicom, or convert it into NIfTI"
        ) from error


def _objects(path: Path) -> list[Path]:
    """The file, or those in a folder that may be DICOM."""
    if not path.is_dir():
        return [path]
    try:
        return [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
    except OSError as error:
        raise cannot_be_read(path, error) from error


def _is_segmentation(file: Path) -> bool:
    """Whether a file is a SEG, and not an image or of another format.

    Raises:
        DataError: It is an RT structure set or compressed with loss, or cannot be read.
    """
    try:
        header = read_header(file, stop_before_pixels=True)
    except InvalidDicomError:
        return False
    kind = str(header.get("SOPClassUID", ""))
    if kind == _RT_STRUCTURE_SET:
        raise DataError(
            f"{file}: is an RT structure set (RTSTRUCT), which holds contours and no pixels; write it as DICOM SEG or "
            "NIfTI on the grid of the image, with 3D Slicer or plastimatch for example"
        )
    syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
    if syntax in _LOSSY or str(header.get("LossyImageCompression", "")) == "01":
        raise DataError(
            f"{file}: the pixels are compressed with loss, which changes labels near every contour; write the mask "
            "again without, from the tool that made it"
        )
    return kind in SEGMENTATIONS


def _segmentation(path: Path, content: DicomSegmentation) -> Segmentation:
    # highdicom finds the frames of a segment by them.
    if not content.get("DimensionIndexSequence"):
        raise ValueError("it lacks DimensionIndexSequence")
    grid = content.get_volume_geometry()
    segments = []
    for number in content.segment_numbers:
        values = _values(content, int(number), grid is not None)
        if not np.isin(values, (0, 1)).all():
            raise DataError(f"{path}: holds shares of pixels (a fractional SEG); save it as a binary one")
        label = str(content.get_segment_description(number).segment_label)
        segments.append(Segment.of(label, int(number), values == 1))
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
