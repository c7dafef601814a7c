"""How large the pixels of a DICOM image are, by which of its statements; unknown where it makes none."""

from __future__ import annotations

import math
from pathlib import Path

from pydicom import Dataset

from medfm_rl.data.notices import warn_once
from medfm_rl.errors import DataError

Spacing = tuple[float, float]
"""Distance of neighbouring columns and of neighbouring rows, in mm."""
_CENTIMETRES, _TWO_DIMENSIONAL = 3, 1
"""Values of Physical Units and of Region Spatial Format (PS3.3 C.8.5.5)."""
_SAME = 0.01
_COUNTED = 2
"""Pixels by which a region reaches beyond the picture where its writer counted otherwise."""
_PROJECTIONS = ("CR", "DX", "MG", "IO", "PX", "XA", "RF", "RG")


def pixel_spacing(header: Dataset, path: Path) -> Spacing | None:
    """The spacing of an image in mm, or None where its header does not say.

    In this order: the regions of an ultrasound image, Pixel Spacing, and Imager Pixel Spacing of a projection, which is
    that at the detector: divided by the estimated magnification where it is given, and named in a warning where not.

    Raises:
        DataError: A distance is no number, or two statements differ.
    """
    stated = _pair(header, "PixelSpacing", path)
    regions = _of_regions(header, path)
    if regions is not None:
        if stated is not None and not _same(stated, regions):
            raise DataError(
                f"{path}: says two sizes of its pixels: {regions} mm by its ultrasound regions and {stated} mm by "
                "Pixel Spacing (columns, rows); correct the one that is wrong"
            )
        return regions
    detector = _pair(header, "ImagerPixelSpacing", path) or _pair(header, "NominalScannedPixelSpacing", path)
    if stated is not None and not (
        header.get("Modality") in _PROJECTIONS and _is_uncalibrated(header, stated, detector)
    ):
        return stated
    if detector is None:
        return stated
    magnification = _number(header, "EstimatedRadiographicMagnificationFactor", path)
    if magnification:
        return detector[0] / magnification, detector[1] / magnification
    if header.get("Modality") in _PROJECTIONS:
        warn_once(
            f"{path.parent}: sizes in mm are those at the detector (Imager Pixel Spacing of {header.Modality}); what "
            "is shown lies nearer to the source, and is smaller by a factor that the headers do not say"
        )
    return detector


def slice_thickness(header: Dataset, path: Path) -> float:
    """Length in mm of the pixels of a single slice along its normal; 1 where the header does not say.

    Raises:
        DataError: It is no number.
    """
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        stated = _number(header, keyword, path)
        if stated:
            return abs(stated)
    return 1.0


def _is_uncalibrated(header: Dataset, stated: Spacing, detector: Spacing | None) -> bool:
    """Whether Pixel Spacing only repeats that of the detector (PS3.3 10.7.1.3)."""
    return not header.get("PixelSpacingCalibrationType") and detector is not None and _same(stated, detector)


def _of_regions(header: Dataset, path: Path) -> Spacing | None:
    """The spacing of the regions of an ultrasound image that are in two dimensions and in cm, where all agree."""
    found = []
    for region in header.get("SequenceOfUltrasoundRegions") or []:
        spacing = region_spacing(region, path)
        if region.get("RegionSpatialFormat") != _TWO_DIMENSIONAL or spacing is None:
            continue
        if _was_shrunk(region, header, path):
            warn_once(
                f"{path}: its ultrasound region reaches beyond the picture along both axes: it was shrunk after the "
                "region was written, so its spacing is taken for unknown and distances are in pixels"
            )
            return None
        found.append(spacing)
    if not found:
        return None
    if not all(_same(other, found[0]) for other in found):
        warn_once(
            f"{path}: its ultrasound regions have pixels of different sizes ({', '.join(map(str, found))} mm), so its "
            "spacing is taken for unknown and distances are in pixels; crop it to one region"
        )
        return None
    return found[0]


def _was_shrunk(region: Dataset, header: Dataset, path: Path) -> bool:
    """Whether a region reaches beyond the picture along both axes."""
    reaches = []
    for axis, side in zip("XY", (header.get("Columns"), header.get("Rows")), strict=True):
        start, last = (_number(region, f"RegionLocation{end}", path) for end in (f"Min{axis}0", f"Max{axis}1"))
        reaches.append(side and last is not None and reaches_beyond(start or 0, last, side))
    return all(reaches)


def reaches_beyond(start: float, last: float, side: int) -> bool:
    """Whether a region reaches out of a picture along a side, further than another way to count explains."""
    return max(last + 1 - side, -start) > _COUNTED


def region_spacing(region: Dataset, path: Path) -> Spacing | None:
    """The spacing of a region of an ultrasound image in mm; None where it is not in cm, or not given.

    Raises:
        DataError: It is no number.
    """
    if {region.get(f"PhysicalUnits{axis}Direction") for axis in "XY"} != {_CENTIMETRES}:
        return None
    x, y = (_number(region, f"PhysicalDelta{axis}", path) for axis in "XY")
    # A scanner may count against the axis.
    return (10 * abs(x), 10 * abs(y)) if x and y else None


def _same(ours: Spacing, theirs: Spacing) -> bool:
    return all(math.isclose(one, other, rel_tol=_SAME) for one, other in zip(ours, theirs, strict=True))


def _pair(header: Dataset, keyword: str, path: Path) -> Spacing | None:
    """A distance of rows and one of columns, turned round; None where it is missing, empty or 0."""
    try:
        value = header.get(keyword)
        if not value:
            return None
        rows, columns = map(float, value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {keyword} is to be two distances ({error}); correct it") from error
    known = math.isfinite(rows) and math.isfinite(columns) and min(rows, columns) > 0
    return (columns, rows) if known else None


def _number(header: Dataset, keyword: str, path: Path) -> float | None:
    """A number of a header; None where it is missing, empty or infinite."""
    try:
        value = header.get(keyword)
        number = math.nan if value is None or value == "" else float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {keyword} is to be a number ({error}); correct it") from error
    return number if math.isfinite(number) else None
