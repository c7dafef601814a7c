from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.corruption import warp
from medfm_rl.reward.judgement_term import JudgementTerm
from medfm_rl.reward.judgements import (
    Comparison,
    JudgedMask,
    Judgement,
    JudgementLink,
    Judgements,
    SplitJudgements,
    compared_regions,
    judged_regions,
    quality_logit,
    scores_of,
)
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.origins import GROUND_TRUTH, ActionOrigin
from medfm_rl.reward.patient_split import SplitRecords
from medfm_rl.reward.training import train_reward
from medfm_rl.settings import NetworkSettings, RewardSettings
from medfm_rl.structures import exclusive

CPU = torch.device("cpu")
scores = st.floats(-8, 8)


def link_with(
    thresholds: tuple[float, ...] = (-3.0, -1.0, 1.0, 3.0),
    verdict: float = 0.0,
    slope: float = 1.0,
    sharpness: float = 1.0,
) -> JudgementLink:
    """In double precision, so that numbers can be compared with those of hand and paper."""
    link = JudgementLink().double()
    gaps = torch.tensor(thresholds, dtype=torch.float64).diff()
    with torch.no_grad():
        link.first.fill_(thresholds[0])
        link.gaps.copy_(torch.log(torch.expm1(gaps)))
        link.verdict.fill_(verdict)
        link.slope.fill_(math.log(math.expm1(slope)))
        link.sharpness.fill_(math.log(math.expm1(sharpness)))
    return link


