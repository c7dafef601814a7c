"""NIfTI files: their pixels, the several statements that they make of their grid, and masks that repeat these.

A header holds an sform, a qform and bare distances, and tools disagree on which of them counts: nibabel, FSL and SPM
take the sform, ITK often the qform. A mask lies on its image in all of them where its header repeats that of the image.
https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h (methods 1 to 3)
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

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
UNKNOWN_GRID = Nifti1Header().binaryblock
"""The header of an image whose grid nobody knows: no sform, no qform, no unit, and distances of 1 of nothing."""
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The axes of NIfTI grow to the right and to the front, those of ITK and DICOM to the left and to the back."""
_BROKEN = (
    *(ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, KeyError, OverflowError),
    zlib.error,
)
"""What nibabel and gzip raise where a file is no NIfTI, or not all of it is there."""
_LONGEST_HEADER = 540
_MOST_COMPRESSED = 1032
"""Bytes that one byte of a compressed file can stand for at most (https://zlib.net/zlib_tech.html)."""
_BLOCK = 1 << 20
_GZIP = b"\x1f\x8b"
_ORDERS: Final = ("little", "big")


def read_nifti(path: Path) -> tuple[FloatArray, Geometry]:
    """Reads pixels `(C, *S)`, scaled as the header says, and their grid; masks of it carry its header.

    Raises:
        DataError: The file is damaged or truncated, holds complex numbers or several times, its axes are sheared, or
            its statements differ in how long a pixel is or where its axes point.
    """
    header, image = _load(path)
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
    geometry = _geometry(path, header, shape)
    return np.ascontiguousarray(pixels.T), geometry


def size_of_nifti(path: Path) -> tuple[int, ...]:
    """Length of each axis `(x, y, ...)`, by the header alone.

    Raises:
        DataError: The file is damaged.
    """
    try:
        image: Any = nib.load(path)
        return tuple(int(size) for size in image.shape)
    except OSError as error:
        raise cannot_be_read(path, error) from error
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be read; the file is damaged or truncated ({error})") from error


def read_nifti_sequence(path: Path) -> tuple[FloatArray, float, str, Geometry]:
    """Frames `(T, C, H, W)` of a file of axes x, y, one z and time; the step and its unit; and the grid `(x, y, z)`.

    C is 1, or 3 or 4 where the values are colours.

    Raises:
        DataError: As in `read_nifti`.
    """
    header, image = _load(path)
    if len(image.shape) != 4 or image.shape[2] != 1:
        raise DataError(f"{path}: has axes {image.shape}, and a clip has x, y, one z and time")
    geometry = _geometry(path, header, image.shape[:3])
    values = _values(path, image)[:, :, 0]
    frames = np.ascontiguousarray(values.reshape(*values.shape[:3], -1).transpose(2, 3, 1, 0))
    return frames, float(header["pixdim"][4]), str(header.get_xyzt_units()[1]), geometry


def read_nifti_maps(path: Path, planes: bool) -> tuple[FloatArray, Geometry]:
    """Several maps of one grid, `(K, D, H, W)`, and that grid `(x, y, z)`; the maps are the last axis of the file.

    Args:
        path: A file of axes x, y, z and map, or with several values of a pixel.
        planes: Whether a file of three axes is x, y and map.

    Raises:
        DataError: As in `read_nifti`, or there is one map alone.
    """
    header, image = _load(path)
    values = _values(path, image)
    if values.ndim == 3 and planes:
        values = values[:, :, None]
    if values.ndim == 5 and values.shape[3] == 1:
        values = values[:, :, :, 0]
    if values.ndim != 4 or values.shape[3] < 2:
        raise DataError(f"{path}: has axes {image.shape}; several maps are x, y, z and the map as fourth axis")
    return np.ascontiguousarray(values.T), _geometry(path, header, values.shape[:3])


def write_nifti(path: Path, pixels: npt.NDArray[Any], header: bytes) -> None:
    """Writes pixels `(*S)` with the statements of a header that `read_nifti` gave.

    Raises:
        OSError: The file cannot be written.
    """
    written = Nifti1Header(header)
    written.set_data_dtype(pixels.dtype)
    written.set_data_shape(pixels.T.shape)
    nib.save(nib.Nifti1Image(pixels.T, None, written), path)


