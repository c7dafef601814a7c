from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfm_rl.errors import DataError
from medfm_rl.types import Case, Geometry, LabelledCase, LabelSchema


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
