from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfm_rl.anatomy.profiles import RuleResult
from medfm_rl.errors import ModelError
from medfm_rl.metrics.overlap import dice
from medfm_rl.quality.evidence import FEATURES, OWN_ESTIMATE, Evidence, confidence_in, expected_dice, soft_dice
from medfm_rl.quality.model import PixelCalibration
from medfm_rl.structures import exclusive, overlapping


def test_a_map_of_ones_expects_a_perfect_mask() -> None:
    actions = torch.tensor([[[0, 1, 1], [0, 2, 2], [0, 0, 0]]])
    assert expected_dice(torch.ones(1, 3, 3), actions, exclusive(3)).tolist() == [[1.0, 1.0]]


def test_doubt_inside_and_outside_by_hand() -> None:
    actions = torch.zeros(1, 4, 4, dtype=torch.long)
    actions[0, 0] = 1
    maps = torch.ones(1, 4, 4)
    maps[0, 0] = 0.5
    # 4 pixels, 2 of which are expected to be right: 2 * 2 / (4 + 2).
    assert expected_dice(maps, actions, exclusive(2)).item() == pytest.approx(2 / 3)
    maps[0, 0] = 1
    maps[0, 1, 0] = 0
    # A pixel beside it that should have been of the structure: 2 * 4 / (4 + 4 + 1).
    assert expected_dice(maps, actions, exclusive(2)).item() == pytest.approx(8 / 9)


def test_a_wrong_pixel_between_two_structures_is_shared_by_them() -> None:
    actions = torch.tensor([[[1, 0, 2]]])
    maps = torch.tensor([[[1.0, 0.0, 1.0]]])
    # Half of the pixel is expected to belong to each: 2 * 1 / (1 + 1 + 1 / 2).
    assert expected_dice(maps, actions, exclusive(3)).tolist() == [[pytest.approx(0.8)] * 2]


def test_a_wrong_pixel_far_from_a_structure_is_none_of_its() -> None:
    actions = torch.zeros(1, 1, 40, dtype=torch.long)
    actions[0, 0, :5] = 1
    maps = torch.ones(1, 1, 40)
    maps[0, 0, 30] = 0
    assert expected_dice(maps, actions, exclusive(2)).item() == 1


def test_a_missing_structure_is_expected_to_have_no_overlap() -> None:
    assert expected_dice(torch.ones(1, 3, 3), torch.ones(1, 3, 3, dtype=torch.long), exclusive(3)).tolist() == [
        [1.0, 0.0]
    ]


@settings(deadline=None, max_examples=50)
@given(
    truth=hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 1)),
    action=hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 1)),
)
def test_a_map_that_knows_every_error_gives_the_true_dice(truth: np.ndarray, action: np.ndarray) -> None:
    action[:, 2] = [0, 1, 0, 1]  # Every pixel has the other class within reach.
    action[1], truth[1] = [0, 1, 0, 1, 0], [0, 1, 0, 1, 0]
    action[3] = [1, 0, 1, 0, 1]
    right = torch.from_numpy((truth == action).astype(np.float32))[None]
    found = expected_dice(right, torch.from_numpy(action)[None].long(), exclusive(2))
    assert found.item() == pytest.approx(float(dice(action, truth, exclusive(2))[0]), abs=1e-6)


def evidence_of(maps: torch.Tensor, confidence: torch.Tensor | None) -> Evidence:
    action = torch.zeros(maps.shape, dtype=torch.uint8)
    return Evidence(action, maps, torch.zeros_like(maps), confidence, np.zeros(1), np.zeros(1), (), exclusive(2))


def pixels(**weights: float) -> PixelCalibration:
    return PixelCalibration(ece_before=0.1, ece_after=0.1, **weights)


def test_calibration_moves_the_log_odds_and_keeps_extremes_finite() -> None:
    found = pixels(reward_weight=2.0).probability(evidence_of(torch.tensor([0.0, 0.5, 0.9, 1.0]), None))
    assert found[1] == 0.5
    assert found[2] == pytest.approx(0.81 / (0.81 + 0.01), rel=1e-5)
    assert bool(((found >= 0) & (found <= 1)).all())


