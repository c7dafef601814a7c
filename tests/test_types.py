from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from medfm_rl.errors import DataError
from medfm_rl.types import Case, Geometry, LabelledCase, LabelSchema, clip_of_frame, frame_id


@given(
    ids=st.lists(st.integers(0, 255), min_size=2, max_size=6, unique=True),
    data=st.data(),
)
def test_label_ids_survive_the_way_to_indices_and_back(ids: list[int], data: st.DataObject) -> None:
    schema = LabelSchema(("background", *(f"s{i}" for i in range(len(ids) - 1))), tuple(ids))
    labels = data.draw(hnp.arrays(np.int64, (4, 5), elements=st.sampled_from(ids)))
    indices = schema.to_indices(labels)
    assert indices.max() < schema.num_classes
    assert np.array_equal(schema.to_ids(indices), labels)


def test_a_label_outside_the_schema_is_named(schema: LabelSchema) -> None:
    with pytest.raises(
        DataError, match=r"mask.nii: label 7 is not one of those that are expected \(0 background, 1 LV"
    ):
        schema.to_indices(np.array([[0, 7]]), "mask.nii")


def test_an_image_in_the_place_of_a_mask_is_asked_for_and_its_grey_values_are_not_listed(schema: LabelSchema) -> None:
    with pytest.raises(DataError, match=r"labels 4, 5, 6, 7, 8 and 3 more are not those .*; is this an image") as found:
        schema.to_indices(np.arange(12), "mask.nii")
    assert "9" not in str(found.value)
    with pytest.raises(DataError, match="label 4, 5, 6, 7, 8 is not one of those that are expected"):
        schema.to_indices(np.arange(9), "mask.nii")


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("background",), (0,)),
        (("LV", "background"), (0, 1)),
        (("background", "a", "a"), (0, 1, 2)),
        (("background", "a"), (0, 256)),
        (("background", "a"), (0,)),
    ],
)
def test_an_impossible_schema_is_refused(names: tuple[str, ...], ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"names|ids"):
        LabelSchema(names, ids)


def test_a_mask_of_another_size_than_its_image_is_refused() -> None:
    case = Case("a", "a", np.zeros((1, 4, 4), np.float32), Geometry.unknown(2))
    with pytest.raises(DataError, match=r"size \(4, 4\), its mask \(4, 5\)"):
        LabelledCase(case, np.zeros((4, 5), np.uint8))


def test_array_spacing_is_in_array_order() -> None:
    geometry = Geometry((1.0, 2.0, 3.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel().tolist()))
    assert geometry.array_spacing == (3.0, 2.0, 1.0)
    assert Geometry.unknown(2).array_spacing is None


SHAPES = st.tuples(*[st.integers(2, 300)] * 3)


@settings(deadline=None)
@given(
    size=st.floats(1e-4, 1e4),
    sides=st.tuples(*[st.floats(1, 5)] * 3),
    turn=st.tuples(*[st.floats(-3, 3)] * 3),
    shape=SHAPES,
    moved=st.sampled_from([0.0, 0.002, 0.1, 0.24, 0.26, 0.5, 3.0]),
    axis=st.integers(0, 2),
)
def test_grids_are_compared_by_the_share_of_a_pixel_whatever_its_size(
    size: float, sides: tuple[float, ...], turn: tuple[float, ...], shape: tuple[int, ...], moved: float, axis: int
) -> None:
    spacing = np.array(sides) * size
    direction = Rotation.from_euler("xyz", turn).as_matrix()
    origin = np.array([100.0, -50, 3]) * size
    away = origin + np.eye(3)[axis] * moved * spacing.min()
    ours, theirs = (Geometry(tuple(spacing), tuple(place), tuple(direction.ravel())) for place in (origin, away))
    assert ours.shift(theirs, shape) == pytest.approx(moved, abs=1e-6)
    assert ours.matches(theirs, shape) == theirs.matches(ours, shape) == (moved < 0.25)


@settings(deadline=None)
@given(size=st.floats(1e-3, 1e3), shape=SHAPES, stretched=st.floats(-1e-3, 1e-3), angle=st.floats(-1e-3, 1e-3))
def test_a_grid_is_as_far_off_as_its_farthest_pixel(
    size: float, shape: tuple[int, ...], stretched: float, angle: float
) -> None:
    ours = Geometry((size,) * 3, (1.0, 2.0, 3.0), tuple(np.eye(3).ravel()))
    turned = Rotation.from_euler("z", angle).as_matrix()
    theirs = Geometry((size * (1 + stretched),) * 3, (1.0, 2.0, 3.0), tuple(turned.ravel()))
    grid = np.stack(np.meshgrid(*[(0, side - 1) for side in reversed(shape)], indexing="ij"), -1).reshape(-1, 3)
    apart = grid @ (turned * (1 + stretched) - np.eye(3)).T
    assert ours.shift(theirs, shape) == pytest.approx(abs(apart).max(), abs=1e-6)


def test_an_unknown_spacing_matches_any_and_other_axes_none() -> None:
    known = Geometry((1.0, 1.0), (5.0, 5.0), (1.0, 0.0, 0.0, 1.0))
    assert Geometry.unknown(2).matches(known)
    assert not Geometry.unknown(3).matches(known)
    with pytest.raises(ValueError, match="cannot be compared"):
        Geometry.unknown(3).shift(known)


def test_a_grid_that_a_file_states_twice_matches_by_either() -> None:
    ours = Geometry((1.0, 1.0), (5.0, 5.0), (1.0, 0.0, 0.0, 1.0))
    other = Geometry((1.0, 1.0), (9.0, 5.0), (1.0, 0.0, 0.0, 1.0))
    both = replace(ours, alternative=other)
    assert both.matches(other)
    assert other.matches(both)
    assert both == ours
    assert not both.plane.matches(other)


@given(clip=st.text(min_size=1), index=st.integers(0, 5000))
def test_a_frame_is_known_by_its_name_and_nothing_else_is(clip: str, index: int) -> None:
    assert clip_of_frame(frame_id(clip, index)) == (clip, index)
    assert clip_of_frame(f"{clip}_frame{index}x") is None


@pytest.mark.parametrize(
    "name", ["p1_frame7", "p1_frame0007", "_frame007", "p1_frame", "p1", "p1_frame-01", "p1_frame\u0660\u0660\u0667"]
)
def test_names_that_are_like_those_of_frames_are_none(name: str) -> None:
    assert clip_of_frame(name) is None