def step_of_values(path: Path) -> float:
    """Difference of two values that a file can store, where its header scales integers; else 0.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        # By content: nibabel looks for another file where the ending has capital letters.
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            header = _header_in(file.read(_LONGEST_HEADER))
        if header.get_data_dtype().kind in "fc":
            return 0.0
        slope, _ = header.get_slope_inter()
        return 1.0 if slope is None else abs(float(slope))
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be read; the file is damaged or truncated ({error})") from error


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
        stated = _stated_grids(nib.load(path).header, len(shape))
    except _BROKEN as error:
        raise DataError(
            f"{shown}: cannot be read back after it was written ({error}); is the disk in order?"
        ) from error
    of_itk = read_grid(path)
    if of_itk is None:
        raise DataError(f"{shown}: ITK cannot read back what was written; is the disk in order?")
    for tool, found in (("ITK", of_itk), *(("nibabel", grid) for grid in stated[:1])):
        if (shift := geometry.shift(found, shape)) > NOTICEABLE_SHIFT:
            raise DataError(
                f"{shown}: cannot be written to NIfTI: {tool} would place it {shift:.2g} of a pixel from its image, "
                f"which has spacing {geometry.spacing} and direction {geometry.direction}; resample the image to a "
                "grid with right angles"
            )


def _load(path: Path) -> tuple[Any, Any]:
    """The header as it stands in the file, and the image, in whose header nibabel has put 1 for distances of 0."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise cannot_be_read(path, error) from error
    compressed = path.suffix.lower() == ".gz"
    _require_name(path, content, compressed)
    try:
        file = gzip.GzipFile(fileobj=io.BytesIO(content)) if compressed else io.BytesIO(content)
        start = file.read(_LONGEST_HEADER)
        kind, header = _kind_of(start), _header_in(start)
        end, held = _end_of_pixels(header), len(content) * (_MOST_COMPRESSED if compressed else 1)
        # Before nibabel makes room for what the header asks for.
        if end > held:
            raise ValueError(f"its header asks for {end} bytes, and the file holds {held} at most")
        raw = start + file.read(max(0, end - len(start)))
        # To the end, where the checksum stands.
        while file.read(_BLOCK):
            pass
        return header, kind.from_bytes(raw)
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be read; the file is damaged or truncated ({error})") from error


def _require_name(path: Path, content: bytes, compressed: bool) -> None:
    """Raises DataError where a file is sound, and its name says otherwise of how it is stored."""
    if compressed and _size_of_header(content) is not None:
        raise DataError(f"{path}: is not compressed, and its name ends in .gz; rename it so that it ends in .nii")
    if not compressed and content.startswith(_GZIP):
        raise DataError(f"{path}: is compressed, and its name does not say so; rename it so that it ends in .nii.gz")


def _kind_of(start: bytes) -> Any:
    """The version of NIfTI that a file begins with."""
    return nib.Nifti2Image if _size_of_header(start) == nib.Nifti2Header.sizeof_hdr else nib.Nifti1Image


def _size_of_header(start: bytes) -> int | None:
    """The first number of a file, where it is the size of one of NIfTI's headers, in either order of bytes."""
    sizes = (nib.Nifti1Header.sizeof_hdr, nib.Nifti2Header.sizeof_hdr)
    return next((size for order in _ORDERS if (size := int.from_bytes(start[:4], order)) in sizes), None)


def _header_in(start: bytes) -> Any:
    """The header at the start of a file, as it stands there."""
    of_kind = _kind_of(start).header_class
    return of_kind(start[: of_kind.sizeof_hdr], check=False)


