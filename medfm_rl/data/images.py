"""Reading and writing images and masks, whatever the format: NIfTI, DICOM, and what SimpleITK reads.

Each format has a module, which says what its pixels mean and where they lie.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medfm_rl.data.dicom import DICOM_SUFFIX, read_dicom
from medfm_rl.data.files import cannot_be_read, hash_file, hash_listing, hash_path, is_folder, replace_on_success
from medfm_rl.data.itk import read_itk, write_itk
from medfm_rl.data.nifti import NIFTI_SUFFIXES, UNKNOWN_GRID, read_nifti, require_place, write_nifti
from medfm_rl.data.segmentations.pictures import is_picture
from medfm_rl.data.text_headers import pixel_files
from medfm_rl.errors import DataError
from medfm_rl.types import FloatArray, Geometry, LabelMap, LabelSchema

IMAGE_SUFFIXES = (
    *(".nii.gz", ".nii", ".mha", ".mhd", ".seg.nrrd", ".nrrd", ".nhdr"),
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm"),
)
VIDEO_SUFFIXES = (".avi", ".mp4")
"""Files that are clips by their format; `read_image` refuses them, and `data.clips` reads them."""
_ANALYZE = (".hdr", ".img", ".img.gz")


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
    """Whether files of this kind can say how far apart pixels are."""
    return not is_picture(path)


def image_stem(path: Path) -> str:
    """The file name without its suffix of an image or video."""
    suffix = path.suffix if is_video(path) else image_suffix(path)
    return path.name[: -len(suffix)] if suffix else path.name


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_analyze(path: Path) -> bool:
    """Whether a file is one of the two of Analyze 7.5, or of NIfTI in two files, by its name."""
    return path.name.lower().endswith(_ANALYZE)


def hash_image(path: Path) -> str:
    """SHA-256 of an image: of the file, or of a folder such as a DICOM series.

    Of a header of MetaImage or NRRD it is that of a folder that holds it and the files with its pixels.

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
        geometry keeps the volume's grid. Spacing is None where the file does not say it: PNG, JPEG, BMP, TIFF, and
        other formats whose header is silent.

    Raises:
        DataError: A file is missing, empty, truncated, of an unknown kind, a clip, holds complex numbers, NaN, infinity
            or only one value, has no grid at right angles, or the channels lie on different grids.
    """
    paths = [source] if isinstance(source, Path) else list(source)
    channels, geometries = zip(*(read_pixels(path) for path in paths), strict=True)
    for path, channel, geometry in zip(paths[1:], channels[1:], geometries[1:], strict=True):
        shape = channels[0].shape[1:]
        if channel.shape[1:] != shape or not geometry.matches(geometries[0], shape):
            raise DataError(
                f"{path}: its grid {channel.shape[1:]} differs from that of {paths[0].name} {channels[0].shape[1:]}; "
                "all channels of a case must lie on one grid"
            )
    image = np.concatenate(channels).astype(np.float32)
    if not image.size:
        raise DataError(f"{paths[0]}: holds no pixel (its size is {image.shape[1:]}); the file is damaged")
    if not np.isfinite(image).all():
        count = int(image.size - np.isfinite(image).sum())
        raise DataError(
            f"{paths[0]}: the image holds NaN or infinite values ({count} of {image.size}); write the value of the "
            "background there (that of air in CT), or leave out this file"
        )
    if image.min() == image.max():
        raise DataError(f"{paths[0]}: every pixel has the value {image.flat[0]:g}: there is nothing to segment")
    return image, geometries[0]


def write_labels(path: Path, labels: LabelMap, geometry: Geometry, schema: LabelSchema) -> None:
    """Writes class indices `(*S)` as the integers of the schema, on the grid of an image, whole or not at all.

    The mask of a slice of a volume is written as a volume of one slice. Where the spacing of the image is unknown, a
    NIfTI mask says so too: no unit, no sform and no qform.

    Raises:
        DataError: The file cannot be written.
    """
    _write(path, schema.to_ids(labels), geometry)


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


def read_pixels(path: Path) -> tuple[FloatArray, Geometry]:
    """Pixels `(C, *S)` and geometry of one file or DICOM folder, whatever its values; a volume of one slice is 2-D.

    Raises:
        DataError: As in `read_image`, but for the values of the pixels.
    """
    if is_folder(path):
        pixels, geometry = read_dicom(path)
    else:
        _require_content(path)
        match image_suffix(path):
            case None if is_video(path):
                raise DataError(
                    f"{path}: a video is a clip, and one image is wanted here; give the folder that it lies in, or "
                    "write the frame to a file of its own"
                )
            case None if is_dicom(path):
                pixels, geometry = read_dicom(path)
            case None if is_analyze(path):
                raise DataError(
                    f"{path}: is Analyze, which does not say where left is, or NIfTI in two files; write it as "
                    ".nii.gz, such as by nib.save(nib.load(FILE), NEW) of nibabel, and check that left is where it is"
                )
            case None:
                raise DataError(
                    f"{path}: unknown kind of image; known are {', '.join(IMAGE_SUFFIXES)} and DICOM folders"
                )
            case suffix if suffix in NIFTI_SUFFIXES:
                pixels, geometry = read_nifti(path)
            case suffix if suffix == DICOM_SUFFIX:
                pixels, geometry = read_dicom(path)
            case _:
                pixels, geometry = read_itk(path)
    if geometry.ndim == 3 and pixels.shape[1] == 1:
        return pixels[:, 0], Geometry.slice_of(geometry)
    return pixels, geometry


def _require_content(path: Path) -> None:
    """Libraries call a file that they may not read damaged."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is no file (a pipe or a device); leave it out")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise cannot_be_read(path, error) from error
    if empty:
        raise DataError(f"{path}: the file is empty")


def _write(path: Path, pixels: npt.NDArray[Any], geometry: Geometry) -> None:
    if path.suffix.lower() in (".mhd", ".nhdr"):
        raise DataError(
            f"{path}: the pixels of an {path.suffix} lie in a second file, so it is never whole; write .mha"
        )
    if geometry.volume is not None and holds_spacing(path):
        pixels, geometry = pixels[None], geometry.volume
    is_nifti = image_suffix(path) in NIFTI_SUFFIXES
    with replace_on_success(path) as temporary:
        try:
            if is_nifti and (geometry.header is not None or geometry.spacing is None):
                write_nifti(temporary, pixels, geometry.header or UNKNOWN_GRID)
            else:
                write_itk(temporary, pixels, geometry)
        except RuntimeError as error:
            raise DataError(
                f"{path}: cannot be written; is the disk full, the suffix unknown, or the grid none that the format "
                f"holds (spacing {geometry.spacing}, direction {geometry.direction})?"
            ) from error
        if is_nifti:
            require_place(temporary, path, geometry, pixels.shape)
