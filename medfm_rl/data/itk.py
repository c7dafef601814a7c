"""Images that SimpleITK reads and writes: MHA/MHD, NRRD, PNG, JPEG, BMP and TIFF."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medfm_rl.data.itk_paths import itk_path
from medfm_rl.data.segmentations.pictures import (
    TIFF,
    is_picture,
    read_picture,
    require_as_shown,
    require_as_stored,
    require_whole_picture,
    several_pages,
)
from medfm_rl.data.stacks import no_volume
from medfm_rl.data.text_headers import require_sound_header, states_spacing
from medfm_rl.errors import DataError
from medfm_rl.types import NOTICEABLE_SHIFT, FloatArray, Geometry

_SILENT_ON_COMPLEX = (".mha", ".mhd", *TIFF)
"""Formats in which ITK writes complex numbers as two real ones, and nothing says so."""


def read_itk(path: Path) -> tuple[FloatArray, Geometry]:
    """Reads pixels `(C, *S)` and their grid `(x, y[, z])`; its spacing is None where the file does not say one.

    Raises:
        DataError: The file is damaged, holds complex numbers or what may be, several pages, several times or sheared
            axes, states distances in other units than mm, or is a picture that is turned or transparent in part.
    """
    require_sound_header(path)
    require_whole_picture(path)
    shown = read_picture(path)
    if shown is not None:
        return shown.astype(np.float32), Geometry.unknown(2)
    reader = sitk.ImageFileReader()
    try:
        with _silent(), itk_path(path) as name:
            reader.SetFileName(name)
            image = reader.Execute()
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read; the file is damaged, truncated or not what its name says") from error
    if (count := math.prod(image.GetSize()[3:])) > 1:
        raise no_volume(path, count, "images or volumes")
    if (more := image.GetDimension() - 3) > 0:
        # A further axis of one time, or one of anything else, is none, as in NIfTI.
        image = image[(slice(None),) * 3 + (0,) * more]
    if path.suffix.lower() in TIFF and image.GetDimension() == 3 and image.GetSize()[2] > 1:
        raise several_pages(path, image.GetSize()[2])
    array = sitk.GetArrayFromImage(image)
    if np.iscomplexobj(array):
        raise DataError(f"{path}: holds complex numbers; write their magnitude to a file and give that")
    if path.suffix.lower() in _SILENT_ON_COMPLEX and image.GetNumberOfComponentsPerPixel() == 2 and _is_real(array):
        raise DataError(
            f"{path}: holds two real numbers a pixel, which is how complex numbers are written to {path.suffix}, and "
            "the file does not say whether they are. Write their magnitude to a file and give that; where they are two "
            "channels, write each to a file of its own (CASE_0000, CASE_0001)"
        )
    pixels = np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array[None]
    require_as_shown(path, pixels)
    require_as_stored(path, pixels)
    try:
        geometry = _grid_of(image)
    except ValueError as error:
        raise DataError(f"{path}: its header describes no grid ({error}); correct it") from error
    if geometry.shift(geometry.upright, pixels.shape[1:]) > NOTICEABLE_SHIFT:
        raise sheared(path, geometry, pixels.shape[1:])
    if is_picture(path) or not states_spacing(path):
        geometry = replace(geometry, spacing=None)
    with np.errstate(over="ignore"):
        return pixels.astype(np.float32), geometry


def write_itk(path: Path, pixels: npt.NDArray[Any], geometry: Geometry) -> None:
    """Writes pixels `(*S)` on a grid of as many axes.

    Raises:
        RuntimeError: The format does not hold them.
    """
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing(geometry.spacing or (1.0,) * geometry.ndim)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    with itk_path(path) as name:
        sitk.WriteImage(image, name, useCompression=True)


def read_grid(path: Path) -> Geometry | None:
    """The grid that ITK takes from a header; None where ITK cannot read it, or it is none."""
    reader = sitk.ImageFileReader()
    try:
        with _silent(), itk_path(path) as name:
            reader.SetFileName(name)
            reader.ReadImageInformation()
        return _grid_of(reader)
    except (RuntimeError, ValueError):
        return None


def sheared(path: Path, grid: Geometry, shape: tuple[int, ...], remedy: str = "") -> DataError:
    """What to raise where the axes of a grid of size `(*S)` are not at right angles.

    Args:
        path: The file.
        grid: Its grid.
        shape: Size of the image.
        remedy: What can be done besides resampling, as the end of the sentence.
    """
    axes = np.reshape(grid.direction, (grid.ndim, grid.ndim))
    angle = np.rad2deg(np.arcsin(abs(axes.T @ axes - np.eye(grid.ndim)).max().clip(0, 1)))
    return DataError(
        f"{path}: cannot be read; its axes are sheared, {angle:.3g} degrees from right angles to each other, which "
        f"moves a pixel by up to {grid.shift(grid.upright, shape):.2g} of its side. Resample it to a grid with right "
        f"angles{remedy}"
    )


def _is_real(array: npt.NDArray[Any]) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))


@contextmanager
def _silent() -> Iterator[None]:
    shows_warnings = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shows_warnings)


def _grid_of(image: Any) -> Geometry:
    """The grid of an image or of the header that a reader has read, of three axes at most."""
    size, ndim = image.GetDimension(), min(3, image.GetDimension())
    direction = np.reshape(image.GetDirection(), (size, size))[:ndim, :ndim]
    return Geometry(
        tuple(image.GetSpacing()[:ndim]), tuple(image.GetOrigin()[:ndim]), tuple(direction.ravel().tolist())
    )
