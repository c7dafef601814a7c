"""Reading and writing images and masks with SimpleITK: NIfTI, MHD/MHA, NRRD, PNG and DICOM."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medfm_rl.data.files import cannot_be_read, hash_file, hash_listing, hash_path, is_folder, replace_on_success
from medfm_rl.data.itk_paths import itk_path
from medfm_rl.errors import DataError
from medfm_rl.types import FloatArray, Geometry, IntArray, LabelMap, LabelSchema

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm")
_PLACE = ("0020|0032", "0020|0037")
"""The DICOM fields Image Position (Patient) and Image Orientation (Patient)."""
_PIXEL_FIELD = re.compile(rb"\s*ElementDataFile\s*[=:]\s*(.+?)\s*$")
_WITHOUT_SPACING = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def image_suffix(path: Path) -> str | None:
    """The suffix of a readable image file (".nii.gz" as one), or None."""
    return next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), None)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content: in archives their names end in .dcm, in a number, or not at all.

    A file that may not be read is not said to be.
    """
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def holds_spacing(path: Path) -> bool:
    """Whether files of this kind say how far apart pixels are."""
    return path.suffix.lower() not in _WITHOUT_SPACING


def image_stem(path: Path) -> str:
    """The file name without its image suffix."""
    return path.name[: -len(image_suffix(path) or "")] if image_suffix(path) else path.name


def pixel_files(path: Path) -> list[Path]:
    """The files beside an image that hold its pixels: those that the header of a .mhd names, which may be missing.

    None where the pixels lie in the file itself, as in every other format.

    Raises:
        DataError: The header cannot be read.
    """
    if image_suffix(path) != ".mhd":
        return []
    try:
        with path.open("rb") as file:
            # The field is the last of the header; what follows it are names, or pixels.
            named = next((found[1] for line in file if (found := _PIXEL_FIELD.match(line))), b"LOCAL")
            listed = [line.strip() for line in file] if named.startswith(b"LIST") else [named]
    except OSError as error:
        raise cannot_be_read(path, error) from error
    if named.upper() == b"LOCAL":
        return []
    names = [os.fsdecode(name) for name in listed if name]
    if names and "%" in names[0]:
        # One file for each slice: a pattern, and the first and last number.
        pattern = path.parent / names[0].split()[0]
        return sorted(pattern.parent.glob(re.sub(r"%\d*d", "*", glob.escape(pattern.name))))
    return [path.parent / name for name in names]


def hash_image(path: Path) -> str:
    """SHA-256 of an image: of the file, or of a folder such as a DICOM series.

    Of a .mhd it is that of a folder that holds the header and the files with its pixels.

    Raises:
        DataError: A file is missing, or cannot be read.
    """
    own, beside = hash_path(path), pixel_files(path)
    if not beside:
        return own
    return hash_listing({path.name: own, **{os.path.relpath(file, path.parent): hash_file(file) for file in beside}})


def read_image(source: Path | Sequence[Path]) -> tuple[FloatArray, Geometry]:
    """Reads an image.

    Args:
        source: A file, a folder with one DICOM series, or one file per channel, all on one grid.

    Returns:
        Pixels `(C, *S)` in the units of the file and their geometry. A volume of one slice becomes 2-D, and its
        geometry keeps the volume's grid. Spacing is None for formats that carry none (PNG, JPEG, BMP, TIFF).

    Raises:
        DataError: A file is missing, empty, truncated, of an unknown kind, holds NaN or infinity or only one value, or
            the channels lie on different grids.
    """
    paths = [source] if isinstance(source, Path) else list(source)
    channels, geometries = zip(*(_read(path) for path in paths), strict=True)
    for path, channel, geometry in zip(paths[1:], channels[1:], geometries[1:], strict=True):
        if channel.shape[1:] != channels[0].shape[1:] or not geometry.matches(geometries[0]):
            raise DataError(
                f"{path}: its grid {channel.shape[1:]} differs from that of {paths[0].name} {channels[0].shape[1:]}; "
                "all channels of a case must lie on one grid"
            )
    image = np.concatenate(channels).astype(np.float32)
    if not np.isfinite(image).all():
        raise DataError(f"{paths[0]}: the image holds NaN or infinite values; repair or leave out this file")
    if image.min() == image.max():
        raise DataError(f"{paths[0]}: every pixel has the value {image.flat[0]:g}: there is nothing to segment")
    return image, geometries[0]