def _end_of_pixels(header: Any) -> int:
    """How many bytes of a file a header speaks of, its own among them.

    Raises:
        ValueError: It gives a size or a place that is none.
    """
    shape, offset = header.get_data_shape(), float(header["vox_offset"])
    if not shape or min(shape) < 1 or not 0 <= offset < math.inf:
        raise ValueError(f"its header gives the size {shape}, with pixels from byte {offset:g} on")
    return int(offset) + math.prod(map(int, shape)) * int(header.get_data_dtype().itemsize)


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
    """The grid of a file, with a second statement of the file as the alternative where it makes one that differs."""
    size = tuple(reversed(shape))
    kept = Nifti1Header()
    for name in _STATEMENTS:
        kept[name] = header[name]
    carried = kept.binaryblock
    try:
        stated = _stated_grids(header, len(shape))
    except (KeyError, ValueError, HeaderDataError) as error:
        raise DataError(f"{path}: its header describes no grid ({error}); correct its sform, qform or units") from error
    sides = np.asarray(header["pixdim"][1 : len(shape) + 1], dtype=np.float64)
    if (sides < 0).any():
        raise DataError(
            f"{path}: its pixdim {sides.tolist()} is negative along an axis, which ITK takes for mirrored and nibabel "
            "does not, so masks would lie elsewhere in one of them. Save nib.Nifti1Image(image.dataobj, image.affine) "
            "of nibabel where its affine is right"
        )
    of_itk = read_grid(path)
    # Of NIfTI-1, ITK refuses what is sheared by more than .006 degrees, and NIfTI-2 it does not know.
    refused = of_itk is None and not isinstance(header, Nifti2Header)
    for grid in stated:
        if refused or grid.shift(grid.upright, size) > NOTICEABLE_SHIFT:
            raise sheared(path, grid, size, _ON_SHEAR)
    of_itk = of_itk or next(iter(stated), None)
    if of_itk is None:
        raise DataError(f"{path}: its header describes no grid (pixdim {sides.tolist()}); correct it")
    if not stated:
        known = bool((np.isfinite(sides) & (sides > 0)).all()) and not _says_nothing(header, sides)
        return replace(of_itk, spacing=of_itk.spacing if known else None, header=carried)
    _compare_statements(path, header, stated, size)
    nearest = min(stated, key=lambda grid: grid.shift(of_itk, size))
    if (shift := nearest.shift(of_itk, size)) > NOTICEABLE_SHIFT:
        warn_once(
            f"{path}: a pixel is {_in_mm(of_itk)} by its pixdim and {_in_mm(nearest)} by its sform. Sizes are counted "
            f"by the sform; ITK takes the pixdim, which places a pixel up to {shift:.2g} of its side from where "
            "nibabel does. image.set_sform(...) of nibabel sets both"
        )
        return replace(nearest, header=carried, alternative=of_itk)
    farthest = max(stated, key=lambda grid: grid.shift(of_itk, size))
    differs = farthest.shift(of_itk, size) > NOTICEABLE_SHIFT
    return replace(of_itk, header=carried, alternative=farthest if differs else None)


def _says_nothing(header: Any, sides: npt.NDArray[np.float64]) -> bool:
    """Whether distances are those that a header has before anybody sets them: 1 along every axis, of no unit."""
    return bool((sides == 1).all()) and header.get_xyzt_units()[0] == "unknown"


def _compare_statements(path: Path, header: Any, stated: list[Geometry], size: tuple[int, ...]) -> None:
    """Warns where sform and qform place pixels apart.

    Raises:
        DataError: They differ in more than a place: sizes in mm, or left and right, would be anybody's guess.
    """
    if len(stated) < 2:
        return
    sform, qform = stated
    shift = sform.shift(qform, size)
    if shift <= NOTICEABLE_SHIFT:
        return
    names = f"sform (code {int(header['sform_code'])}) and qform (code {int(header['qform_code'])})"
    assert sform.spacing is not None
    assert qform.spacing is not None
    if not np.allclose(sform.spacing, qform.spacing, rtol=NOTICEABLE_SHIFT, atol=0):
        raise DataError(
            f"{path}: its {names} say two sizes of its pixels, {_in_mm(sform)} and {_in_mm(qform)}. Set the wrong "
            "one to the right one: image.set_sform(...), image.set_qform(...) of nibabel"
        )
    ours, theirs = (np.reshape(grid.direction, (grid.ndim, grid.ndim)) for grid in stated)
    if float(np.sum(ours * theirs, axis=0).min()) < np.cos(np.pi / 4):
        raise DataError(
            f"{path}: its {names} point its axes in other directions, {np.round(ours, 3).tolist()} and "
            f"{np.round(theirs, 3).tolist()}: left and right, or the axes themselves, may be exchanged. Set the wrong "
            "one to the right one: image.set_sform(...), image.set_qform(...) of nibabel"
        )
    warn_once(
        f"{path}: its {names} place a pixel up to {shift * min(sform.spacing):.3g} mm apart, {shift:.2g} of its side. "
        "nibabel, FSL and SPM take the sform, and ITK, by the codes, one of them. Its masks carry both and lie on the "
        "image in each"
    )


def _in_mm(grid: Geometry) -> str:
    return " x ".join(f"{side:.4g}" for side in grid.spacing or ()) + " mm"


def _stated_grids(header: Any, ndim: int) -> list[Geometry]:
    """The grids of sform and qform, of those that have a code, on ITK's axes and in mm.

    Raises:
        ValueError: An axis has no length, or a quaternion is none.
        KeyError: The unit is unknown.
    """
    grids = []
    for affine in (header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]):
        if affine is None or (ndim == 2 and affine[2, :2].any()):
            continue  # A plane that leaves x and y cannot be said in two axes.
        matrix = _TO_LPS @ affine
        matrix[:3] *= _MM[header.get_xyzt_units()[0]]
        chosen = [*range(ndim), 3]
        grids.append(Geometry.from_affine(matrix[np.ix_(chosen, chosen)]))
    return grids
