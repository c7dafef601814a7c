from __future__ import annotations

import warnings
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage

from medfm_rl.adapters.nnunet.orientation import Orientation
from medfm_rl.data.images import read_image, write_image
from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import DataError
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.transform import AssessQualityd
from medfm_rl.settings import DataSettings
from medfm_rl.types import Case, Geometry, LabelMap, LabelSchema


class Listener:
    """Stands for a controller, and keeps what it is asked about."""

    schema = LabelSchema.from_structures({"LV": 1})

    def assess(self, case: Case, labels: LabelMap) -> str:
        self.case, self.labels = case, labels
        return "report"


def heard(image: Any, **keys: Any) -> Case:
    """The case that a controller is asked about; its mask is the first voxel of the file."""
    listener = Listener()
    mask = np.zeros(image.shape[1:], np.uint8)
    mask[(0,) * mask.ndim] = 1
    names = {"case_key": "name", "patient_key": "who"}
    arguments = {argument: key for argument, key in names.items() if key in keys}
    transform = AssessQualityd(listener, **arguments)  # type: ignore[arg-type]
    assert transform({"image": image, "pred": mask, **keys})["quality"] == "report"
    assert listener.labels.shape == listener.case.shape
    assert listener.labels.sum() == listener.labels[(0,) * listener.labels.ndim] == 1
    return listener.case


def load(path: Path) -> MetaTensor:
    with warnings.catch_warnings():
        # A reader that is not used here misses a decoder.
        warnings.simplefilter("ignore")
        return LoadImage(ensure_channel_first=True)(str(path))


ORIENTATIONS = [
    "".join(axes[index][sign >> index & 1] for index in range(3))
    for axes in permutations([("R", "L"), ("A", "P"), ("S", "I")])
    for sign in (0, 3, 5, 6)
]


def test_a_pipeline_of_monai_gets_the_report_that_the_controller_gives(quality_run: Path) -> None:
    controller = QualityController.load(quality_run)
    labelled = find_cases(DataSettings(path=quality_run.parent / "data"))[0].read_labelled(controller.schema)
    case, mask = labelled.case, labelled.ground_truth
    spacing = case.geometry.spacing
    assert spacing is not None
    pixels = torch.from_numpy(np.ascontiguousarray(case.image.transpose(0, 2, 1)))
    image = MetaTensor(pixels, affine=torch.diag(torch.tensor([*spacing, 1.0, 1.0])))
    given = {"image": image, "pred": controller.schema.to_ids(mask).T[None], "other": 1, "name": "a"}
    found = AssessQualityd(controller, case_key="name")(given)
    expected = controller.assess(case, mask)
    assert found["quality"].scores == expected.scores
    assert [rule.measured for rule in found["quality"].rules] == pytest.approx(
        [rule.measured for rule in expected.rules]
    )
    assert found["other"] == 1
    assert "quality" not in given


def test_a_mask_that_does_not_fit_is_an_error(quality_run: Path) -> None:
    transform = AssessQualityd(QualityController.load(quality_run), label_key="mask", case_key="name")
    image = np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32)
    with pytest.raises(DataError, match="mask: label 9"):
        transform({"image": image, "mask": np.full((32, 32), 9), "name": "a"})
    with pytest.raises(DataError, match="they must be equal"):
        transform({"image": image, "mask": np.ones((32, 31), np.uint8), "name": "a"})


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_a_volume_is_seen_as_score_sees_the_same_file(tmp_path: Path, code: str) -> None:
    """Also by adapters that turn it: they go by the direction."""
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    image.SetSpacing((0.5, 0.8, 3.0))
    image.SetOrigin((10, -20, 30))
    image.SetDirection(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(code))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    pixels, geometry = read_image(tmp_path / "a.nii.gz")
    case = heard(load(tmp_path / "a.nii.gz"))
    assert np.array_equal(case.image, pixels)
    assert case.geometry.matches(geometry)
    assert Orientation.of(case).code == code
    ours, theirs = (Orientation.of(one).to_canonical(one)[0] for one in (case, Case("a", "a", pixels, geometry)))
    assert np.array_equal(ours, theirs)


