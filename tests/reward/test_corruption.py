from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medfm_rl.reward.corruption import add_blob, drop_structure, warp

K = 4
Corrupt = Callable[[Tensor, torch.Generator], Tensor]


def blob(action: Tensor, generator: torch.Generator) -> Tensor:
    return add_blob(action, K, generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rings(shape: tuple[int, ...] = (24, 32)) -> Tensor:
    """Class 2 around class 1, and class 3 beside them."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in shape), indexing="ij")
    distance = torch.stack([axis**2 for axis in axes]).sum(dim=0).sqrt()
    action = torch.zeros(shape, dtype=torch.uint8)
    action[distance < 0.6] = 2
    action[distance < 0.35] = 1
    action[(axes[0] > 0.7) & (distance < 0.95)] = 3
    return action


def background_only(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def one_pixel(shape: tuple[int, ...]) -> Tensor:
    action = background_only(shape)
    action.view(-1)[7] = 2
    return action


def all_foreground(shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, 3, dtype=torch.uint8)


@settings(deadline=None, max_examples=40)
@given(
    corrupt=st.sampled_from([warp, blob, drop_structure]),
    make=st.sampled_from([rings, background_only, one_pixel, all_foreground]),
    shape=st.sampled_from([(24, 32), (5, 3), (10, 8, 6)]),
    dtype=st.sampled_from([torch.uint8, torch.int64]),
    seed=st.integers(0, 999),
)
def test_any_corruption_of_any_mask_is_a_mask_of_the_schema(
    corrupt: Corrupt, make: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    action = make(shape).to(dtype)
    before = action.clone()
    corrupted = corrupt(action, seeded(seed))
    assert corrupted.shape == action.shape
    assert corrupted.dtype == dtype
    assert int(corrupted.max()) < K
    assert int(corrupted.min()) >= 0
    assert torch.equal(action, before), "the mask handed in was to stay"
    assert torch.equal(corrupt(action, seeded(seed)), corrupted), "the same seed was to do the same"
    if corrupt is not blob:
        assert set(corrupted.unique().tolist()) <= set(action.unique().tolist()) | {0}


@pytest.mark.parametrize("corrupt", [warp, blob, drop_structure])
def test_corruptions_differ_from_draw_to_draw_and_really_change_something(corrupt: Corrupt) -> None:
    action, generator = rings(), seeded()
    torch.manual_seed(0)
    drawn = [corrupt(action, generator) for _ in range(40)]
    changed = [mask for mask in drawn if not torch.equal(mask, action)]
    assert len(changed) > 20
    # Three structures can be dropped; what is continuous never comes twice.
    assert len({mask.numpy().tobytes() for mask in changed}) >= (3 if corrupt is drop_structure else 15)


@pytest.mark.parametrize("shape", [(24, 32), (7, 19), (10, 8, 6)])
def test_a_warp_without_amplitude_moves_nothing(shape: tuple[int, ...]) -> None:
    action = torch.randint(0, K, shape, generator=seeded()).byte()
    assert torch.equal(warp(action, seeded(), amplitude=0.0), action)


def test_a_warp_of_greater_amplitude_moves_more() -> None:
    action = rings((48, 48))

    def moved(amplitude: float) -> float:
        masks = [warp(action, seeded(seed), amplitude) for seed in range(30)]
        return float(torch.stack([(mask != action).float().mean() for mask in masks]).mean())

    shares = [moved(amplitude) for amplitude in (0.005, 0.02, 0.04, 0.1)]
    assert shares == sorted(shares)
    assert 0.01 < shares[2] < 0.2, "a contour that a segmenter could draw"


def test_a_warp_moves_by_a_share_of_each_side() -> None:
    """The border of two halves moves by at most 4 standard deviations of 1.5 * 0.04 of the side."""
    for axis in range(2):
        action = torch.zeros(40, 80, dtype=torch.uint8)
        action.narrow(axis, action.shape[axis] // 2, action.shape[axis] // 2).fill_(1)
        reach = 4 * 1.5 * 0.04 * action.shape[axis]
        borders = []
        for seed in range(20):
            sizes = warp(action, seeded(seed)).sum(dim=axis).float()
            borders += (sizes - action.shape[axis] / 2).abs().tolist()
        assert 0.01 * action.shape[axis] < max(borders) < reach


@settings(deadline=None, max_examples=40)
@given(corner=st.tuples(st.integers(0, 39), st.integers(0, 59)), size=st.floats(0.02, 0.2), seed=st.integers(0, 999))
def test_a_blob_is_one_class_near_what_is_segmented(corner: tuple[int, int], size: float, seed: int) -> None:
    action = torch.zeros(40, 60, dtype=torch.uint8)
    action[corner] = 1
    written = add_blob(action, K, seeded(seed), size)
    changed = (written != action).nonzero()
    assert len(written[written != action].unique()) <= 1
    if len(changed):
        distance = (changed - torch.tensor(corner)).float().norm(dim=1)
        # Its edge is rough: noise of 0.4 on the squared radius, 4 standard deviations at most.
        assert float(distance.max()) <= 60 * size * (1 + 4 * 0.4) ** 0.5
        assert len(changed) <= 3.2 * (60 * size) ** 2 * 1.5 + 1


def test_every_class_comes_as_a_blob_and_larger_blobs_cover_more() -> None:
    action, generator = background_only((40, 40)), seeded()
    drawn = [add_blob(action, K, generator) for _ in range(60)]
    assert {label for mask in drawn for label in mask.unique().tolist()} == set(range(K))
    erased = [add_blob(all_foreground((40, 40)), K, generator) for _ in range(30)]
    assert any((mask == 0).any() for mask in erased), "the background is a class too"

    def covered(size: float) -> float:
        return sum(float((add_blob(action, K, seeded(seed), size) > 0).float().mean()) for seed in range(30))

    assert covered(0.05) < covered(0.12) < covered(0.3)


def test_exactly_one_structure_is_dropped_and_each_has_its_turn() -> None:
    action, generator, dropped = rings(), seeded(), set()
    for _ in range(30):
        mask = drop_structure(action, generator)
        (label,) = set(action.unique().tolist()) - set(mask.unique().tolist())
        assert torch.equal(mask, torch.where(action == label, 0, action))
        dropped.add(label)
    assert dropped == {1, 2, 3}


def test_nothing_to_drop_gives_a_copy() -> None:
    action = background_only((6, 6))
    mask = drop_structure(action, seeded())
    assert torch.equal(mask, action)
    mask.fill_(1)
    assert not action.any()
