"""Segments that name themselves, put onto the grid of an image however the two grids lie to each other."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfm_rl.data.labels import read_label_ids
from medfm_rl.data.segmentations.segments import Segment, Segmentation
from medfm_rl.data.segmentations.slicer import read_slicer_segmentation
from medfm_rl.errors import DataError
from medfm_rl.types import Geometry, LabelSchema

SCHEMA = LabelSchema.from_structures({"liver": 1, "spleen": 2})
SPACING, SHAPE = (1.0, 1.5, 2.5), (6, 5, 7)
ORDERS = itertools.permutations(("RL", "AP", "SI"))
CODES = ["".join(letters) for order in ORDERS for letters in itertools.product(*order)]


def geometry_of(image: sitk.Image) -> Geometry:
    return Geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())


@pytest.mark.parametrize("code", CODES)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(low=st.tuples(*(st.integers(0, side - 2) for side in SHAPE)), seed=st.integers(0, 99))
def test_a_part_of_a_volume_is_put_back_from_every_orientation(code: str, low: tuple[int, ...], seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 3, SHAPE).astype(np.uint8)
    part = tuple(slice(start, None) for start in low)
    kept = np.zeros_like(mask)
    kept[part] = mask[part]
    image = sitk.GetImageFromArray(mask)
    image.SetSpacing(SPACING)
    image.SetOrigin((-20.0, 4.0, 100.0))
    turned = sitk.DICOMOrient(image[tuple(part[::-1])], code)
    regions = sitk.GetArrayFromImage(turned)
    found = Segmentation(
        Path("mask"),
        [Segment.of(name, number, regions == number) for name, number in (("liver", 1), ("spleen", 2))],
        geometry_of(turned),
    )
    assert np.array_equal(found.label_ids(SCHEMA, SHAPE, geometry_of(image)), kept)


def test_a_segment_beyond_its_image_is_refused_with_what_lies_outside() -> None:
    own = Geometry(SPACING, (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    region = np.zeros(SHAPE, dtype=bool)
    region[1:5, 2, 3] = True
    found = Segmentation(Path("mask"), [Segment.of("liver", 1, region)], own)
    with pytest.raises(DataError, match="3 of 4 voxels of segment liver lie outside its image"):
        found.label_ids(SCHEMA, (2, 5, 7), own)
    far = Geometry(SPACING, (1000.0, 0.0, 0.0), own.direction)
    with pytest.raises(DataError, match="4 of 4 voxels"):
        found.label_ids(SCHEMA, SHAPE, far)


def test_axes_that_run_along_one_another_are_another_grid() -> None:
    axes = np.eye(3)[:, [0, 0, 2]]
    own = Geometry((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(axes.ravel()))
    found = Segmentation(Path("mask"), [Segment.of("liver", 1, np.ones((2, 3, 4), dtype=bool))], own)
    with pytest.raises(DataError, match="lies on another grid"):
        found.label_ids(SCHEMA, (8, 8, 8), Geometry((1.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel())))


def test_many_organs_take_the_memory_of_what_they_fill(tmp_path: Path) -> None:
    """A file of a hundred organs holds a byte a voxel, and a mask of the whole volume for each would be a hundred."""
    names = [f"organ {number}" for number in range(1, 101)]
    mask = np.zeros((40, 100, 100), dtype=np.uint8)
    for number in range(1, 101):
        row, column = divmod(number - 1, 10)
        mask[10:30, 10 * row : 10 * row + 8, 10 * column : 10 * column + 8] = number
    image = sitk.GetImageFromArray(mask)
    for index, name in enumerate(names):
        image.SetMetaData(f"Segment{index}_Name", name)
        image.SetMetaData(f"Segment{index}_LabelValue", str(index + 1))
        image.SetMetaData(f"Segment{index}_Layer", "0")
    path = tmp_path / "organs.seg.nrrd"
    sitk.WriteImage(image, str(path))
    tracemalloc.start()
    found = read_slicer_segmentation(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None
    assert most < 12 * mask.size
    schema = LabelSchema.from_structures({name: number for number, name in enumerate(names, 1)})
    assert np.array_equal(read_label_ids(path, schema, mask.shape, geometry_of(image)), mask)
