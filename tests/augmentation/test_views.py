from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medfm_rl.adapters.grid import Sample
from medfm_rl.augmentation.views import View, draw_view
from medfm_rl.seeding import torch_generator
from medfm_rl.types import Geometry


def sample_of(image: Tensor) -> Sample:
    shape = tuple(image.shape[1:])
    geometry = Geometry((1.0,) * len(shape), (0.0,) * len(shape), tuple(np.eye(len(shape)).ravel().tolist()))
    return Sample(image, "p1_a", "p1", shape, geometry)


def bump(shape: tuple[int, ...]) -> Tensor:
    """A smooth hill in the middle, `(1, *S)`."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in shape), indexing="ij")
    return torch.exp(-4 * sum(axis**2 for axis in axes))[None]


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from([(40, 40), (32, 56), (20, 24, 28)]),
    seed=st.integers(0, 1000),
)
def test_what_a_view_shows_comes_back_to_its_place(shape: tuple[int, ...], seed: int) -> None:
    values = bump(shape)
    # Only the first channel gets another look.
    view = draw_view(values.repeat(2, *[1] * len(shape)), len(shape), 1, torch_generator(seed, "test"))
    otherwise = torch.full_like(values, -1.0)
    returned = view.bring_back(view.image[1:], otherwise)
    reached = returned != -1.0
    assert reached[(0, *(side // 2 for side in shape))]
    # Twice interpolated, and the corners of the view show what lies at the border: where it is flat.
    assert float((returned - values)[reached].abs().max()) < 0.08
    assert torch.equal(returned[~reached], otherwise[~reached])


def test_a_view_is_turned_and_not_sheared_where_sides_differ() -> None:
    """A quarter turn of 8 x 16 pixels, by hand: what was 3 pixels right of the middle is 3 pixels above or below it."""
    image = torch.zeros(1, 9, 17)
    image[0, 4, 8 + 3] = 1.0
    sides = torch.tensor([17.0, 9.0])
    linear = torch.tensor([[0.0, -1.0], [1.0, 0.0]]) * sides / sides[:, None]
    turned = View(image, torch.cat([linear, torch.zeros(2, 1)], dim=1)).bring_back(image, torch.zeros_like(image))
    assert {tuple(place) for place in (turned[0] > 0.5).nonzero().tolist()} == {(4 + 3, 8)}


def test_the_angle_scale_and_shift_are_those_that_are_promised() -> None:
    sample = sample_of(bump((24, 48)))
    for seed in range(50):
        matrix = draw_view(sample.image, 2, 1, torch_generator(seed, "test")).matrix
        sides = torch.tensor([48.0, 24.0])
        linear = matrix[:, :2] * sides[:, None] / sides
        scale = float(torch.linalg.det(linear).sqrt())
        assert 0.75 <= scale <= 1.3
        torch.testing.assert_close(linear @ linear.T, scale**2 * torch.eye(2), rtol=1e-4, atol=1e-5)
        assert abs(math.atan2(float(linear[1, 0]), float(linear[0, 0]))) <= 0.4
        assert float(matrix[:, 2].abs().max()) <= 0.1


def test_slices_of_a_volume_move_alike_where_patches_are_flat() -> None:
    volume = bump((24, 24))[:, None].expand(1, 3, 24, 24)
    view = draw_view(volume.repeat(2, 1, 1, 1), 2, 1, torch_generator(0, "test"))
    moved = view.image[1:]
    assert moved.shape == volume.shape
    assert torch.equal(moved[:, 0], moved[:, 2])
    returned = view.bring_back(moved, volume)
    assert float((returned - volume).abs().max()) < 0.08


def test_channels_that_are_no_intensities_are_moved_and_not_changed() -> None:
    """The second channel is a box of ones: moved, it still has no values but 0 to 1, and the first has a new look."""
    torch.manual_seed(0)
    image = torch.cat([torch.rand(1, 32, 32), torch.zeros(1, 32, 32)])
    image[1, 8:24, 8:24] = 1.0
    view = draw_view(sample_of(image).image, 2, 1, torch_generator(3, "test"))
    same_place = draw_view(sample_of(image).image, 2, 2, torch_generator(3, "test"))
    torch.testing.assert_close(view.matrix, same_place.matrix)
    assert set(view.image[1].unique().tolist()) >= {0.0, 1.0}
    assert float(view.image[1].min()) >= 0
    assert float(view.image[1].max()) <= 1
