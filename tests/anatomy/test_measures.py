from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from medfm_rl.anatomy.measures import MaskView, is_plainly_one_part
from medfm_rl.types import LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1})


@st.composite
def runs(draw: st.DrawFn) -> npt.NDArray[np.bool_]:
    """One run of pixels in each row, which may or may not touch that of the row before."""
    mask = np.zeros((draw(st.integers(1, 6)), 7), bool)
    for row in mask:
        start, length = draw(st.integers(0, 6)), draw(st.integers(1, 7))
        row[start : start + length] = True
    return mask


def any_mask() -> st.SearchStrategy[npt.NDArray[np.bool_]]:
    return hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6))


@given(mask=st.one_of(runs(), any_mask()))
def test_parts_and_holes_are_those_that_labelling_finds(mask: npt.NDArray[np.bool_]) -> None:
    view = MaskView(mask.astype(np.uint8), SCHEMA, None, cropped=False)
    labels, _ = ndimage.label(mask)
    np.testing.assert_array_equal(view.parts("LV"), np.sort(np.bincount(labels.ravel())[1:]))
    np.testing.assert_array_equal(view.holes("LV"), ndimage.binary_fill_holes(mask) & ~mask)


def test_a_plain_shape_is_known_without_labelling() -> None:
    rows, columns = np.mgrid[:20, :30]
    ellipse = (rows - 9.5) ** 2 / 100 + (columns - 14.5) ** 2 / 200 < 1
    ring = ellipse & ((rows - 9.5) ** 2 + (columns - 14.5) ** 2 > 4)
    apart = ellipse.copy()
    apart[10] = False
    beside = np.eye(2, dtype=bool)
    assert [is_plainly_one_part(mask) for mask in (ellipse, ring, apart, beside)] == [True, False, False, False]
