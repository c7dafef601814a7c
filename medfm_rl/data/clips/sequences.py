"""Clips and their masks as NIfTI and MetaImage: a fourth axis of time, or planes of time stacked as if they were depth.

Nothing in a file of three axes says that the third is time, so it takes who knows: CAMUS's names, or the user.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medfm_rl.data.files import replace_on_success
from medfm_rl.data.images import image_suffix, read_pixels
from medfm_rl.data.nifti import NIFTI_SUFFIXES, UNKNOWN_GRID, read_nifti_sequence, size_of_nifti
from medfm_rl.errors import DataError
from medfm_rl.types import FloatArray, Geometry

_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM_SECONDS = ("mm", "sec")


def find_sequence(path: Path, planes_over_time: bool) -> int | None:
    """How many frames a NIfTI or MetaImage file has; None where it is no clip.

    Args:
        path: The file.
        planes_over_time: Whether planes along a third axis are times.

    Raises:
        DataError: It cannot be read.
    """
    suffix = image_suffix(path)
    if suffix in NIFTI_SUFFIXES:
        shape = size_of_nifti(path)
        if len(shape) == 4 and shape[2] == 1 and shape[3] > 1:
            return shape[3]
        return shape[2] if planes_over_time and len(shape) == 3 and shape[2] > 1 else None
    if not planes_over_time or suffix not in (".mhd", ".mha", ".nrrd", ".nhdr"):
        return None
    pixels, _ = read_pixels(path)
    return pixels.shape[1] if pixels.ndim == 4 else None


def read_sequence(path: Path) -> tuple[FloatArray, tuple[float, ...] | None, Geometry]:
    """Frames `(T, C, H, W)` of a file that is a clip, their times in s where it gives a step, and the grid of a frame.

    Raises:
        DataError: It cannot be read.
    """
    if image_suffix(path) in NIFTI_SUFFIXES and len(size_of_nifti(path)) == 4:
        frames, step, unit, volume = read_nifti_sequence(path)
        seconds = step * _SECONDS[unit] if unit in _SECONDS else 0.0
        times = tuple((np.arange(len(frames)) * seconds).tolist()) if 0 < seconds < np.inf else None
        return frames, times, Geometry.slice_of(volume)
    pixels, geometry = read_pixels(path)
    if geometry.ndim != 3:
        raise DataError(f"{path}: holds one plane, and a clip is wanted")
    return np.moveaxis(pixels, 1, 0), None, Geometry.slice_of(geometry).plane


def write_sequence(path: Path, frames: npt.NDArray[Any], geometry: Geometry, times: tuple[float, ...] | None) -> None:
    """Writes frames `(T, H, W)` as a NIfTI file of four axes, x, y, one z and time, whole or not at all.

    The step is the mean one in seconds; where the times are unknown it is 1 of no unit. Where the spacing is unknown,
    the file says so: no unit, no sform and no qform.

    Raises:
        DataError: It cannot be written.
    """
    header = nib.Nifti1Header.from_header(nib.Nifti1Header(UNKNOWN_GRID))
    pixels = frames.transpose(2, 1, 0)[:, :, None]
    header.set_data_dtype(pixels.dtype)
    affine = None
    if geometry.spacing is not None:
        affine = _TO_RAS @ _in_space(geometry)
    image = nib.Nifti1Image(pixels, affine, header)
    step = 1.0 if times is None or len(times) < 2 else (times[-1] - times[0]) / (len(times) - 1)
    sides = (1.0, 1.0, 1.0) if affine is None else tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    image.header.set_zooms((*sides, step))
    space, seconds = _MM_SECONDS
    image.header.set_xyzt_units(None if affine is None else space, None if times is None else seconds)
    if affine is not None:
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
    with replace_on_success(path) as temporary:
        nib.save(image, temporary)


def _in_space(geometry: Geometry) -> npt.NDArray[np.float64]:
    """The matrix of a plane in three axes: that of the volume that it came from, or z across it."""
    if geometry.volume is not None:
        return geometry.volume.affine
    matrix = np.eye(4)
    matrix[:2, :2], matrix[:2, 3] = geometry.affine[:2, :2], geometry.affine[:2, 2]
    return matrix
