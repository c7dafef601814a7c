"""Writes small clips as scanners and data sets have them: a bright sector whose dark ventricle beats."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit
from support.dicom_files import ULTRASOUND_CLIP, item, write_dicom

from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.images import read_image

SIZE = (48, 64)
COUNT = 12


def radii(count: int = COUNT, least: float = 6.0, most: float = 12.0) -> np.ndarray:
    """Half the width of the ventricle in each frame: largest in the first, smallest in the middle."""
    return least + (most - least) * (1 + np.cos(2 * np.pi * np.arange(count) / count)) / 2


def ventricles(count: int = COUNT, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Masks `(T, H, W)`: ellipses about the middle, half again as long as wide."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    y, x = (rows - size[0] / 2) / 1.5, columns - size[1] / 2
    return np.stack([np.hypot(y, x) <= radius for radius in radii(count)])


def greys(count: int = COUNT, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Frames `(T, H, W)` of 8 bits."""
    noise = np.random.default_rng(0).integers(100, 160, (count, *size))
    return np.where(ventricles(count, size), 20, noise).astype(np.uint8)


def region(x0: int, y0: int, x1: int, y1: int, **fields: Any) -> Any:
    """A region of tissue in two dimensions, of 0.5 mm pixels."""
    values = {
        "RegionSpatialFormat": 1,
        "RegionDataType": 1,
        "RegionFlags": 0,
        "RegionLocationMinX0": x0,
        "RegionLocationMinY0": y0,
        "RegionLocationMaxX1": x1,
        "RegionLocationMaxY1": y1,
        "PhysicalUnitsXDirection": 3,
        "PhysicalUnitsYDirection": 3,
        "PhysicalDeltaX": 0.05,
        "PhysicalDeltaY": 0.05,
    }
    return item(**{**values, **fields})


def write_clip(path: Path, frames: np.ndarray, photometric: str = "MONOCHROME2", **fields: Any) -> Path:
    """Writes frames `(T, H, W)` or `(T, H, W, 3)` as a clip of ultrasound, 40 ms apart unless said otherwise."""
    if not {"FrameTime", "FrameTimeVector", "CineRate"} & fields.keys():
        fields = {"FrameTime": "40", "FrameIncrementPointer": 0x00181063, **fields}
    write_dicom(path, frames, spacing=None, sop=ULTRASOUND_CLIP, photometric=photometric, **fields)
    return path


def compress_as_jpeg(path: Path, frames: np.ndarray) -> None:
    """Makes the frames `(T, H, W, 3)` of a file JPEG with halved colours, as scanners do."""

    def jpeg(frame: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, format="jpeg", quality=90, subsampling="4:2:2")
        return buffer.getvalue()

    made = dcmread(path)
    made.PhotometricInterpretation = "YBR_FULL_422"
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.PixelData = encapsulate([jpeg(frame) for frame in frames])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    made.save_as(path, enforce_file_format=True)


def write_stills_as_clip(data: Path, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Three stills of a data set as frames of the clip `p1_4CH`, in `images/` and `masks/`; one mask is changed.

    Args:
        data: The data set, with `images/` and `labels/`.
        folder: Where to.
        change: From the second mask `(H, W)` to what is written in its place.
    """
    names = sorted(path.name for path in (data / "images").iterdir())[:3]
    geometry = read_image(data / "images" / names[0])[1].plane
    frames, masks = (
        np.stack([read_image(data / part / name)[0][0] for name in names]) for part in ("images", "labels")
    )
    masks[1] = change(masks[1])
    write_sequence(folder / "images" / "p1_4CH.nii.gz", frames, geometry, None)
    write_sequence(folder / "masks" / "p1_4CH.nii.gz", masks.astype(np.uint8), geometry, None)