def test_odds_of_the_reward_and_of_the_segmenter_multiply() -> None:
    evidence = evidence_of(torch.tensor([0.8, 0.8, 0.5]), torch.tensor([0.75, 0.25, 1.0]))
    found = pixels(reward_weight=1.0, confidence_weight=1.0).probability(evidence)
    # 4 to 1 times 3 to 1, and times 1 to 3.
    assert found[:2].tolist() == pytest.approx([12 / 13, 4 / 7])
    assert 0.999 < found[2] <= 1
    half = pixels(reward_weight=0.5, confidence_weight=0.0, shift=math.log(3)).probability(evidence)
    assert half.tolist() == pytest.approx([6 / 7, 6 / 7, 3 / 4])


def test_a_calibration_for_a_segmenter_that_is_asked_is_not_one_for_another() -> None:
    maps = torch.tensor([0.5])
    for weights, confidence in (({"confidence_weight": 1.0}, None), ({}, torch.tensor([0.5]))):
        with pytest.raises(ModelError, match="another kind of segmenter; calibrate again"):
            pixels(**weights).probability(evidence_of(maps, confidence))


def test_confidence_is_the_probability_of_the_class_that_the_action_has() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), math.log(3)]])
    assert confidence_in(logits, torch.tensor([1, 0], dtype=torch.uint8)).tolist() == pytest.approx([0.75, 0.25])


def test_the_numbers_of_a_structure() -> None:
    action = torch.zeros(20, 20, dtype=torch.uint8)
    action[5:15, 5:15] = 1
    maps = torch.ones(20, 20)
    maps[5:15, 5:15] = 0.4
    rules = (
        RuleResult("holes", "a", None, 0.1, None, 0.0, "share", "", False),
        RuleResult("gap", "b", "a", 0.0, None, 0.1, "share", "", True),
        RuleResult("present", "b", None, None, None, None, "px", "", False),
    )
    # The numbers are of the probability that is given, not of the mean map.
    evidence = Evidence(
        action, torch.zeros(20, 20), torch.full((20, 20), 0.2), None, np.zeros(3), np.zeros(2), rules, exclusive(3)
    )
    first, second = evidence.features(("a", "b"), maps)
    assert tuple(first) == FEATURES
    asked = replace(evidence, own_estimate=torch.tensor([0.7, 0.0])).features(("a", "b"), maps)
    assert [row.pop(OWN_ESTIMATE) for row in asked] == pytest.approx([0.7, 0.0])
    assert asked == [first, second]
    assert first["expected_dice"] == pytest.approx(
        expected_dice(maps[None], action[None].long(), exclusive(3))[0, 0].item()
    )
    # The structure and three pixels around it: 100 pixels of 0.4 in 256.
    assert first["mean_reward"] == pytest.approx((100 * 0.4 + 156) / 256)
    assert first["low_reward"] == pytest.approx(100 / 256)
    assert first["spread"] == pytest.approx(0.2)
    assert first["size"] == pytest.approx(0.5)
    assert (first["rules_failed"], first["all_rules_failed"]) == (1, 2)
    assert (second["rules_failed"], second["size"], second["expected_dice"], second["contour_reward"]) == (1, 0, 0, 0)


def test_a_wrong_pixel_may_still_be_of_the_region_that_it_is_in() -> None:
    action = torch.zeros(1, 20, 20, dtype=torch.long)
    action[:, 5:15, 5:15], action[:, 8:12, 8:12] = 1, 3
    sure = torch.ones(1, 20, 20)
    assert expected_dice(sure, action, overlapping(2)).tolist() == [[1.0, 1.0]]
    # All 16 pixels of class 3 are wrong. 12 of them have class 1 within 5 % of 20 pixels, which is of region 0 too;
    # what the other 4 should have been nothing tells.
    whole, inner = expected_dice(torch.where(action == 3, 0.0, 1.0), action, overlapping(2))[0].tolist()
    assert whole == pytest.approx(2 * (84 + 12) / (100 + 84 + 12))
    assert inner == 0


def test_soft_dice_of_regions_is_that_of_their_probabilities() -> None:
    probabilities = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(0)).softmax(dim=0)
    action = torch.randint(4, (6, 6), generator=torch.Generator().manual_seed(1))
    found = soft_dice(probabilities, action, overlapping(2))
    for bit, classes in enumerate(overlapping(2)):
        p, inside = probabilities[list(classes)].sum(dim=0), (action >> bit & 1).float()
        assert float(found[bit]) == pytest.approx(float(2 * (p * inside).sum() / (inside.sum() + p.sum())))
