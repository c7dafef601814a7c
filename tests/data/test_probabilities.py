"""Probabilities that come with masks: nnU-Net's files and NIfTI, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.probabilities import confidence_of, find_probabilities
from medfm_rl.errors import DataError
from medfm_rl.types import Case, Geometry, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 2, "MYO": 1})


def case_of(shape: tuple[int, ...]) -> Case:
    return Case("a", "a", np.zeros((1, *shape), np.float32), Geometry.unknown(len(shape)))


def maps_of(shape: tuple[int, ...]) -> np.ndarray:
    """Probabilities of background, integer 1 (MYO) and integer 2 (LV): .6 of MYO in the upper half, else .8 of LV."""
    maps = np.empty((3, *shape), np.float32)
    upper = np.indices(shape)[-2] < shape[-2] // 2
    maps[0], maps[1], maps[2] = 0.1, np.where(upper, 0.6, 0.1), np.where(upper, 0.3, 0.8)
    return maps


def mask_of(shape: tuple[int, ...]) -> np.ndarray:
    """Class indices of the likeliest: MYO is class 2 and LV class 1 of the schema."""
    return np.where(np.indices(shape)[-2] < shape[-2] // 2, 2, 1).astype(np.uint8)


@pytest.mark.parametrize("shape", [(6, 5), (4, 6, 5)])
@pytest.mark.parametrize("name", ["a.npz", "a.nii.gz"])
def test_the_probability_of_the_class_in_the_mask_is_read_by_integer(
    tmp_path: Path, shape: tuple[int, ...], name: str
) -> None:
    maps = maps_of(shape)
    path = tmp_path / name
    if name.endswith("npz"):
        # nnU-Net writes images as volumes of one slice.
        np.savez_compressed(path, probabilities=(maps[:, None] if len(shape) == 2 else maps).astype(np.float16))
    else:
        nib.save(nib.Nifti1Image(maps.T, np.eye(4)), path)
    found = confidence_of(path, case_of(shape), mask_of(shape), SCHEMA, SCHEMA)
    expected = np.where(np.indices(shape)[-2] < shape[-2] // 2, 0.6, 0.8)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_classes_that_the_segmenter_does_not_know_have_no_probability(tmp_path: Path) -> None:
    maps = np.stack([np.full((4, 4), 0.2), np.full((4, 4), 0.8)]).astype(np.float32)
    np.savez(tmp_path / "a.npz", probabilities=maps)
    in_files = LabelSchema.from_structures({"MYO": 255})
    mask = np.full((4, 4), 2, np.uint8)
    mask[0, 0] = 1
    found = confidence_of(tmp_path / "a.npz", case_of((4, 4)), mask, SCHEMA, in_files)
    assert (found[0, 0], found[1, 1]) == pytest.approx((0.0, 0.8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda maps: maps[:2], "of 2 classes"),
        (lambda maps: maps[:, :-1], "on the grid of the image"),
        (lambda maps: 20 * maps, "no probabilities"),
        (lambda maps: maps * np.nan, "no probabilities"),
        (lambda maps: 0.8 * maps, "sum to 1"),
        (lambda maps: maps[[0, 2, 1]], "of another mask"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change, message: str) -> None:
    np.savez(tmp_path / "a.npz", probabilities=change(maps_of((6, 5))))
    with pytest.raises(DataError, match=message):
        confidence_of(tmp_path / "a.npz", case_of((6, 5)), mask_of((6, 5)), SCHEMA, SCHEMA)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, softmax=maps_of((6, 5)))
    with pytest.raises(DataError, match="no array 'probabilities', but softmax"):
        confidence_of(path, case_of((6, 5)), mask_of((6, 5)), SCHEMA, SCHEMA)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="damaged"):
        confidence_of(path, case_of((6, 5)), mask_of((6, 5)), SCHEMA, SCHEMA)


def test_files_are_found_by_the_names_of_cases(tmp_path: Path) -> None:
    files = [CaseFile("a", "a", (tmp_path / "a.png",)), CaseFile("b", "b", (tmp_path / "b.png",))]
    with pytest.raises(DataError, match="no file of probabilities"):
        find_probabilities(tmp_path, files)
    np.savez(tmp_path / "a.npz", probabilities=np.zeros(1))
    assert find_probabilities(tmp_path, files) == {"a": tmp_path / "a.npz"}
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(DataError, match="remove one of them"):
        find_probabilities(tmp_path, files)
