"""Which part of a frame of ultrasound shows tissue in two dimensions, how large its pixels are, and what is colour.

A scanner burns text, an ECG and colour bars into the frame, and says by regions (PS3.3 C.8.5.5) what lies where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from medfm_rl.data.dicom_spacing import Spacing, reaches_beyond, region_spacing
from medfm_rl.data.notices import collected_notices, warn_once
from medfm_rl.errors import DataError
from medfm_rl.types import FloatArray, Geometry

_TWO_DIMENSIONAL, _TISSUE, _COLOUR_FLOW = 1, 1, 2
"""Values of Region Spatial Format and Region Data Type (PS3.3 C.8.5.5)."""
_SMALLEST = 16
"""Pixels along a side of a region that can show anything."""
_ALIKE, _APART = 0.8, 0.1
"""Two pictures in one frame: as large as each other by this much of the larger, with this much in common at most."""
_COLOURED = 32
"""Difference of the channels of 8 bits that is a colour: compression with loss leaves up to half of that in greys."""
_DARK = 48
"""Values below which no tint shows."""
_NEARLY_ALL = 0.9
"""Share of a picture that its region has to be for what lies around it not to matter."""
_FEW, _MOST = 0.005, 0.9
"""Share of coloured pixels up to which they are marks and letters; share of bright ones from which on it is a tint."""
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in what the eye sees as grey (ITU-R BT.601)."""


@dataclass(frozen=True)
class Region:
    """A box of a frame.

    Attributes:
        box: Rows and columns, as slices.
        spacing: Distance of columns and of rows in mm, or None where it is unknown.
        flow: Boxes within the frame that the header calls colour flow.
    """

    box: tuple[slice, slice]
    spacing: Spacing | None
    flow: tuple[tuple[slice, slice], ...] = ()

    @property
    def geometry(self) -> Geometry:
        """The grid of the box in the plane of the whole frame, whose first pixel is the origin."""
        rows, columns = self.box
        x, y = self.spacing or (1.0, 1.0)
        return Geometry(self.spacing, (columns.start * x, rows.start * y), (1.0, 0.0, 0.0, 1.0))


def tissue_region(header: Dataset, path: Path) -> Region:
    """The largest region of tissue in two dimensions; the whole frame with unknown spacing where there is none.

    A region that exceeds the frame along one axis is of a frame that was cut, and is cut with it. One that exceeds it
    along both is of a frame that was shrunk by nobody knows how much: the whole frame is taken, and its spacing is
    unknown.

    Raises:
        DataError: The frame shows several views side by side, or no tissue in two dimensions though it has regions.
    """
    size = int(header.Rows), int(header.Columns)
    whole = slice(0, size[0]), slice(0, size[1])
    regions = list(header.get("SequenceOfUltrasoundRegions") or [])
    planes = [item for item in regions if item.get("RegionSpatialFormat") == _TWO_DIMENSIONAL]
    tissue = [item for item in planes if item.get("RegionDataType") == _TISSUE]
    flow = tuple(
        cut for item in planes if item.get("RegionDataType") == _COLOUR_FLOW and (cut := _cut(_box(item, path), size))
    )
    # Colour is drawn on tissue, and some scanners name the box of the colour alone.
    chosen = tissue or [item for item in planes if item.get("RegionDataType") == _COLOUR_FLOW]
    if not chosen:
        if regions:
            raise DataError(
                f"{path}: none of its {len(regions)} ultrasound regions is tissue in two dimensions (they are M mode, "
                "spectra, curves or graphics); leave it out"
            )
        return Region(whole, None)
    chosen = sorted(chosen, key=lambda item: _area(_box(item, path)), reverse=True)
    boxes = [_box(item, path) for item in chosen]
    _refuse_several(path, boxes)
    beyond = [reaches_beyond(box.start, box.stop - 1, side) for box, side in zip(boxes[0], size, strict=True)]
    if all(beyond):
        warn_once(
            f"{path}: its ultrasound region reaches to column {boxes[0][1].stop - 1} and row {boxes[0][0].stop - 1} of "
            f"a frame of {size[1]} x {size[0]}: the frame was shrunk after the region was written. The whole frame is "
            "taken, and its spacing is unknown"
        )
        return Region(whole, None, flow)
    cut = _cut(boxes[0], size)
    if cut is None:
        raise DataError(f"{path}: its ultrasound region {_words(boxes[0])} holds no picture; correct it, or remove it")
    return Region(cut, region_spacing(chosen[0], path), flow)


def warn_of_surroundings(header: Dataset, path: Path) -> None:
    """Says of a still of ultrasound that letters and curves around the tissue are seen with it.

    A still is taken whole, for its mask lies on the whole of it; the frames of a clip are cut to their region.
    """
    try:
        with collected_notices():
            region = tissue_region(header, path)
    except DataError:
        # What it is a picture of is not asked of a still.
        return
    size = int(header.Rows), int(header.Columns)
    whole = (slice(0, size[0]), slice(0, size[1]))
    share = _area(region.box) / _area(whole)
    if share < _NEARLY_ALL:
        warn_once(
            f"{path}: its region of tissue, {_words(region.box)}, is {100 * share:.0f} % of the picture, and letters "
            "and curves around it go to the network too, for a single image is taken whole; crop image and mask to it "
            "(the frames of a clip are cropped)"
        )