def read_labels(
    path: Path,
    schema: LabelSchema,
    image_shape: tuple[int, ...],
    geometry: Geometry,
    in_file: LabelSchema | None = None,
) -> LabelMap:
    """Reads the mask of an image as class indices `(*S)`.

    Args:
        path: The mask.
        schema: Structures that the class indices stand for.
        image_shape: Size of the image that the mask belongs to, `(*S)`.
        geometry: Geometry of that image.
        in_file: What the integers in the file mean, where others stand there than `schema` says; its structures are
            some of those of `schema`.

    Raises:
        DataError: The file cannot be read, lies on another grid, or holds labels that the schema does not know.
    """
    own = schema if in_file is None else in_file
    found = own.to_indices(read_label_ids(path, image_shape, geometry), str(path))
    return np.array([schema.index_of(name) for name in own.names], dtype=np.uint8)[found]


def read_label_ids(path: Path, image_shape: tuple[int, ...], geometry: Geometry) -> IntArray:
    """Reads the mask of an image as the integers that stand in the file, `(*S)`.

    Raises:
        DataError: The file cannot be read, lies on another grid, or does not hold integers.
    """
    pixels, own = _read(path)
    if pixels.shape[0] != 1:
        raise DataError(f"{path}: a mask has one channel, this file has {pixels.shape[0]}")
    if pixels.shape[1:] != image_shape:
        raise DataError(f"{path}: the mask has size {pixels.shape[1:]}, its image {image_shape}; they must be equal")
    if not own.matches(geometry):
        ours, theirs = (own.volume, geometry.volume) if own.volume and geometry.volume else (own, geometry)
        raise DataError(
            f"{path}: the mask lies elsewhere in space than its image (spacing {ours.spacing} and {theirs.spacing}, "
            f"origin {ours.origin} and {theirs.origin}, direction {ours.direction} and {theirs.direction}); resample "
            "one onto the other"
        )
    return as_label_ids(pixels[0], str(path))


def as_label_ids(values: npt.ArrayLike, origin: str) -> IntArray:
    """The values of a mask as integers, of its shape.

    Args:
        values: Of any type.
        origin: Where they come from, for the message.

    Raises:
        DataError: Not all of them are integers.
    """
    found = np.asarray(values)
    if not np.array_equal(found, np.round(found)):
        raise DataError(f"{origin}: a mask holds integers, this one does not; was it interpolated?")
    integers: IntArray = found.astype(np.int64)
    return integers


def write_labels(path: Path, labels: LabelMap, geometry: Geometry, schema: LabelSchema) -> None:
    """Writes class indices `(*S)` as the integers of the schema, on the grid of an image, whole or not at all.

    The mask of a slice of a volume is written as a volume of one slice.

    Raises:
        DataError: The file cannot be written.
    """
    _write(path, schema.to_ids(labels), geometry)


def hash_labels(labels: LabelMap) -> str:
    """SHA-256 of a mask's shape and class indices, whatever file it came from."""
    digest = hashlib.sha256(repr(labels.shape).encode())
    digest.update(np.ascontiguousarray(labels, dtype=np.uint8).tobytes())
    return digest.hexdigest()


def write_image(path: Path, image: npt.NDArray[Any], geometry: Geometry) -> None:
    """Writes one channel `(*S)`, float32 or uint8, on the grid of an image, whole or not at all.

    A slice of a volume is written as a volume of one slice; `geometry.plane` writes its plane alone.

    Raises:
        DataError: PNG was asked for and the pixels are not uint8, or the file cannot be written.
        ValueError: The image has other dimensions than the grid.
    """
    if image.ndim != geometry.ndim:
        raise ValueError(f"{path}: the image is {image.ndim}-D and its grid {geometry.ndim}-D")
    if not holds_spacing(path) and image.dtype != np.uint8:
        raise DataError(f"{path}: {path.suffix} holds 8-bit pixels only; write real values to .nii.gz or .mha")
    _write(path, image, geometry)


def _read(path: Path) -> tuple[FloatArray, Geometry]:
    if is_folder(path):
        image = _read_dicom_series(path)
    else:
        _require_content(path)
        if image_suffix(path) is None and not is_dicom(path):
            raise DataError(f"{path}: unknown kind of image; known are {', '.join(IMAGE_SUFFIXES)} and DICOM folders")
        _check_gzip(path)
        _check_nifti_length(path)
        with itk_path(path, pixel_files(path)) as name:
            image = _execute(sitk.ImageFileReader(), name, path)
    return _to_array(image, holds_spacing(path))


def _require_content(path: Path) -> None:
    """ITK calls a file that it may not read damaged."""
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise cannot_be_read(path, error) from error
    if empty:
        raise DataError(f"{path}: the file is empty")


def _check_gzip(path: Path) -> None:
    """ITK reads a truncated .nii.gz without a word and leaves what is missing as it finds it."""
    if path.suffix.lower() != ".gz":
        return
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read; the file is damaged or truncated ({error})") from error


