"""Probabilities of classes that a segmenter wrote beside its masks: nnU-Net's .npz files, or NIfTI."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.names import file_of_case
from medfm_rl.data.nifti import NIFTI_SUFFIXES, read_nifti_maps
from medfm_rl.errors import DataError
from medfm_rl.types import Case, FloatArray, LabelMap, LabelSchema

_NPZ: Final = ".npz"
_KEY: Final = "probabilities"
"""The array in the files of nnU-Net's `--save_probabilities`."""
_ROUNDING: Final = 0.02
"""How far the probabilities of a pixel may be from a sum of 1: files are often written in half precision."""
_LEAST_AGREEMENT: Final = 0.5


def find_probabilities(folder: Path, files: Sequence[CaseFile]) -> dict[str, Path]:
    """Files of probabilities in a folder, by the case whose name they have; not every case need have one.

    Raises:
        DataError: The folder is missing, holds none of any case, or two of one.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    found: dict[str, Path] = {}
    for file in files:
        own = [
            path for suffix in (_NPZ, *NIFTI_SUFFIXES) if (path := file_of_case(folder, file.case_id, suffix)).exists()
        ]
        if len(own) > 1:
            raise DataError(
                f"{folder}: case {file.case_id} has probabilities in {' and '.join(path.name for path in own)}; remove "
                "one of them"
            )
        if own:
            found[file.case_id] = own[0]
    if not found:
        raise DataError(
            f"{folder}: no file of probabilities has the name of an image ({files[0].case_id}{_NPZ} for one); nnU-Net "
            "writes them with --save_probabilities"
        )
    return found


def confidence_of(path: Path, case: Case, labels: LabelMap, schema: LabelSchema, in_files: LabelSchema) -> FloatArray:
    """The probability that a segmenter gave to the class that its mask has at each pixel, `(*S)` in [0, 1].

    Args:
        path: Its probabilities: `probabilities` of an .npz file, `(K, *S)` as nnU-Net writes them, or a NIfTI file with
            the class as last axis. Classes are in the order of their integers, the background's first.
        case: The image.
        labels: The mask, class indices `(*S)` of `schema`.
        schema: Structures of the mask.
        in_files: The integers that stand for them in the segmenter's own files.

    Raises:
        DataError: The file cannot be read, or does not fit image, classes or mask.
    """
    if schema.overlaps:
        raise DataError(
            f"{path}: {', '.join(schema.structures)} overlap, and probabilities are taken of classes that exclude each "
            "other; give the masks alone"
        )
    maps = _maps(path, case)
    if len(maps) != in_files.num_classes:
        raise DataError(
            f"{path}: has probabilities of {len(maps)} classes, and the masks have {in_files.num_classes} (the "
            f"background, {', '.join(in_files.structures)}); a probability for each of these is needed"
        )
    if not np.isfinite(maps).all() or maps.min() < 0 or maps.max() > 1 + _ROUNDING:
        raise DataError(f"{path}: holds numbers that are no probabilities: they must lie in [0, 1]; is it of logits?")
    off = float(np.abs(maps.sum(axis=0) - 1).max())
    if off > _ROUNDING:
        raise DataError(
            f"{path}: the probabilities of a pixel sum to 1 but for {off:.2g}; classes that exclude each other are "
            "needed"
        )
    order = [sorted(in_files.ids).index(number) for number in in_files.ids]
    channel = {name: order[index] for index, name in enumerate(in_files.names)}
    # A structure that the segmenter does not know is in none of its masks.
    ordered = np.stack([maps[channel[name]] if name in channel else np.zeros_like(maps[0]) for name in schema.names])
    _require_mask(path, ordered, labels)
    found: FloatArray = np.take_along_axis(ordered, labels[None].astype(np.intp), axis=0)[0].clip(0, 1)
    return found.astype(np.float32)


def _maps(path: Path, case: Case) -> FloatArray:
    """`(K, *S)` on the grid of the image."""
    if path.suffix == _NPZ:
        maps = _read_npz(path)
    else:
        maps, geometry = read_nifti_maps(path, len(case.shape) == 2)
        known = geometry.spacing is not None and case.geometry.spacing is not None
        if known and geometry.ndim == case.geometry.ndim and not geometry.matches(case.geometry):
            raise DataError(f"{path}: lies elsewhere than the image of case {case.case_id}; give those of this image")
    if maps.ndim == len(case.shape) + 2 and maps.shape[1] == 1:
        maps = maps[:, 0]
    if maps.shape[1:] != case.shape:
        raise DataError(
            f"{path}: has size {maps.shape[1:]} for each class, and the image of case {case.case_id} {case.shape}; "
            "probabilities are needed on the grid of the image, as nnU-Net writes them"
        )
    return maps


def _read_npz(path: Path) -> FloatArray:
    try:
        # A file of our own: NumPy leaves that of a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            if _KEY not in content:
                raise DataError(
                    f"{path}: has no array {_KEY!r}, but {', '.join(content.files) or 'nothing'}; nnU-Net's "
                    "--save_probabilities writes such a file"
                )
            return np.asarray(content[_KEY], dtype=np.float32)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read; the file is damaged or no .npz file ({error})") from error


def _require_mask(path: Path, maps: FloatArray, labels: LabelMap) -> None:
    """Refuses probabilities of another mask; what was cleaned up after the segmentation may differ."""
    likeliest = maps.argmax(axis=0)
    there = (likeliest > 0) | (labels > 0)
    agreement = float((likeliest == labels)[there].mean()) if there.any() else 1.0
    if agreement < _LEAST_AGREEMENT:
        raise DataError(
            f"{path}: is of another mask: the likeliest classes agree with the mask in {agreement:.0%} of the pixels "
            "where either has a structure; give the probabilities that the mask was made from, with classes in the "
            "order of their integers"
        )


def require_all(found: Mapping[str, Path], case_id: str) -> Path:
    """The file of a case.

    Raises:
        DataError: There is none.
    """
    if case_id not in found:
        folder = next(iter(found.values())).parent
        raise DataError(f"case {case_id}: there are no probabilities of that name in {folder}")
    return found[case_id]
