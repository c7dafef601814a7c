from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from medfm_rl.errors import DataError
from medfm_rl.structures import bounding_box, count_classes, exclusive, overlapping, pixels_of, regions_in, subset_names
from medfm_rl.types import LabelSchema

BRATS = LabelSchema.from_regions({"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}, order=(1, 2, 3))


def test_a_region_is_every_class_with_its_bit() -> None:
    assert overlapping(2) == ((1, 3), (2, 3))
    assert exclusive(3) == ((1,), (2,))
    assert (count_classes(overlapping(3)), count_classes(exclusive(4))) == (8, 4)
    assert subset_names(("WT", "TC"), "background") == ("background", "WT", "TC", "WT+TC")


def test_names_of_sets_tell_the_regions_and_other_names_tell_none() -> None:
    assert regions_in(subset_names(("a", "b", "c"), "background")) == ("a", "b", "c")
    assert regions_in(("background", "LV", "MYO", "LA")) == ()
    assert regions_in(("background", "LV")) == ()


@given(labels=hnp.arrays(np.uint8, (3, 4), elements=st.integers(0, 7)), bit=st.integers(0, 2))
def test_pixels_of_a_region_are_those_whose_bit_mask_has_it(labels: np.ndarray, bit: int) -> None:
    assert np.array_equal(pixels_of(labels, overlapping(3)[bit]), (labels >> bit & 1).astype(bool))


@given(mask=hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6)), margin=st.integers(0, 3))
def test_a_bounding_box_is_that_of_scipy_and_a_margin_within_the_mask(mask: np.ndarray, margin: int) -> None:
    found = ndimage.find_objects(mask.astype(np.uint8))
    expected = found[0] if found else None
    assert bounding_box(mask) == expected
    margins = [margin] + [0] * (mask.ndim - 1)
    wider = bounding_box(mask, margins)
    if expected is None:
        assert wider is None
        return
    assert wider is not None
    assert wider[1:] == expected[1:]
    assert mask[wider].sum() == mask.sum()
    assert wider[0] == slice(max(0, expected[0].start - margin), min(len(mask), expected[0].stop + margin))


def test_bit_masks_survive_the_way_to_files_and_back() -> None:
    schema = LabelSchema.of_regions(("WT", "TC"))
    classes = np.arange(4, dtype=np.uint8)
    assert (schema.num_classes, schema.structures, schema.overlaps) == (4, ("WT", "TC"), True)
    assert schema.integers == {"background": 0, "WT": 1, "TC": 2, "WT+TC": 3}
    assert np.array_equal(schema.as_written(classes), classes)
    assert schema.classes_of("TC") == (2, 3)
    assert (schema.classes_of("background"), schema.index_of("WT+TC")) == ((0,), 3)


def test_an_order_writes_the_last_region_and_its_integer_is_read_as_all_that_contain_it() -> None:
    # Classes: none, WT, TC, WT+TC, ET, WT+ET, TC+ET, all three.
    assert BRATS.ids == (0, 1, 2, 2, 3, 3, 3, 3)
    assert BRATS.to_indices(np.arange(4)).tolist() == [0, 1, 3, 7]
    assert BRATS.as_written(np.arange(8, dtype=np.uint8)).tolist() == [0, 1, 3, 3, 7, 7, 7, 7]
    assert BRATS.integers == {"background": 0, "WT": 1, "WT+TC": 2, "WT+TC+ET": 3}
    with pytest.raises(DataError, match=r"label 4 is not one of .*2 WT\+TC, 3 WT\+TC\+ET"):
        BRATS.to_indices(np.array([4]))


def test_integers_without_an_order_are_read_and_the_classes_between_them_cannot_be_written() -> None:
    read = LabelSchema.from_regions({"WT": (1, 2), "TC": (2,)})
    assert read.to_indices(np.arange(3)).tolist() == [0, 1, 3]
    assert read.ids == (0, 1, -1, 2)
    with pytest.raises(ValueError, match="no integer stands for TC"):
        read.to_ids(np.array([0, 2]))


def test_classes_of_two_schemas_are_matched_by_the_names_of_the_structures() -> None:
    turned = LabelSchema.of_regions(("TC", "WT"))
    assert LabelSchema.of_regions(("WT", "TC")).indices_in(turned).tolist() == [0, 2, 1, 3]
    assert LabelSchema.from_structures({"TC": 5}).indices_in(turned).tolist() == [0, 1]
    with pytest.raises(ValueError, match="overlap"):
        turned.indices_in(LabelSchema.from_structures({"WT": 1, "TC": 2}))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LabelSchema.of_regions("abcdef"), "6 structures overlap.*at most 5"),
        (lambda: LabelSchema.of_regions(("a+b", "c")), r"'a\+b'.*must not hold"),
        (lambda: LabelSchema.from_regions({"a": (0, 1), "b": (1,)}), "do not agree"),
        (lambda: LabelSchema.from_regions({"a": (1,), "b": (2,)}, order=(1, 4)), "do not agree"),
        (lambda: LabelSchema(("background", "a", "b"), (0, 1, 2, 3), ((1, 3),)), "2 structures overlap"),
    ],
)
def test_regions_that_contradict_themselves_are_refused(make: object, said: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=said):
        make()