def test_an_oblique_volume_keeps_its_direction(tmp_path: Path) -> None:
    cosine, sine = np.cos(0.3), np.sin(0.3)
    geometry = Geometry((0.5, 0.8, 3.0), (10.0, -20.0, 30.0), (cosine, 0, sine, 0, 1, 0, -sine, 0, cosine))
    write_image(tmp_path / "a.nii.gz", np.arange(24, dtype=np.float32).reshape(2, 3, 4), geometry)
    assert heard(load(tmp_path / "a.nii.gz")).geometry.matches(geometry)


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (0, 0, -1, 1, 0, 0, 0, -1, 0)])
def test_a_volume_of_one_slice_is_an_image_here_too(tmp_path: Path, direction: tuple[float, ...]) -> None:
    image = sitk.GetImageFromArray(np.arange(20, dtype=np.float32).reshape(1, 4, 5))
    image.SetSpacing((0.5, 0.8, 3.0))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    pixels, geometry = read_image(tmp_path / "a.nii.gz")
    loaded = load(tmp_path / "a.nii.gz")
    assert loaded.shape == (1, 5, 4, 1)
    case = heard(loaded)
    assert np.array_equal(case.image, pixels)
    assert case.geometry.volume is not None
    assert case.geometry.matches(geometry)


def test_an_image_lies_where_its_file_says(tmp_path: Path) -> None:
    geometry = Geometry((0.5, 0.8), (10.0, -3.0), (0.0, 1.0, -1.0, 0.0))
    write_image(tmp_path / "a.nii.gz", np.arange(20, dtype=np.float32).reshape(4, 5), geometry)
    case = heard(load(tmp_path / "a.nii.gz"))
    assert np.array_equal(case.image, read_image(tmp_path / "a.nii.gz")[0])
    assert case.geometry.matches(geometry)


def test_an_affine_in_the_axes_of_itk_is_taken_as_it_is() -> None:
    pixels = torch.arange(24.0).reshape(1, 2, 3, 4)
    affine = torch.tensor([[2.0, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    places = {
        space: heard(MetaTensor(pixels, affine=affine, meta={"space": space, "filename_or_obj": "a.nii"})).geometry
        for space in ("LPS", "RAS")
    }
    assert {space: place.spacing for space, place in places.items()} == dict.fromkeys(places, (2, 3, 4))
    assert places["LPS"].origin == (5, 6, 7)
    assert places["LPS"].direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert places["RAS"].origin == (-5, -6, 7)
    assert places["RAS"].direction == (-1, 0, 0, 0, -1, 0, 0, 0, 1)


def test_the_spacing_is_unknown_where_the_file_holds_none() -> None:
    """MONAI gives a PNG an affine of 1 mm."""
    pixels = torch.arange(20.0).reshape(1, 4, 5)
    png = MetaTensor(pixels, affine=torch.eye(4), meta={"filename_or_obj": "folder/a.png"})
    for image, keys in ((png, {}), (pixels, {"name": "a"})):
        assert heard(image, **keys).geometry.spacing is None


def test_an_affine_without_an_axis_is_refused() -> None:
    image = MetaTensor(torch.ones(1, 4, 5), affine=torch.zeros(4, 4), meta={"filename_or_obj": "a.nii"})
    with pytest.raises(DataError, match="image: the affine of the image describes no grid"):
        heard(image)


def test_a_mask_that_was_interpolated_is_refused_and_not_cut() -> None:
    image = MetaTensor(torch.ones(1, 4, 5), affine=torch.eye(4), meta={"filename_or_obj": "a.nii"})
    transform = AssessQualityd(Listener())  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"pred: a mask holds integers.*interpolated"):
        transform({"image": image, "pred": np.full((4, 5), 0.999, np.float32)})
    listener = Listener()
    AssessQualityd(listener)({"image": image, "pred": np.ones((4, 5), np.float32)})  # type: ignore[arg-type]
    assert listener.labels.all()


def test_cases_have_the_names_of_their_files_and_patients_as_told(tmp_path: Path) -> None:
    pixels = torch.ones(1, 4, 5)
    image = MetaTensor(pixels, affine=torch.eye(4), meta={"filename_or_obj": "/data/p1_a.nii.gz"})
    for keys, case_id, patient in [
        # An image of the same name in another folder is of somebody else.
        ({}, "p1_a", "/data/p1_a.nii.gz"),
        ({"who": "p1"}, "p1_a", "p1"),
        ({"name": "b"}, "b", "b"),
        ({"name": "b", "who": 7}, "b", "7"),
    ]:
        case = heard(image, **keys)
        assert (case.case_id, case.patient_id) == (case_id, patient)
    with pytest.raises(DataError, match=r"image: its meta data name no file.*case_key"):
        heard(pixels)