def at(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def moving(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def slope_of(loss: Tensor, score: Tensor) -> float:
    return float(torch.autograd.grad(loss, score)[0])


def value_of(loss: Tensor) -> float:
    return loss.item()


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


# The link


@settings(max_examples=50, deadline=None)
@given(scores, st.floats(0.1, 4))
def test_the_probabilities_of_all_grades_sum_to_one_and_both_verdicts_too(score: float, slope: float) -> None:
    link = link_with(slope=slope)
    grades = [math.exp(-value_of(link.grade_loss(at(score), grade))) for grade in range(5)]
    assert sum(grades) == pytest.approx(1)
    assert sum(math.exp(-value_of(link.verdict_loss(at(score), said))) for said in (True, False)) == pytest.approx(1)


def test_the_loss_of_a_grade_and_its_slope_by_hand() -> None:
    """Score 0, thresholds -3, -1, 1, 3, slope 1. Grade 2: sigmoid(1) - sigmoid(-1) = .46212; by symmetry no slope.

    Grade 3: sigmoid(-1) - sigmoid(-3) = .22151, and d/ds of minus its logarithm is sigmoid(-1) + sigmoid(-3) - 1.
    """
    link, score = link_with(), moving(0.0)
    loss = link.grade_loss(score, 2)
    assert value_of(loss) == pytest.approx(-math.log(0.462117), abs=1e-6)
    assert slope_of(loss, score) == pytest.approx(0, abs=1e-12)
    loss = link.grade_loss(score, 3)
    assert value_of(loss) == pytest.approx(-math.log(0.221515), abs=1e-5)
    assert slope_of(loss, score) == pytest.approx(0.268941 + 0.047426 - 1, abs=1e-6)
    # The best grade has no threshold above it: minus sigmoid(3), what is missing to certainty.
    assert slope_of(link.grade_loss(score, 4), score) == pytest.approx(-sigmoid(3))


def test_a_verdict_and_a_preference_by_hand() -> None:
    """Slope 2, threshold 1, score 2: log-odds 2. Scores 1 and 0 with sharpness 3: log-odds 3."""
    link, score = link_with(verdict=1.0, slope=2.0, sharpness=3.0), moving(2.0)
    loss = link.verdict_loss(score, False)
    assert value_of(loss) == pytest.approx(math.log(1 + math.exp(2)))
    assert slope_of(loss, score) == pytest.approx(2 * sigmoid(2))
    better, worse = moving(1.0), moving(0.0)
    loss = link.preference_loss(better, worse)
    assert value_of(loss) == pytest.approx(math.log(1 + math.exp(-3)))
    assert slope_of(link.preference_loss(better, worse), better) == pytest.approx(-3 * sigmoid(-3))
    assert slope_of(link.preference_loss(better, worse), worse) == pytest.approx(3 * sigmoid(-3))


def test_what_is_certain_costs_nothing() -> None:
    link = link_with((-60.0, -20.0, 20.0, 60.0))
    expected = {0: -100.0, 1: -40.0, 2: 0.0, 3: 40.0, 4: 100.0}
    assert all(value_of(link.grade_loss(at(score), grade)) < 1e-6 for grade, score in expected.items())
    assert value_of(link.verdict_loss(at(40.0), True)) < 1e-6
    assert value_of(link.verdict_loss(at(-40.0), False)) < 1e-6
    assert value_of(link.preference_loss(at(40.0), at(0.0))) < 1e-6


@settings(max_examples=50, deadline=None)
@given(scores, scores)
def test_a_preference_the_other_way_round_has_the_other_probability(first: float, second: float) -> None:
    link = link_with(sharpness=1.5)
    one, other = (value_of(link.preference_loss(at(a), at(b))) for a, b in ((first, second), (second, first)))
    assert math.exp(-one) + math.exp(-other) == pytest.approx(1)
    assert (one < other) == (first > second) or first == pytest.approx(second)


@settings(max_examples=50, deadline=None)
@given(scores, scores)
def test_a_better_score_is_a_better_grade_whatever_was_learned(low: float, high: float) -> None:
    """The expected grade never falls, for no raw value of a parameter turns the order round."""
    low, high = sorted((low, high))
    link = JudgementLink().double()
    with torch.no_grad():
        for value in link.parameters():
            value.sub_(3.0)
    assert bool((link.thresholds.diff() > 0).all())
    expected = [
        sum(grade * math.exp(-value_of(link.grade_loss(at(score), grade))) for grade in range(5))
        for score in (low, high)
    ]
    assert expected[0] <= expected[1] + 1e-12


def test_far_from_its_grade_the_loss_is_finite_and_so_is_its_slope() -> None:
    link = JudgementLink()
    for grade, score in itertools.product(range(5), (-500.0, 500.0)):
        value = torch.tensor(score, requires_grad=True)
        loss = link.grade_loss(value, grade)
        assert math.isfinite(value_of(loss))
        assert math.isfinite(slope_of(loss, value))


def test_the_prior_holds_the_link_where_it_starts() -> None:
    link = JudgementLink()
    assert value_of(link.penalty()) == 0
    with torch.no_grad():
        link.first.add_(2.0)
    # One parameter moved by one spread of the prior.
    assert value_of(link.penalty()) == pytest.approx(0.5)


def test_the_mean_loss_is_that_of_all_that_was_said_each_by_its_trust() -> None:
    link, scores = (
        link_with(verdict=0.5, sharpness=2.0),
        [[at(-1.0)], [at(2.0)], [at(0.5)], [at(1.0), at(0.2)], [at(3.0)]],
    )
    said: list[Judgement | Comparison] = [
        Judgement(0, None, "grade", 0.25, 0.5),
        Judgement(1, None, "verdict", 1.0),
        Judgement(2, 1, "grade", 0.25),
        Comparison(3, 4, None, 0.25),
        Judgement(5, None, "verdict", 0.0),
    ]
    each = [value_of(link.loss(what, of_it)) for what, of_it in zip(said, scores, strict=True)]
    assert value_of(link.mean_loss(said, scores)) == pytest.approx(sum(each) / 5)


def test_a_fitted_link_leaves_no_level_to_be_learned() -> None:
    """Twenty masks of score 3, of which five get each grade but one: thresholds move, and slopes sum to nearly 0."""
    scores = [torch.tensor(3.0 + 0.01 * row, requires_grad=True) for row in range(20)]
    said = [Judgement(row, None, "grade", (row % 4) / 4) for row in range(20)]
    link = JudgementLink()

    def pull() -> float:
        losses = [link.loss(each, [score]) for each, score in zip(said, scores, strict=True)]
        return sum(float(slope) for slope in torch.autograd.grad(torch.stack(losses).sum(), scores))

    before = pull()
    link.fit(said, [[score.detach()] for score in scores])
    assert before > 10
    assert abs(pull()) < 0.2 * before


# The score of a mask


@settings(max_examples=30, deadline=None)
@given(st.floats(-20, 20), st.integers(1, 3))
def test_a_flat_map_of_log_odds_z_scores_z(value: float, regions: int) -> None:
    score = quality_logit(torch.full((2, 6, 6), value), torch.ones(2, regions, 6, 6))
    assert float(score) == pytest.approx(value, abs=1e-3)


def test_the_score_is_the_log_odds_of_the_mean_over_structures_by_hand() -> None:
    """Two regions of one and four pixels, right with .5 and .9 each: a mean of .7, log(.7 / .3)."""
    logits = torch.zeros(1, 1, 5)
    logits[0, 0, 1:] = math.log(9)
    regions = torch.zeros(1, 2, 1, 5)
    regions[0, 0, 0, 0] = 1
    regions[0, 1, 0, 1:] = 1
    logits.requires_grad_(True)
    score = quality_logit(logits, regions)
    assert score.item() == pytest.approx(math.log(7 / 3), abs=1e-6)
    # d score = d mean / (.7 x .3); the mean moves by .5 x .5 / 2 of the first pixel and .9 x .1 / 8 of each other.
    score.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].tolist() == pytest.approx([0.125 / 0.21, *[0.01125 / 0.21] * 4], rel=1e-5)


def test_tiles_of_a_mask_are_scored_as_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 8, 12, generator=generator)
    regions = (torch.rand(1, 2, 8, 12, generator=generator) < 0.5).float()
    whole = quality_logit(logits, regions)
    tiles = quality_logit(torch.cat(logits.split(6, dim=2)), torch.cat(regions.split(6, dim=3)))
    assert float(tiles) == pytest.approx(float(whole), abs=1e-5)


