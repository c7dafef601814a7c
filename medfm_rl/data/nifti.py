"""NIfTI files: their pixels, the several statements that they make of their grid, and masks that repeat these.

A header holds an sform, a qform and bare distances, and tools disagree on which of them counts: nibabel, FSL and SPM
take the sform, ITK often the qform. A mask lies on its image in all of them where its header repeats that of the image.
https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h (methods 1 to 3)
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from medfm_rl.data.files import cannot_be_read
from medfm_rl.data.itk import read_grid, sheared
from medfm_rl.data.notices import warn_once
from medfm_rl.data.stacks import Arrangement, arrangement_of_axes, no_volume
from medfm_rl.errors import DataError
from medfm_rl.types import NOTICEABLE_SHIFT, FloatArray, Geometry

NIFTI_SUFFIXES = (".nii.gz", ".nii")
_STATEMENTS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
"""Fields of a header that say where its pixels lie."""
_ON_SHEAR = " or, where that is meant and its qform is right, set its sform to the qform"
_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The axes of NIfTI grow to the right and to the front, those of ITK and DICOM to the left and to the back."""
_BROKEN = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, KeyError, zlib.error)


def read_nifti(path: Path) -> tuple[FloatArray, Geometry]:
    """Reads pixels `(C, *S)`, scaled as the header says, and their grid; masks of it carry its header.

    Raises:
        DataError: The file is damaged or truncated, holds complex numbers or several times, its axes are sheared, or
            its statements differ in how long a pixel is or where its axes point.
    """
    image = _load(path)
    if len(image.shape) < 2:
        raise DataError(f"{path}: holds a row of {image.shape} values and no image")
    if arrangement_of_axes(image.shape[:4]) is Arrangement.CLIP:
        raise no_volume(path, image.shape[3], "images" if image.shape[2] == 1 else "volumes")
    if any(size > 1 for size in image.shape[5:]):
        raise DataError(f"{path}: has {len(image.shape)} axes, {image.shape}; give one image or volume a file")
    shape = image.shape[:3]
    # Several values of a pixel are a fifth axis, or the fields of a colour.
    pixels = _values(path, image).reshape(*shape, -1, order="F")
    if _is_plane(path, image) and len(shape) == 3:
        shape, pixels = shape[:2], pixels[:, :, 0]
    geometry = _geometry(path, image.header, shape)
    return np.ascontiguousarray(pixels.T), geometry


def write_nifti(path: Path, pixels: npt.NDArray[Any], header: bytes) -> None:
    """Writes pixels `(*S)` with the statements of a header that `read_nifti` gave.

    Raises:
        OSError: The file cannot be written.
    """
    written = Nifti1Header(header)
    written.set_data_dtype(pixels.dtype)
    written.set_data_shape(pixels.T.shape)
    nib.save(nib.Nifti1Image(pixels.T, None, written), path)


def require_place(path: Path, shown: Path, geometry: Geometry, shape: tuple[int, ...]) -> None:
    """Reads the header of a file back, and compares it with the grid `(x, y[, z])` that was to be written.

    Args:
        path: The file.
        shown: Its name, for the message.
        geometry: The grid.
        shape: Size of the pixels `(*S)`.

    Raises:
        DataError: ITK or nibabel place a pixel elsewhere.
    """
    try:
        header = nib.load(path).header
    except _BROKEN as error:
        raise DataError(
            f"{shown}: cannot be read back after it was written ({error}); is the disk in order?"
        ) from error
    # They take different statements of a header that makes two.
    wanted = {"ITK": geometry, "nibabel": geometry.alternative or geometry}
    for tool, found in (("ITK", read_grid(path)), ("nibabel", _grid_of_nibabel(header, len(shape)))):
        if found is not None and (shift := found.shift(wanted[tool].plane, shape)) > NOTICEABLE_SHIFT:
            raise DataError(
                f"{shown}: cannot be written to NIfTI: {tool} would place it {shift:.2g} of a pixel from its image, "
                f"which has spacing {geometry.spacing} and direction {geometry.direction}; resample the image to a "
                "grid with right angles"
            )


