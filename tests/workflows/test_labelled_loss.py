"""The loss against expert masks, by hand and against MONAI's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss
from torch.nn import functional as F

from medfm_rl.types import IGNORED
from medfm_rl.workflows.labelled_loss import DiceAndCrossEntropy


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 4), volume=st.booleans())
def test_without_ignored_pixels_it_is_that_of_monai_to_the_last_bit(seed: int, classes: int, volume: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (5, 4, 6) if volume else (5, 6)
    logits = torch.randn(2, classes, *shape, generator=generator)
    labels = torch.randint(classes, (2, *shape), generator=generator, dtype=torch.uint8)
    theirs = DiceCELoss(to_onehot_y=True, softmax=True)(logits, labels[:, None])
    assert torch.equal(DiceAndCrossEntropy()(logits, labels), theirs)


def test_what_is_ignored_has_no_part_in_it() -> None:
    """The same as of the other pixels alone, whatever the logits are there, and no gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 6, generator=generator)
    labels = torch.randint(3, (2, 4, 6), generator=generator, dtype=torch.uint8)
    labels[:, :, 4:] = IGNORED
    alone = DiceCELoss(to_onehot_y=True, softmax=True)(logits[..., :4], labels[:, None, :, :4])
    for factor in (1.0, 30.0, -5.0):
        shown = torch.cat([logits[..., :4], factor * logits[..., 4:]], dim=-1).requires_grad_()
        loss = DiceAndCrossEntropy()(shown, labels)
        assert float(loss.detach()) == pytest.approx(float(alone), abs=1e-6)
        loss.backward()
        assert shown.grad is not None
        assert bool((shown.grad[..., 4:] == 0).all())
        assert bool((shown.grad[..., :4] != 0).any())


def test_one_pixel_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 9.0]], [[1.0, -9.0]]]])
    labels = torch.tensor([[[1, IGNORED]]], dtype=torch.uint8)
    p = float(torch.tensor(1.0).sigmoid())
    # Dice of the background is 1 - e / (1 - p + e), and that of the structure 1 - (2 p + e) / (1 + p + e).
    e = 1e-5
    dice = ((1 - e / (1 - p + e)) + (1 - (2 * p + e) / (1 + p + e))) / 2
    cross_entropy = float(F.cross_entropy(torch.tensor([[0.0, 1.0]]), torch.tensor([1])))
    assert float(DiceAndCrossEntropy()(logits, labels)) == pytest.approx(dice + cross_entropy, abs=1e-5)


def test_of_an_image_of_which_nothing_is_said_there_is_no_loss() -> None:
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = DiceAndCrossEntropy()(logits, torch.full((1, 3, 3), IGNORED, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not bool(logits.grad.any())
