"""Segmentations of 3D Slicer (`.seg.nrrd`): segments by name, in layers, cut to where they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from medfm_rl.data.itk_paths import itk_path
from medfm_rl.data.segmentations.segments import Segment, Segmentation
from medfm_rl.errors import DataError
from medfm_rl.types import Geometry

_FIELD = re.compile(r"Segment([0-9]{1,99})_(Name|ID|LabelValue|Layer)")
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_REPRESENTATIONS = ("Segmentation_SourceRepresentation", "Segmentation_MasterRepresentation")


def read_slicer_segmentation(path: Path) -> Segmentation | None:
    """Reads the segments of an NRRD file; None where it names none, and its integers speak for themselves.

    The format: https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html. Files without label
    values are of Slicer before 4.11, which gave each segment a layer.

    Raises:
        DataError: The file cannot be read, holds shares of pixels, or integers that belong to no segment.
    """
    reader = sitk.ImageFileReader()
    try:
        with itk_path(path) as name:
            reader.SetFileName(name)
            reader.ReadImageInformation()
            # Names of other fields need not be text, and SimpleITK does not give their values then.
            named = [key for key in reader.GetMetaDataKeys() if key in _REPRESENTATIONS or _FIELD.fullmatch(key)]
            fields = {key: reader.GetMetaData(key) for key in named}
            numbers = sorted({int(match[1]) for key in fields if (match := _FIELD.fullmatch(key))})
            if not numbers:
                return None
            image = reader.Execute()
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read; the file is damaged, truncated or not what its name says") from error
    if any(fields.get(name) == "Fractional labelmap" for name in _REPRESENTATIONS):
        raise DataError(f"{path}: holds shares of pixels (a fractional labelmap); save it as a binary labelmap")
    array = sitk.GetArrayFromImage(image)
    # (layers, D, H, W)
    layers = np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array[None]
    if image.GetDimension() != 3:
        raise DataError(f"{path}: a segmentation of 3D Slicer has three axes, this one {image.GetDimension()}")
    segments = []
    known = np.zeros(layers.shape, dtype=bool)
    for place, number in enumerate(numbers):
        value = _integer(path, fields, f"Segment{number}_LabelValue", 1)
        layer = _integer(path, fields, f"Segment{number}_Layer", place)
        if not 0 <= layer < len(layers):
            raise DataError(f"{path}: segment {number} is said to lie in layer {layer}, and there are {len(layers)}")
        region = layers[layer] == value
        known[layer] |= region
        name = fields.get(f"Segment{number}_Name") or fields.get(f"Segment{number}_ID", "")
        segments.append(Segment.of(name, value, region))
    strangers = np.unique(layers[(layers != 0) & ~known])
    if len(strangers):
        raise DataError(f"{path}: holds {strangers[0]}, which belongs to none of its segments; save it again")
    try:
        geometry = Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    except ValueError as error:
        raise DataError(f"{path}: its header describes no grid ({error}); correct it") from error
    return Segmentation(path, segments, geometry)


def _integer(path: Path, fields: Mapping[str, str], name: str, default: int) -> int:
    text = fields.get(name, str(default)).strip()
    if not _INTEGER.fullmatch(text):
        raise DataError(f"{path}: {name} is {text[:40]!r}, and must be an integer; save the segmentation again")
    return int(text)