def _load(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise cannot_be_read(path, error) from error
    try:
        # To its end, where the checksum stands.
        raw = gzip.decompress(content) if path.suffix.lower() == ".gz" else content
        kind = nib.Nifti2Image if int.from_bytes(raw[:4], "little") == 540 else nib.Nifti1Image
        return kind.from_bytes(raw)
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be read; the file is damaged or truncated ({error})") from error


def _values(path: Path, image: Any) -> FloatArray:
    """All values of a file, `(X, Y, ...)`, in the units of the file; colours become a last axis."""
    if np.issubdtype(image.get_data_dtype(), np.complexfloating):
        raise DataError(f"{path}: holds complex numbers; write their magnitude to a file and give that")
    try:
        values = np.asanyarray(image.dataobj)
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be read; the file is damaged or truncated ({error})") from error
    if values.dtype.names is not None:
        values = np.stack([values[name] for name in values.dtype.names], axis=-1)
    with np.errstate(over="ignore"):
        found: FloatArray = values.astype(np.float32)
    return found


def _is_plane(path: Path, image: Any) -> bool:
    """Whether a file is a plane without a third axis, as ITK sees it: ITK writes colours of a plane with five axes."""
    if len(image.shape) == 2:
        return True
    if len(image.shape) < 5 or image.shape[2] > 1:
        return False
    grid = read_grid(path)
    return grid is not None and grid.ndim == 2


def _geometry(path: Path, header: Any, shape: tuple[int, ...]) -> Geometry:
    """The grid of a file as ITK takes it, with nibabel's as the alternative where it differs."""
    ndim, size = len(shape), tuple(reversed(shape))
    kept = Nifti1Header()
    for name in _STATEMENTS:
        kept[name] = header[name]
    carried = kept.binaryblock
    try:
        of_nibabel = _grid_of_nibabel(header, ndim)
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: its header describes no grid ({error}); correct its sform, qform or units") from error
    of_itk = read_grid(path)
    # Of NIfTI-1, ITK refuses what is sheared by more than .006 degrees, and NIfTI-2 it does not know.
    refused = of_itk is None and not isinstance(header, Nifti2Header)
    if of_nibabel is not None and (refused or of_nibabel.shift(of_nibabel.upright, size) > NOTICEABLE_SHIFT):
        raise sheared(path, of_nibabel, size, _ON_SHEAR)
    of_itk = of_itk or of_nibabel
    if of_itk is None:
        raise DataError(f"{path}: its header describes no grid (pixdim {header['pixdim'][1:4].tolist()}); correct it")
    sides = np.asarray(header["pixdim"][1 : ndim + 1], dtype=np.float64)
    if of_nibabel is None:
        stated = bool((np.isfinite(sides) & (sides > 0)).all())
        return replace(of_itk, spacing=of_itk.spacing if stated else None, header=carried)
    shift = of_nibabel.shift(of_itk, size)
    if shift <= NOTICEABLE_SHIFT:
        return replace(of_itk, header=carried)
    _require_one_measure(path, header, of_itk, of_nibabel, sides)
    codes = f"sform (code {int(header['sform_code'])}) and qform (code {int(header['qform_code'])})"
    warn_once(
        f"{path}: its {codes} place a pixel up to {shift * min(of_nibabel.spacing or ()):.3g} mm apart, {shift:.2g} of "
        "its side: ITK takes one of them, and nibabel, FSL and SPM the other. Its masks carry both and lie on the "
        "image in each"
    )
    return replace(of_itk, header=carried, alternative=of_nibabel)


def _grid_of_nibabel(header: Any, ndim: int) -> Geometry | None:
    """The grid that nibabel takes, on ITK's axes and in mm; None where the file says no place.

    Raises:
        ValueError: An axis has no length.
        KeyError: Its unit is none.
    """
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        return None
    factor = _MM[header.get_xyzt_units()[0]]
    affine = _TO_LPS @ header.get_best_affine()
    affine[:3] *= factor
    if ndim == 2 and affine[2, :2].any():
        return None  # A plane that leaves x and y cannot be said in two axes.
    chosen = [*range(ndim), 3]
    return Geometry.from_affine(affine[np.ix_(chosen, chosen)])


def _require_one_measure(
    path: Path, header: Any, of_itk: Geometry, of_nibabel: Geometry, sides: npt.NDArray[np.float64]
) -> None:
    """Refuses statements that differ in more than a place: sizes in mm, or left and right, would be anybody's guess."""
    codes = f"sform_code {int(header['sform_code'])}, qform_code {int(header['qform_code'])}"
    if not np.allclose(of_itk.spacing or (), of_nibabel.spacing or (), rtol=NOTICEABLE_SHIFT):
        raise DataError(
            f"{path}: says two sizes of its pixels: {of_nibabel.spacing} mm by the sform or qform that nibabel takes, "
            f"and {of_itk.spacing} mm by what ITK takes ({codes}, pixdim {sides.tolist()}). Set them to one: "
            "image.set_sform(...) and image.set_qform(...) of nibabel set pixdim too"
        )
    ours, theirs = (np.reshape(grid.direction, (grid.ndim, grid.ndim)) for grid in (of_itk, of_nibabel))
    if float(np.sum(ours * theirs, axis=0).min()) < np.cos(np.pi / 4):
        raise DataError(
            f"{path}: its sform and qform point its axes in other directions ({codes}): left and right, or the axes "
            f"themselves, are exchanged. Directions are {np.round(theirs, 3).tolist()} by nibabel and "
            f"{np.round(ours, 3).tolist()} by ITK. Set the wrong one to the right one"
        )
