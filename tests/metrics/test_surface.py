from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from medfm_rl.metrics.surface import surface_distances
from medfm_rl.structures import exclusive, overlapping


def square(row: int, column: int, side: int = 3, shape: tuple[int, int] = (8, 9)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[row : row + side, column : column + side] = 1
    return labels


def brute_force(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float]:
    """Every surface pixel against every other: slow, and another way than a distance transform."""
    surfaces = []
    for mask in (prediction == 1, truth == 1):
        padded = np.pad(mask, 1)
        points = []
        for point in np.argwhere(padded):
            faces = np.concatenate([np.eye(mask.ndim, dtype=int), -np.eye(mask.ndim, dtype=int)])
            if not all(padded[tuple(point + face)] for face in faces):
                points.append(point * np.asarray(spacing))
        surfaces.append(np.array(points))
    distances = cdist(*surfaces)
    there, back = distances.min(axis=1), distances.min(axis=0)
    return max(np.percentile(there, 95), np.percentile(back, 95)), float(np.concatenate([there, back]).mean())


def test_a_square_shifted_by_a_row_by_hand() -> None:
    # Rows are 2 mm apart, columns 1 mm. The surface of a 3 x 3 square is all but its centre: 8 pixels. Seen from the
    # upper square its top row (3 pixels) is one row away: 2 mm; the middle of its bottom row is the centre of the lower
    # square and one column away from its surface: 1 mm; the other four lie on the surface. So 2, 2, 2, 1, 0, 0, 0, 0,
    # and the same back: mean 7 / 8; the 95th percentile lies between the last two, which are both 2.
    hd95, assd = surface_distances(square(2, 3), square(3, 3), exclusive(2), (2.0, 1.0))
    assert hd95 == pytest.approx([2.0])
    assert assd == pytest.approx([7 / 8])


def test_hd95_and_assd_of_lines_of_unequal_length_by_hand() -> None:
    prediction, truth = np.zeros((3, 22), np.uint8), np.zeros((3, 22), np.uint8)
    prediction[1, :20] = 1
    truth[1, :10] = 1
    # From the prediction: 10 zeros, then 1 to 10 columns of 0.5 mm. The 95th percentile of these 20 lies at position
    # 0.95 * 19 = 18.05 from 0, between 4.5 and 5: 4.525. Back: 10 zeros. ASSD: 0.5 * 55 / (20 + 10).
    for pair in [(prediction, truth), (truth, prediction)]:
        hd95, assd = surface_distances(*pair, exclusive(2), (2.0, 0.5))
        assert hd95 == pytest.approx([4.525])
        assert assd == pytest.approx([27.5 / 30])


def test_one_pixel_masks_are_as_far_apart_as_the_pixels() -> None:
    here, there = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    here[1, 1] = there[4, 5] = 1
    for distance in surface_distances(here, there, exclusive(2), (2.0, 0.5)):
        assert distance == pytest.approx([np.hypot(3 * 2.0, 4 * 0.5)])


def test_without_spacing_distances_are_in_pixels() -> None:
    for unknown, unit in zip(
        surface_distances(square(0, 0), square(2, 3), exclusive(2), None),
        surface_distances(square(0, 0), square(2, 3), exclusive(2), (1.0, 1.0)),
        strict=True,
    ):
        assert np.array_equal(unknown, unit)


def test_what_lies_beyond_the_image_is_background() -> None:
    full, centre = np.ones((5, 5), np.uint8), np.zeros((5, 5), np.uint8)
    centre[2, 2] = 1
    # The surface of the full mask is the rim of 16 pixels: 4 corners at sqrt(8), 4 middles at 2, 8 others at sqrt(5).
    hd95, assd = surface_distances(full, centre, exclusive(2), None)
    assert hd95 == pytest.approx([np.sqrt(8)])
    assert assd == pytest.approx([(4 * np.sqrt(8) + 4 * 2 + 8 * np.sqrt(5) + 2) / 17])


def test_an_empty_structure_has_no_distance_unless_both_lack_it() -> None:
    empty, some = np.zeros((8, 9), np.uint8), square(1, 1)
    for pair in [(empty, some), (some, empty)]:
        for distances in surface_distances(*pair, exclusive(3), (1.0, 1.0)):
            # Structure 1 is in one of both, structure 2 in none.
            assert np.isnan(distances[0])
            assert distances[1] == 0
    for distances in surface_distances(empty, empty, exclusive(3), None):
        assert distances.tolist() == [0, 0]


def test_each_structure_is_measured_by_itself() -> None:
    prediction, truth = square(0, 0), square(0, 0)
    prediction[6, 2] = truth[6, 7] = 2
    hd95, assd = surface_distances(prediction, truth, exclusive(3), None)
    assert hd95 == pytest.approx([0, 5])
    assert assd == pytest.approx([0, 5])


@pytest.mark.parametrize(("shape", "spacing"), [((7, 8), (1.7, 0.4)), ((4, 5, 4), (3.0, 0.5, 0.8))])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_distances_are_those_of_a_brute_force_search(
    shape: tuple[int, ...], spacing: tuple[float, ...], data: st.DataObject
) -> None:
    prediction, truth = (data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 1))) for _ in range(2))
    for mask in (prediction, truth):
        mask[tuple(data.draw(st.integers(0, size - 1)) for size in shape)] = 1
    hd95, assd = surface_distances(prediction, truth, exclusive(2), spacing)
    expected = brute_force(prediction, truth, spacing)
    assert (hd95[0], assd[0]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize(("shape", "spacing"), [((24, 20), (1.7, 0.4)), ((10, 12, 8), (3.0, 0.5, 0.8))])
def test_distances_are_those_of_monai(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    grid = np.indices(shape)
    labels = []
    for radius, shift in [(4.2, 0.0), (3.1, 1.0)]:
        distance = sum((axis - size / 2 - shift) ** 2 for axis, size in zip(grid, shape, strict=True))
        labels.append((distance < radius**2).astype(np.uint8))
    one_hot = [torch.nn.functional.one_hot(torch.from_numpy(label).long(), 2).movedim(-1, 0)[None] for label in labels]
    hd95, assd = surface_distances(*labels, exclusive(2), spacing)
    assert hd95[0] == pytest.approx(float(compute_hausdorff_distance(*one_hot, percentile=95, spacing=spacing)))
    assert assd[0] == pytest.approx(
        float(compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing)), rel=1e-5
    )


def test_masks_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"size \(4, 4\), ground truth \(4, 1\)"):
        surface_distances(np.ones((4, 4), np.uint8), np.ones((4, 1), np.uint8), exclusive(2), None)


def test_distances_of_regions_are_those_of_each_region_alone() -> None:
    first, second = (np.random.default_rng(seed).integers(0, 4, (9, 10)).astype(np.uint8) for seed in (0, 1))
    together = surface_distances(first, second, overlapping(2), (2.0, 1.0))
    for bit in range(2):
        alone = surface_distances(first >> bit & 1, second >> bit & 1, exclusive(2), (2.0, 1.0))
        assert [found[bit] for found in together] == [found[0] for found in alone]
