from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm_rl.augmentation.shape import augment_pair, mirror_at_random


def squares(*shape: int) -> torch.Tensor:
    labels = torch.zeros(4, *shape, dtype=torch.uint8)
    labels[(slice(None), *(slice(side // 4, 3 * side // 4) for side in shape))] = 1
    return labels


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    strength=st.floats(0, 5),
    elastic=st.sampled_from([0.0, 0.06, 0.2]),
    shape=st.sampled_from([(32, 24), (12, 16, 20)]),
)
def test_image_and_mask_move_together(seed: int, strength: float, elastic: float, shape: tuple[int, ...]) -> None:
    """An image that is its own mask still is, up to interpolation at the contour and the changes of grey values."""
    labels = squares(*shape)
    images = labels[:, None].float()
    moved, target = augment_pair(images, labels, generator(seed), strength, elastic)
    assert moved.shape == images.shape
    assert target.dtype == labels.dtype
    assert set(target.unique().tolist()) <= {0, 1}
    for image, mask in zip(moved[:, 0], target, strict=True):
        low, high = image.min(), image.max()
        if not 0.02 < mask.float().mean() < 0.98:
            continue
        assert ((image > (low + high) / 2) == (mask == 1)).float().mean() > 0.95


def test_without_strength_only_grey_values_change() -> None:
    labels = squares(16, 16)
    _, target = augment_pair(labels[:, None].float(), labels, generator(), strength=0.0)
    assert torch.equal(target, labels)


@pytest.mark.parametrize("elastic", [0.03, 0.1])
def test_a_displacement_stays_within_a_few_of_its_standard_deviations(elastic: float) -> None:
    """Where the affine map is the identity, a straight edge moves by 4 x elastic x size at most."""
    size = 64
    columns = torch.arange(size).expand(8, size, size)
    labels = columns.to(torch.uint8)
    _, target = augment_pair(torch.zeros(8, 1, size, size), labels, generator(), strength=0.0, elastic=elastic)
    shift = (target.float() - columns).abs()
    assert 0 < shift.max() <= 4 * elastic * size + 1


@given(seed=st.integers(0, 1000), shape=st.sampled_from([(6, 4), (3, 6, 4)]))
def test_image_and_mask_are_mirrored_together_and_otherwise_stay(seed: int, shape: tuple[int, ...]) -> None:
    labels = torch.randint(0, 9, (5, *shape), generator=generator(seed), dtype=torch.uint8)
    images = labels[:, None].float()
    shown, moved = mirror_at_random(images, labels, range(len(shape)), generator(seed + 1))
    assert torch.equal(shown[:, 0], moved.float())
    assert torch.equal(shown.flatten(1).sort(dim=1).values, images.flatten(1).sort(dim=1).values)
    assert torch.equal(images, labels[:, None].float())


def test_without_axes_nothing_is_mirrored_or_drawn() -> None:
    images, labels, drawn = torch.randn(3, 1, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), generator()
    before = drawn.get_state()
    shown, moved = mirror_at_random(images, labels, (), drawn)
    assert (shown is images, moved is labels) == (True, True)
    assert torch.equal(drawn.get_state(), before)


def test_each_axis_is_mirrored_half_of_the_times() -> None:
    images = torch.arange(4.0).reshape(1, 1, 2, 2).repeat(400, 1, 1, 1)
    shown, _ = mirror_at_random(images, images[:, 0].to(torch.uint8), (0, 1), generator())
    corners = shown[:, 0, 0, 0].long().bincount(minlength=4)
    assert (corners > 70).all()


def test_a_rotation_keeps_right_angles_on_grids_that_are_not_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines across and down are still at right angles, and each as long as before."""
    monkeypatch.setattr(
        torch, "randn", lambda *shape, generator: (torch.zeros if len(shape) > 1 else torch.ones)(*shape)
    )
    height, width = 40, 120
    down, across = torch.meshgrid(torch.arange(height) - 19.5, torch.arange(width) - 59.5, indexing="ij")
    images = torch.stack([down, across])[None].float()
    moved, _ = augment_pair(images, torch.zeros(1, height, width, dtype=torch.uint8), generator(), channels=0)
    # What was `down` and `across` at a pixel, as linear functions of where it is now, in pixels.
    by_row = moved[0, :, 25, 60] - moved[0, :, 15, 60]
    by_column = moved[0, :, 20, 65] - moved[0, :, 20, 55]
    assert float(by_row @ by_column) == pytest.approx(0, abs=0.05)
    assert float(by_row.norm()) == pytest.approx(float(by_column.norm()), rel=1e-3)
    assert abs(float(by_row[1])) > 0.5
