from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm_rl.anatomy.discs import DISCS, measure_discs

FINE = 8


def counted(mask: np.ndarray) -> tuple[float, np.ndarray]:
    """Length and diameters by counting points, 8 along each side of a pixel."""
    points = np.argwhere(np.kron(mask, np.ones((FINE, FINE), bool))) / FINE
    centred = points - points.mean(axis=0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = centred @ (axis if axis[0] >= 0 else -axis)
    length = np.ptp(along) + 1 / FINE
    ends = (along.min() - 0.5 / FINE, along.max() + 0.5 / FINE)
    return length, np.histogram(along, DISCS, ends)[0] / FINE**2 / (length / DISCS)


@settings(max_examples=40, deadline=None)
@given(
    length=st.floats(10, 24),
    share=st.floats(0.3, 0.8),
    tilt=st.floats(-0.8, 0.8),
    row=st.floats(-1, 1),
    bitten=st.booleans(),
)
def test_discs_are_those_of_counted_points(length: float, share: float, tilt: float, row: float, bitten: bool) -> None:
    rows, columns = np.mgrid[:64, :64]
    down, across = rows - 32 - row, columns - 31.5
    along, aside = down * np.cos(tilt) + across * np.sin(tilt), across * np.cos(tilt) - down * np.sin(tilt)
    mask = (along / length) ** 2 + (aside / (share * length)) ** 2 <= 1
    if bitten:  # Rows of two runs.
        mask &= ~((abs(down - 3) < 2) & (abs(across) < 1.5))
    found = measure_discs(mask)
    assert found is not None
    expected, diameters = counted(mask)
    assert found.length == pytest.approx(expected, abs=0.3)
    assert sum(found.diameters) * found.length / DISCS == pytest.approx(mask.sum())
    # A cut falls between two rows of points, so that a disc may have one row more or less.
    row_of_points = 1.1 / FINE / (found.length / DISCS) * diameters.max()
    np.testing.assert_allclose(found.diameters, diameters, atol=row_of_points + 0.1)


def test_a_rectangle_has_its_own_length_and_one_diameter() -> None:
    mask = np.zeros((30, 20), bool)
    mask[3:27, 6:13] = True
    found = measure_discs(mask)
    assert found is not None
    assert found.length == pytest.approx(24, abs=0.01)
    np.testing.assert_allclose(found.diameters, 7, rtol=0.01)


def test_of_several_parts_the_largest_counts_and_of_nothing_there_are_no_discs() -> None:
    mask = np.zeros((30, 30), bool)
    mask[2:20, 4:9] = True
    alone = measure_discs(mask)
    mask[22:26, 20:23] = True
    assert measure_discs(mask) == alone
    assert measure_discs(np.zeros((5, 5), bool)) is None