def grey_of(frame: npt.NDArray[np.generic], region: Region, where: str) -> FloatArray:
    """Grey values `(1, H, W)` of the region of a frame in colour coding, `(3, H, W)` of 8 bits.

    Equal channels, those that differ by what compression with loss does to greys, and a tint of everything are grey;
    so are letters and marks of up to half a percent of the pixels.

    Raises:
        DataError: A part of the picture is in colours: colour Doppler, or no picture of ultrasound.
    """
    _refuse_colours(frame, region, where)
    cut = np.asarray(frame[:, region.box[0], region.box[1]], dtype=np.float32)
    if (cut[0] == cut[1]).all() and (cut[0] == cut[2]).all():
        return cut[:1]
    grey: FloatArray = np.tensordot(_LUMA, cut, axes=1)[None]
    return grey


def _refuse_colours(frame: npt.NDArray[np.generic], region: Region, where: str) -> None:
    """Raises DataError where a part of the region of a frame `(3, H, W)` of 8 bits is in colours, as Doppler is."""
    for box in region.flow:
        if _share_of_colours(frame[:, box[0], box[1]]) > _FEW:
            raise DataError(
                f"{where}: shows colour Doppler, in the region {_words(box)} by its header, and colours hide the "
                "tissue; give a clip without it"
            )
    cut = frame[:, region.box[0], region.box[1]]
    share = _share_of_colours(cut)
    if share <= _FEW or _is_tint(cut):
        return
    raise DataError(
        f"{where}: {100 * share:.1f} % of its pixels are coloured and the others grey: colour Doppler, or another "
        "overlay on the tissue; give a clip without it"
    )


def _share_of_colours(frame: npt.NDArray[np.generic]) -> float:
    return float((np.ptp(np.asarray(frame, dtype=np.float32), axis=0) > _COLOURED).mean())


def _is_tint(frame: npt.NDArray[np.generic]) -> bool:
    """Whether a frame is all of one colour, as sepia is: its bright pixels, but for white, have the hue of the most."""
    values = np.asarray(frame, dtype=np.float32).reshape(3, -1)
    largest, spread = values.max(axis=0), np.ptp(values, axis=0)
    middle = (largest > _DARK) & (values.min(axis=0) < 224)
    if not middle.any():
        return False
    # The order of the channels tells hues apart by sixths of the circle.
    coloured = values[:, middle & (spread > _COLOURED / 4)]
    orders = np.argsort(coloured, axis=0, kind="stable")
    _, counts = np.unique(orders, axis=1, return_counts=True)
    return bool(len(counts) and counts.max() >= _MOST * int(middle.sum()))


def _box(item: Dataset, path: Path) -> tuple[slice, slice]:
    """Rows and columns of a region; its last pixels are within it."""
    try:
        x0, y0, x1, y1 = (int(item[f"RegionLocation{name}"].value) for name in ("MinX0", "MinY0", "MaxX1", "MaxY1"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: an ultrasound region does not say where it lies ({error}); correct it") from error
    return slice(y0, y1 + 1), slice(x0, x1 + 1)


def _cut(box: tuple[slice, slice], size: tuple[int, int]) -> tuple[slice, slice] | None:
    """The part of a box within the frame; None where it is too small to show anything."""
    rows, columns = (slice(max(0, side.start), min(length, side.stop)) for side, length in zip(box, size, strict=True))
    return (rows, columns) if min(rows.stop - rows.start, columns.stop - columns.start) >= _SMALLEST else None


def _area(box: tuple[slice, slice]) -> int:
    rows, columns = box
    return int(max(0, rows.stop - rows.start) * max(0, columns.stop - columns.start))


def _refuse_several(path: Path, boxes: Sequence[tuple[slice, slice]]) -> None:
    """Refuses a frame with two pictures of one size side by side: two planes at once, or a stress echo in quarters."""
    first = boxes[0]
    for other in boxes[1:]:
        common = tuple(
            slice(max(one.start, two.start), min(one.stop, two.stop)) for one, two in zip(first, other, strict=True)
        )
        overlap = _area((common[0], common[1]))
        if _area(other) >= _ALIKE * _area(first) and overlap <= _APART * _area(other):
            raise DataError(
                f"{path}: shows {len(boxes)} views side by side (ultrasound regions {_words(first)} and "
                f"{_words(other)}); give each view a file of its own"
            )


def _words(box: tuple[slice, slice]) -> str:
    rows, columns = box
    return f"columns {columns.start} to {columns.stop - 1}, rows {rows.start} to {rows.stop - 1}"
