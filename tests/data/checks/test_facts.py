"""What is kept of a case when its pixels are gone."""

from __future__ import annotations

import numpy as np
import pytest

from medfm_rl.data.checks import image_facts, mask_facts
from medfm_rl.types import Case, Geometry

LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def facts(image: np.ndarray, geometry: Geometry | None = None):
    return image_facts(Case("a", "p", image.astype(np.float32), geometry or Geometry.unknown(image.ndim - 1)))


def test_size_and_spacing_are_those_of_x_y_and_z() -> None:
    found = facts(np.random.default_rng(0).normal(size=(1, 3, 4, 5)), Geometry((0.5, 0.6, 7.0), (0.0,) * 3, LPS))
    assert (found.size, found.spacing, found.channels) == ((5, 4, 3), (0.5, 0.6, 7.0), 1)


@pytest.mark.parametrize(
    ("direction", "name"),
    [
        (LPS, "LPS"),
        ((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0), "RAS"),
        ((0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0), "PIR"),
    ],
)
def test_orientation_says_where_the_axes_run(direction: tuple[float, ...], name: str) -> None:
    """In mm x runs to the left, y to posterior and z to superior; a column is where an axis of the image runs."""
    grid = Geometry((1.0,) * 3, (0.0,) * 3, direction)
    assert facts(np.arange(8).reshape(1, 2, 2, 2), grid).orientation == name
    assert image_facts(Case("a", "p", np.ones((1, 2, 2)), Geometry.slice_of(grid))).orientation == name


def test_a_picture_lies_nowhere() -> None:
    found = facts(np.arange(6).reshape(1, 2, 3))
    assert (found.spacing, found.orientation) == (None, None)


def test_values_are_those_of_each_channel() -> None:
    image = np.stack([np.arange(101).reshape(1, 101), np.full((1, 101), 7)])
    first, second = facts(image).values
    assert (first.least, first.low, first.middle, first.high, first.most, first.different) == (0, 1, 50, 99, 100, None)
    assert (second.least, second.most, second.different) == (7, 7, 1)


def test_few_values_are_counted_also_where_they_are_rare() -> None:
    image = np.zeros((1, 1500, 1501))
    image[0, 700, 700] = 3
    assert facts(image).values[0].different == 2


def test_equal_colours_are_grey() -> None:
    grey = np.arange(6).reshape(1, 2, 3)
    assert facts(np.concatenate([grey] * 3)).grey
    assert not facts(np.concatenate([grey, grey, grey + 1])).grey
    assert not facts(grey).grey


def test_content_is_that_of_pixels_and_size() -> None:
    image = np.arange(6).reshape(1, 2, 3)
    grid = Geometry((1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    assert facts(image).content == facts(image, grid).content
    assert facts(image).content != facts(image.reshape(1, 3, 2)).content
    assert facts(image).content != facts(image + 1).content


def test_a_mask_is_counted_by_names_and_numbers() -> None:
    labels = np.array([[9, 1, 1], [5, 1, 9]])
    found = mask_facts(labels, {9: "background", 1: "LV", 2: "MYO"})
    assert found.pixels == {"LV": 3, "label 5": 1}
    assert found.unnamed == ("label 5",)
    assert found.known == ("LV", "MYO")
    assert mask_facts(np.zeros((2, 2), int), {0: "background"}).pixels == {}
