from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl

from medfm_rl.policies.distribution import DenseCategorical, kl_divergence

LOGITS = torch.tensor([1.0, 0.0, -1.0])


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4)])
def test_maps_equal_those_of_one_categorical_per_pixel(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *shape, generator=generator)
    other = torch.randn(2, 3, *shape, generator=generator)
    actions = torch.randint(3, (2, *shape), generator=generator)
    ours, theirs = DenseCategorical(logits), Categorical(logits=logits.movedim(1, -1))
    assert torch.allclose(ours.log_prob(actions), theirs.log_prob(actions), atol=1e-6)
    assert torch.allclose(ours.entropy(), theirs.entropy(), atol=1e-6)
    expected = torch_kl(theirs, Categorical(logits=other.movedim(1, -1)))
    assert torch.allclose(kl_divergence(ours.log_probs, DenseCategorical(other).log_probs), expected, atol=1e-5)
    assert torch.equal(ours.mode(), logits.argmax(dim=1))


@pytest.mark.parametrize("correlation_length", [0.0, 3.0])
def test_every_pixel_is_drawn_with_its_own_probabilities(correlation_length: float) -> None:
    logits = LOGITS[None, :, None, None].expand(3000, 3, 8, 9)
    actions = DenseCategorical(logits).sample(torch.Generator().manual_seed(0), correlation_length)
    # One pixel of each image: neighbours are not independent.
    observed = np.bincount(actions[:, 4, 5].numpy(), minlength=3)
    assert chisquare(observed, 3000 * LOGITS.softmax(dim=0).numpy().astype(float)).pvalue > 0.001


def test_correlated_exploration_changes_regions() -> None:
    logits = torch.zeros(8, 2, 64, 64)
    agreement = {}
    for length in (0.0, 4.0):
        actions = DenseCategorical(logits).sample(torch.Generator().manual_seed(0), length)
        agreement[length] = float((actions[..., 1:] == actions[..., :-1]).float().mean())
    assert agreement[0.0] == pytest.approx(0.5, abs=0.02)
    assert agreement[4.0] > 0.85


def test_the_same_generator_draws_the_same_action() -> None:
    logits = torch.zeros(1, 3, 8, 8)
    draws = [DenseCategorical(logits).sample(torch.Generator().manual_seed(1), 2.0) for _ in range(2)]
    assert torch.equal(*draws)