def box(*, row: int = 2, column: int, structure: int = 1) -> Tensor:
    mask = torch.zeros(1, 32, 32, dtype=torch.int64)
    mask[0, row : row + 4, column : column + 4] = structure
    return mask


def test_a_judgement_looks_where_the_structure_is_and_everywhere_if_it_is_missing() -> None:
    """A box of 4 x 4 two pixels from the border: 3 further rows below, 2 above; columns 3 on both sides."""
    mask = box(column=10)
    assert int(judged_regions(mask, 1, exclusive(3)).sum()) == 9 * 10
    # Of the whole mask: of the structures that it has.
    assert judged_regions(mask, None, exclusive(3)).shape == (1, 1, 32, 32)
    assert int(judged_regions(mask, 2, exclusive(3)).sum()) == 32 * 32
    assert int(judged_regions(torch.zeros_like(mask), None, exclusive(3)).sum()) == 32 * 32


def test_a_preference_looks_at_a_false_island_in_both_masks() -> None:
    with_island, without = box(column=4) + box(column=20, structure=2), box(column=5)
    first, second = compared_regions(with_island, without, None, exclusive(3))
    assert torch.equal(first[0, 1], second[0, 1])
    assert int(first[0, 1].sum()) == 9 * 10
    assert not torch.equal(first[0, 0], second[0, 0])
    only_second = compared_regions(with_island, without, 2, exclusive(3))
    assert all(torch.equal(each[0, 0], first[0, 1]) for each in only_second)
    nothing = compared_regions(without, without, 2, exclusive(3))
    assert all(int(each.sum()) == 32 * 32 for each in nothing)


def test_of_two_masks_the_preferred_one_is_raised_and_the_other_lowered() -> None:
    masks = [box(column=4), box(column=6)]
    logits = [torch.zeros(1, 32, 32, requires_grad=True) for _ in masks]
    said = Comparison(0, 1, 1)
    JudgementLink().loss(said, scores_of(said, logits, masks, exclusive(3))).backward()
    assert logits[0].grad is not None
    assert logits[1].grad is not None
    assert float(logits[0].grad.sum()) == pytest.approx(-float(logits[1].grad.sum()))
    assert float(logits[0].grad.sum()) < 0
    assert float(logits[0].grad[0, 20:].abs().sum()) == 0


@pytest.mark.parametrize(("scale", "value"), [("grade", 0.3), ("verdict", 0.5), ("grade", 1.25), ("grade", -0.25)])
def test_a_value_that_is_none_of_the_scale_is_an_error(scale: Any, value: float) -> None:
    with pytest.raises(ValueError, match=f"no {scale} has the value {value}"):
        Judgement(0, None, scale, value)


