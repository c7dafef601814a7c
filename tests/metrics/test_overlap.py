from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score

from medfm_rl.metrics.overlap import dice
from medfm_rl.structures import exclusive, overlapping
from medfm_rl.types import IGNORED

K = 4


def label_maps(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.uint8, shape, elements=st.integers(0, K - 1))


def test_dice_of_shifted_squares_by_hand() -> None:
    prediction, truth = np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8)
    prediction[0:2, 0:2] = 1
    truth[0:2, 1:3] = 1
    prediction[3, 0:6] = 2
    truth[3, 0:3] = 2
    # Structure 1: 4 pixels each, 2 shared: 2 * 2 / 8. Structure 2: 6 and 3 pixels, 3 shared: 2 * 3 / 9.
    assert dice(prediction, truth, exclusive(3)) == pytest.approx([0.5, 2 / 3])


def test_a_structure_that_both_lack_scores_one_and_one_that_one_lacks_scores_zero() -> None:
    empty, one_pixel = np.zeros((5, 5), np.uint8), np.zeros((5, 5), np.uint8)
    one_pixel[2, 2] = 1
    assert dice(empty, empty, exclusive(3)).tolist() == [1, 1]
    assert dice(one_pixel, empty, exclusive(3)).tolist() == [0, 1]
    assert dice(empty, one_pixel, exclusive(3)).tolist() == [0, 1]


def test_one_pixel_masks_agree_or_do_not() -> None:
    here, there = np.zeros((5, 5), np.uint8), np.zeros((5, 5), np.uint8)
    here[2, 2] = there[2, 3] = 1
    assert dice(here, here, exclusive(2)).tolist() == [1]
    assert dice(here, there, exclusive(2)).tolist() == [0]


@pytest.mark.parametrize("shape", [(6, 7), (3, 4, 5)])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_dice_is_the_f1_score_of_the_pixels(shape: tuple[int, ...], data: st.DataObject) -> None:
    prediction, truth = data.draw(label_maps(shape)), data.draw(label_maps(shape))
    expected = f1_score(
        truth.ravel(), prediction.ravel(), labels=list(range(1, K)), average=None, zero_division=np.float64(1.0)
    )
    assert dice(prediction, truth, exclusive(K)) == pytest.approx(expected)
    assert np.array_equal(dice(truth, prediction, exclusive(K)), dice(prediction, truth, exclusive(K)))


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"size \(2, 3\), ground truth \(3, 2\)"):
        dice(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), exclusive(2))


def test_a_class_beyond_the_schema_is_refused_and_not_counted_as_another() -> None:
    stranger = np.full((2, 2), 2, np.uint8)
    for pair in [(stranger, np.zeros_like(stranger)), (np.zeros_like(stranger), stranger)]:
        with pytest.raises(ValueError, match="class index 2 found, there are 2 classes"):
            dice(*pair, exclusive(2))


@given(st.data())
def test_dice_of_regions_is_that_of_each_region_alone(data: st.DataObject) -> None:
    first, second = (data.draw(hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, 7))) for _ in range(2))
    alone = [dice(first >> bit & 1, second >> bit & 1, exclusive(2))[0] for bit in range(3)]
    assert np.array_equal(dice(first, second, overlapping(3)), alone)


@given(prediction=label_maps((5, 8)), truth=label_maps((5, 8)))
def test_what_is_ignored_counts_in_neither_mask(prediction: np.ndarray, truth: np.ndarray) -> None:
    """As if the image ended there."""
    cut = truth.copy()
    cut[:, 5:] = IGNORED
    assert dice(prediction, cut, exclusive(K)).tolist() == dice(prediction[:, :5], truth[:, :5], exclusive(K)).tolist()
    assert np.array_equal(dice(prediction, np.full_like(truth, IGNORED), exclusive(K)), np.ones(K - 1))
