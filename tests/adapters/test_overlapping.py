from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent
from torch.distributions.kl import kl_divergence as kl_of

from medfm_rl.adapters.overlapping import classes_of_regions, region_logits, subset_logits
from medfm_rl.policies.distribution import DenseCategorical, kl_divergence

REGIONS = 3


@pytest.fixture
def z() -> Tensor:
    return 4 * torch.randn(2, REGIONS, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def bits(classes: Tensor) -> Tensor:
    """Whether each class holds each region, with the regions as the last axis."""
    return (classes[..., None] >> torch.arange(REGIONS) & 1).double()


def bernoullis(z: Tensor) -> Independent:
    return Independent(Bernoulli(logits=z.movedim(1, -1)), 1)


def test_probabilities_of_sets_are_those_of_independent_bernoullis(z: Tensor) -> None:
    probabilities = subset_logits(z).softmax(dim=1)
    for index in range(2**REGIONS):
        expected = bernoullis(z).log_prob(bits(torch.full((2, 6, 7), index))).exp()
        assert torch.allclose(probabilities[:, index], expected)


def test_log_probability_entropy_and_divergence_are_those_of_independent_bernoullis(z: Tensor) -> None:
    other = z.flip(0) / 2
    policy, reference = DenseCategorical(subset_logits(z)), DenseCategorical(subset_logits(other))
    actions = torch.randint(2**REGIONS, (2, 6, 7), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(policy.log_prob(actions), bernoullis(z).log_prob(bits(actions)))
    assert torch.allclose(policy.entropy(), bernoullis(z).entropy())
    assert torch.allclose(kl_divergence(policy.log_probs, reference.log_probs), kl_of(bernoullis(z), bernoullis(other)))


def test_the_likeliest_set_has_the_regions_that_are_likelier_than_not(z: Tensor) -> None:
    likeliest = subset_logits(z).argmax(dim=1)
    assert torch.equal(bits(likeliest).bool(), z.movedim(1, -1) > 0)
    assert torch.equal(torch.stack([classes_of_regions(each > 0) for each in z]).long(), likeliest)


def test_regions_come_back_to_the_last_bit_and_are_marginals_of_any_other_distribution(z: Tensor) -> None:
    for each in z.float():
        assert torch.equal(region_logits(subset_logits(each[None])[0]), each)
    mixed = torch.randn(8, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    probabilities = mixed.softmax(dim=0)
    for region, found in enumerate(region_logits(mixed).sigmoid()):
        inside = [index for index in range(8) if index >> region & 1]
        assert torch.allclose(found, probabilities[inside].sum(dim=0))


def test_gradients_are_those_of_the_binary_logits(z: Tensor) -> None:
    actions = torch.randint(2**REGIONS, (2, 6, 7), generator=torch.Generator().manual_seed(1))
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    DenseCategorical(subset_logits(ours)).log_prob(actions).sum().backward()
    bernoullis(theirs).log_prob(bits(actions)).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad)
