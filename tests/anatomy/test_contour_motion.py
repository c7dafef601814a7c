from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from medfm_rl.anatomy.contour_motion import neighbour_distances


def contour(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask with a neighbour outside of it, by SciPy."""
    inner = ndimage.binary_erosion(mask, border_value=1)
    return np.argwhere(mask & ~inner).astype(np.float32)


def hausdorff(one: np.ndarray, two: np.ndarray) -> float:
    """Hausdorff distance of two sets of points `(N, 2)`, by SciPy."""
    return max(directed_hausdorff(one, two)[0], directed_hausdorff(two, one)[0])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.5, 12))
def test_distances_of_neighbours_are_hausdorff_distances_of_their_contours_near_and_far(
    seed: int, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:40, :44]
    masks = []
    for _ in range(5):
        row, column = 20 + rng.normal(0, spread), 22 + rng.normal(0, spread)
        masks.append((rows - row) ** 2 + ((columns - column) / rng.uniform(0.5, 2)) ** 2 <= rng.uniform(2, 12) ** 2)
    found = neighbour_distances(np.stack(masks))
    for index, distance in enumerate(found):
        one, two = contour(masks[index]), contour(masks[index + 1])
        if len(one) and len(two):
            assert distance == pytest.approx(hausdorff(one, two))
        else:
            assert np.isnan(distance)


def test_an_empty_frame_has_no_distance_to_either_neighbour() -> None:
    masks = np.zeros((4, 8, 8), bool)
    masks[:, 2:5, 2:5] = True
    masks[1] = False
    assert np.isnan(neighbour_distances(masks)).tolist() == [True, True, False]
    assert neighbour_distances(masks)[2] == 0
    assert len(neighbour_distances(masks[:1])) == 0