def _check_nifti_length(path: Path) -> None:
    """The same for a .nii that holds fewer bytes than its header promises."""
    if path.suffix.lower() != ".nii":
        return
    reader = sitk.ImageFileReader()
    with itk_path(path) as name:
        reader.SetFileName(name)
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            return  # Reading it says why.
    pixel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    promised = int(np.prod(reader.GetSize())) * sitk.GetArrayViewFromImage(pixel).nbytes
    if path.stat().st_size < promised:
        raise DataError(f"{path}: cannot be read; the file is truncated ({path.stat().st_size} of {promised} bytes)")


def _read_dicom_series(folder: Path) -> sitk.Image:
    with itk_path(folder) as place:
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(place)
        if len(series) != 1:
            raise DataError(f"{folder}: a DICOM case is a folder with one series, this one holds {len(series)}")
        reader = sitk.ImageSeriesReader()
        reader.MetaDataDictionaryArrayUpdateOn()
        names = reader.GetGDCMSeriesFileNames(place, series[0])
        image = _execute(reader, names, folder)
        _check_slice_steps(reader, names, folder)
    return image


def _check_slice_steps(reader: Any, names: Sequence[str], folder: Path) -> None:
    """ITK reads a series that lacks a slice without a word, and spreads the others over its length."""
    slices = range(len(names))
    if len(slices) < 3 or not all(reader.HasMetaDataKey(index, tag) for index in slices for tag in _PLACE):
        return
    try:
        # Image Position (x, y, z), and Image Orientation, the directions of rows and of columns.
        positions, axes = (
            np.array([[float(value) for value in reader.GetMetaData(index, tag).split("\\")] for index in slices])
            for tag in _PLACE
        )
    except ValueError:
        return  # They are empty, as in pictures that are no slices of a body.
    steps = abs(np.diff(positions @ np.cross(axes[0, :3], axes[0, 3:])))
    usual = float(np.median(steps))
    other = int(abs(steps - usual).argmax())
    # Headers round positions, to a hundredth of a millimetre for one.
    if abs(steps[other] - usual) > 0.01 * usual + 0.01:
        first, second = (Path(name).name for name in names[other : other + 2])
        raise DataError(
            f"{folder}: from slice {first} to {second} it is {steps[other]:.4g} mm and usually {usual:.4g} mm, so "
            "positions and spacing would be wrong; are slices missing, or of another series? Complete the series, or "
            "resample it to equal steps"
        )


def _execute(reader: Any, names: Any, path: Path) -> sitk.Image:
    if isinstance(reader, sitk.ImageFileReader):
        reader.SetFileName(names)
    else:
        reader.SetFileNames(names)
    shows_warnings = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return reader.Execute()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise DataError(
                f"{path}: cannot be read; its axes are sheared, not at right angles to each other. Resample it to a "
                "grid with right angles or, where that is meant and its qform is right, set its sform to the qform"
            ) from error
        raise DataError(f"{path}: cannot be read; the file is damaged, truncated or not what its name says") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shows_warnings)


def _to_array(image: sitk.Image, has_spacing: bool) -> tuple[FloatArray, Geometry]:
    components = image.GetNumberOfComponentsPerPixel()
    array = sitk.GetArrayFromImage(image)
    pixels = np.moveaxis(array, -1, 0) if components > 1 else array[None]
    ndim = image.GetDimension()
    spacing, origin = image.GetSpacing(), image.GetOrigin()
    geometry = Geometry(tuple(spacing) if has_spacing else None, tuple(origin), tuple(image.GetDirection()))
    if ndim == 3 and pixels.shape[1] == 1:
        pixels, geometry = pixels[:, 0], Geometry.slice_of(geometry)
    return pixels.astype(np.float32), geometry


def _write(path: Path, pixels: npt.NDArray[Any], geometry: Geometry) -> None:
    if path.suffix.lower() == ".mhd":
        raise DataError(f"{path}: the pixels of an .mhd lie in a second file, so it is never whole; write .mha")
    if geometry.volume is not None and holds_spacing(path):
        pixels, geometry = pixels[None], geometry.volume
    with replace_on_success(path) as temporary:
        try:
            image = sitk.GetImageFromArray(pixels)
            image.SetSpacing(geometry.spacing or (1.0,) * geometry.ndim)
            image.SetOrigin(geometry.origin)
            image.SetDirection(geometry.direction)
            with itk_path(temporary) as name:
                sitk.WriteImage(image, name, useCompression=True)
        except RuntimeError as error:
            raise DataError(
                f"{path}: cannot be written; is the disk full, the suffix unknown, or the grid none that the format "
                f"holds (spacing {geometry.spacing}, direction {geometry.direction})?"
            ) from error
