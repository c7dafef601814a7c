from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfm_rl.errors import ModelError
from medfm_rl.quality.baselines import (
    AugmentationAgreement,
    EnsembleAgreement,
    MaxSoftmax,
    MeanEntropy,
    MonteCarloDropout,
    QualityEstimator,
    ReverseClassification,
    SoftDiceConfidence,
    pairwise_dice,
)
from medfm_rl.structures import exclusive


class Threshold(nn.Module):
    """Logits `(0, gain * (image - level))`: brighter pixels are the structure."""

    def __init__(self, gain: float, level: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.gain, self.level = gain, level
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        score = self.dropout(self.gain * (images - self.level))
        return torch.cat([torch.zeros_like(score), score], dim=1)


def picture() -> tuple[Tensor, Tensor]:
    """A bright square of value 1 on -1, and its mask."""
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    mask[4:12, 4:12] = 1
    return (2 * mask.float() - 1)[None], mask


def test_softmax_by_hand() -> None:
    image, mask = picture()
    p = 1 / (1 + math.exp(-2))
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert MeanEntropy(Threshold(2)).estimate(image, mask) == pytest.approx(-entropy, rel=1e-5)
    assert MaxSoftmax(Threshold(2)).estimate(image, mask) == pytest.approx(p, rel=1e-5)


def test_soft_dice_confidence_by_hand() -> None:
    image, mask = picture()
    p = 1 / (1 + math.exp(-2))
    # 64 pixels of the square at p, 192 around it at 1 - p.
    expected = 2 * 64 * p / (64 + 64 * p + 192 * (1 - p))
    assert SoftDiceConfidence(Threshold(2), exclusive(2)).estimate(image, mask) == pytest.approx(expected, rel=1e-5)
    assert SoftDiceConfidence(Threshold(2), exclusive(2)).estimate(image, torch.zeros_like(mask)) == 0


def test_pairwise_dice_is_the_mean_over_pairs() -> None:
    one, two = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 0, 0])
    # 1 for the equal pair, 2 / 3 for the two others.
    assert pairwise_dice([one, one, two], exclusive(2)) == pytest.approx((1 + 2 * 2 / 3) / 3)


def test_an_ensemble_agrees_or_does_not() -> None:
    image, mask = picture()
    agreeing = EnsembleAgreement([Threshold(1), Threshold(2)], exclusive(2))
    assert agreeing.forward_passes == 2
    assert agreeing.estimate(image, mask) == 1
    # The second sees nothing: of three pairs one agrees.
    assert EnsembleAgreement([Threshold(1), Threshold(1, level=3)], exclusive(2)).estimate(
        image, mask
    ) == pytest.approx(1 / 3)
    assert agreeing.estimate(image, 1 - mask) < 0.5


def test_dropout_draws_the_same_for_every_mask_and_leaves_the_segmenter_as_it_was() -> None:
    image, mask = picture()
    segmenter = Threshold(1, dropout=0.5)
    state = torch.get_rng_state()
    judge = MonteCarloDropout(segmenter, exclusive(2))
    first = judge.estimate(image, mask)
    assert judge.estimate(image, mask) == first
    assert 0 < first < 1
    assert not segmenter.dropout.training
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_needs_a_segmenter_that_has_it() -> None:
    with pytest.raises(ModelError, match="trained with dropout, this one has none"):
        MonteCarloDropout(Threshold(1), exclusive(2))


def test_augmentation_doubts_what_hangs_on_the_appearance() -> None:
    generator = torch.Generator().manual_seed(0)
    image, mask = picture()
    noisy = image + 0.2 * torch.randn(image.shape, generator=generator)
    sure = AugmentationAgreement(Threshold(1), exclusive(2)).estimate(noisy, mask)
    faint = 0.1 * image + 0.2 * torch.randn(image.shape, generator=generator)
    unsure = AugmentationAgreement(Threshold(1), exclusive(2)).estimate(
        faint, Threshold(1)(faint[None])[0].argmax(dim=0)
    )
    assert sure > unsure


def test_reversal_tells_a_mask_that_fits_from_one_that_does_not() -> None:
    image, mask = picture()
    judge = ReverseClassification(image[None], mask[None], exclusive(2))
    assert judge.estimate(image, mask) > 0.95
    wrong = torch.zeros_like(mask)
    wrong[:5, :5] = 1
    assert judge.estimate(image, wrong) < 0.5
    assert judge.estimate(image, mask) == judge.estimate(image, mask)


def test_all_have_one_interface() -> None:
    image, mask = picture()
    assesses: list[QualityEstimator] = [
        MeanEntropy(Threshold(1)),
        MaxSoftmax(Threshold(1)),
        SoftDiceConfidence(Threshold(1), exclusive(2)),
        MonteCarloDropout(Threshold(1, dropout=0.1), exclusive(2)),
        EnsembleAgreement([Threshold(1)], exclusive(2)),
        AugmentationAgreement(Threshold(1), exclusive(2)),
        ReverseClassification(image[None], mask[None], exclusive(2)),
    ]
    assert len({judge.name for judge in assesses}) == 7
    assert all(np.isfinite(judge.estimate(image, mask)) for judge in assesses)
    assert all(judge.forward_passes >= 0 for judge in assesses)