def test_judgements_are_split_by_patient() -> None:
    masks = tuple(JudgedMask(torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8), name) for name in ("a", "a", "b", "c"))
    said = (
        Judgement(0, None, "grade", 0.5),
        Comparison(0, 1, 1),
        Judgement(2, 1, "verdict", 1.0),
        Judgement(3, 1, "grade", 1.0),
    )
    split = SplitJudgements.hold_out(Judgements(masks, said, exclusive(K), 1.0), {"a", "x"})
    assert split.training.said == said[2:]
    assert split.validation.said == said[:2]
    assert (split.training.patients, split.validation.patients) == ({"b", "c"}, {"a"})


# In the training of a network


SIDE, K = 32, 2


def squares(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Bright squares in noise, and where they are."""
    truths = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    for truth in truths:
        row, column = torch.randint(6, 14, (2,), generator=generator).tolist()
        truth[row : row + 12, column : column + 12] = 1
    return 2 * truths[:, None] - 1 + 0.3 * torch.randn(count, 1, SIDE, SIDE, generator=generator), truths


def attempts(truth: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Masks from nearly right to quite wrong."""
    strengths = torch.linspace(0.0, 0.4, count)
    return torch.stack([warp(truth, generator, float(strength)) for strength in strengths])


def dice(mask: Tensor, truth: Tensor) -> float:
    both = ((mask == 1) & (truth == 1)).sum()
    return float(2 * both / ((mask == 1).sum() + (truth == 1).sum()))


def records_that_know_nothing(generator: torch.Generator) -> SplitRecords:
    """Pixels with truth, of noise: nine in ten are right, and nothing that can be seen says which."""
    count = 8
    actions = (torch.rand(count, 1, SIDE, SIDE, generator=generator) < 0.3).to(torch.uint8)
    wrong = torch.rand(count, SIDE, SIDE, generator=generator) < 0.1
    references = torch.where(wrong, 1 - actions[:, 0], actions[:, 0])
    names = [f"noise{index}" for index in range(count)]
    records = ActionRecords(
        torch.randn(count, 1, SIDE, SIDE, generator=generator),
        actions,
        references,
        torch.ones(count, SIDE, SIDE),
        tuple(ActionOrigin(name, name, GROUND_TRUTH, ("policy",)) for name in names),
    )
    return SplitRecords.hold_out(records, set(names[:3]))


def judged_squares(kind: str, generator: torch.Generator, patients: int = 18, tries: int = 4) -> Judgements:
    """Reviewers who see the squares: grades and verdicts by Dice, preferences for the higher."""
    images, truths = squares(patients, generator)
    masks: list[JudgedMask] = []
    said: list[Judgement | Comparison] = []
    for patient, (image, truth) in enumerate(zip(images, truths, strict=True)):
        tried = attempts(truth, tries, generator)
        first, qualities = len(masks), [dice(mask, truth) for mask in tried]
        masks.extend(JudgedMask(image[None], mask[None], f"square{patient}") for mask in tried)
        if kind == "preferences":
            said.extend(
                Comparison(*((first + a, first + b) if qualities[a] > qualities[b] else (first + b, first + a)), None)
                for a, b in itertools.combinations(range(tries), 2)
                if qualities[a] != qualities[b]
            )
        elif kind == "grades":
            levels = np.digitize(qualities, [0.5, 0.65, 0.8, 0.92])
            said.extend(Judgement(first + row, 1, "grade", level / 4) for row, level in enumerate(levels.tolist()))
        else:
            said.extend(Judgement(first + row, None, "verdict", float(q > 0.8)) for row, q in enumerate(qualities))
    return Judgements(tuple(masks), tuple(said), exclusive(K), 1.0)


def new_net() -> RewardNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RewardNet(NetworkSettings(channels=(8, 16), residual_units=0), K)


def train(judgements: SplitJudgements | None, steps: int) -> RewardNet:
    net = new_net()
    chosen = RewardSettings(
        network=net.settings, steps=steps, validate_every=steps // 4, patience=4, batch_size=8, learning_rate=1e-2
    )
    train_reward(
        net, records_that_know_nothing(torch.Generator().manual_seed(1)), chosen, 0, CPU, judgements=judgements
    )
    return net


@torch.no_grad()
def rank_agreement(net: RewardNet) -> float:
    """Spearman between scores and Dice over masks of images that nobody judged."""
    generator = torch.Generator().manual_seed(99)
    images, truths = squares(12, generator)
    found, true = [], []
    for image, truth in zip(images, truths, strict=True):
        tried = attempts(truth, 4, generator)
        for mask in tried:
            action = mask[None].long()
            found.append(float(quality_logit(net(image[None], action), judged_regions(action, None, exclusive(K)))))
            true.append(dice(mask, truth))
    return float(spearmanr(found, true).statistic)


def test_of_many_tiles_a_step_looks_at_those_that_have_what_was_judged() -> None:
    """Ten tiles, of which the structure is in three and another structure in four more."""
    actions = torch.zeros(10, 16, 16, dtype=torch.uint8)
    actions[[1, 4, 8], 5:9, 5:9] = 1
    actions[[0, 2, 3, 5], 5:9, 5:9] = 2
    seen: list[list[float]] = []

    class Watched(RewardNet):
        def forward(self, images: Tensor, actions: Tensor) -> Tensor:
            seen.append(images[:, 0, 0, 0].tolist())
            return super().forward(images, actions)

    net = Watched(NetworkSettings(channels=(4, 8), residual_units=0), 3)
    numbers = torch.arange(10.0).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    masks = (JudgedMask(numbers, actions, "p"), JudgedMask(numbers, torch.zeros_like(actions), "p"))
    for said, expected in (
        (Judgement(0, 1, "grade", 0.5), {1, 4, 8}),
        (Judgement(0, None, "grade", 0.5), {0, 1, 2, 3, 4, 5, 8}),
        (Comparison(1, 0, 2), {0, 2, 3, 5}),
        (Judgement(1, 1, "verdict", 0.0), set(range(10))),
    ):
        seen.clear()
        split = SplitJudgements.hold_out(Judgements(masks, (said,), exclusive(3), 1.0), set())
        term = JudgementTerm(split, net, CPU, 4, torch.Generator().manual_seed(0))
        net.train()
        for _ in range(4):
            term.step_loss()
        assert {int(number) for batch in seen for number in batch} <= expected
        assert all(len(set(batch)) == min(4, len(expected)) for batch in seen)


@pytest.mark.parametrize("kind", ["grades", "verdicts", "preferences"])
def test_a_network_learns_to_rank_masks_from_judgements_alone(kind: str) -> None:
    """Its pixels have no truth that helps: what it knows of squares, reviewers have said."""
    judged = judged_squares(kind, torch.Generator().manual_seed(2))
    net = train(SplitJudgements.hold_out(judged, {f"square{index}" for index in range(4)}), 40)
    assert rank_agreement(net) > 0.8


def test_without_judgements_the_same_network_ranks_them_worse() -> None:
    assert rank_agreement(train(None, 40)) < 0.6


def test_no_judgements_of_a_network_leave_it_bit_for_bit_as_without() -> None:
    nothing = SplitJudgements.hold_out(Judgements((), (), exclusive(K), 0.2), set())
    states = [train(judgements, 8).state_dict() for judgements in (None, nothing)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_probabilities_stay_those_of_the_pixels() -> None:
    """Reviewers who find every mask useless do not lower what the network says of pixels."""
    judged = judged_squares("grades", torch.Generator().manual_seed(2), patients=6)
    strict = Judgements(
        judged.masks, tuple(Judgement(each, 1, "grade", 0.0) for each in range(len(judged.masks))), exclusive(K), 1.0
    )
    fresh = records_that_know_nothing(torch.Generator().manual_seed(5)).training
    levels = []
    for judgements in (None, SplitJudgements.hold_out(strict, set())):
        net = train(judgements, 40)
        with torch.no_grad():
            levels.append(float(net.reward_map(fresh.images, fresh.actions[:, 0]).mean()))
    assert levels[0] > 0.75
    assert levels[1] == pytest.approx(levels[0], abs=0.02)
