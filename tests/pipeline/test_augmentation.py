from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm_rl.pipeline.supervised import augment_pair


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
