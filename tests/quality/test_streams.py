"""A test of drift after every study."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from medfm_rl.quality import streams
from medfm_rl.quality.streams import (
    STUDIES_TO_FALSE_ALARM,
    ConformalRanks,
    Detector,
    DriftTest,
    Signal,
    audit_draw,
    change_point,
    conformal_p_values,
)


def test_a_rank_by_hand() -> None:
    ranks = ConformalRanks(0, "by hand")
    first, second, third = ranks.add(1.0), ranks.add(3.0), ranks.add(2.0)
    assert 0 < first < 1
    # Larger than all: between 0 and 1 / 2. In the middle of three: between 1 / 3 and 2 / 3.
    assert 0 < second < 1 / 2
    assert 1 / 3 < third < 2 / 3


@given(st.integers(0, 1000), st.integers(1, 5))
def test_p_values_of_exchangeable_numbers_are_uniform_however_many_are_equal(seed: int, kinds: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, kinds, 300).astype(float)
    assert stats.kstest(conformal_p_values(numbers, seed), "uniform").pvalue > 1e-5


def test_every_bet_is_fair() -> None:
    for bet in range(7):
        # The integral of a density; the tails have no end at 0 and 1, and are cut off at 1e-9.
        total = integrate.quad(lambda p, bet=bet: streams._payoffs(p)[bet], 0, 1, limit=200)[0]
        assert total == pytest.approx(1, abs=0.05)


def test_capital_is_that_of_gamblers_who_entered_one_by_one() -> None:
    """Against an oracle that keeps each gambler apart."""
    p_values = np.random.default_rng(0).random(12)
    detector, gamblers = Detector(), []
    for p in p_values:
        gamblers.append(np.full(7, 1 / 7))
        gamblers = [(0.98 * own + 0.02 * own.sum() / 7) * streams._payoffs(p) for own in gamblers]
        assert detector.add(p) == pytest.approx(sum(own.sum() for own in gamblers))


def studies(count: int, change: int, shift: float, generator: np.random.Generator) -> list[dict[Signal, float]]:
    numbers = generator.normal(size=(count, 2))
    numbers[change:] += shift
    return [
        {"appearance": float(row[0]), "rewards": -float(row[1]), "rules": float(generator.random() < 0.1)}
        for row in numbers
    ]


def test_at_most_one_false_alarm_in_a_thousand_studies() -> None:
    generator = np.random.default_rng(0)
    alarms = tested = 0
    for seed in range(30):
        test = DriftTest(seed)
        for numbers in studies(400, 400, 0, generator):
            tested += 1
            if test.add(numbers):
                alarms += 1
                break
    assert alarms <= stats.poisson.ppf(0.99, tested / STUDIES_TO_FALSE_ALARM)


@pytest.mark.parametrize("shift", [2.0, 3.0])
def test_a_change_is_noticed_within_fifteen_studies_and_dated(shift: float) -> None:
    delays, dates = [], []
    for seed in range(15):
        test = DriftTest(seed)
        for numbers in studies(200, 60, shift, np.random.default_rng(seed)):
            test.add(numbers)
        assert test.alarm is not None
        delays.append(test.alarm.study - 60)
        dates.append(test.alarm.since - 61)
        assert test.alarm.signal in ("appearance", "rewards")
    assert np.median(delays) <= 15
    assert abs(np.median(dates)) <= 3


def test_an_alarm_says_what_changed_and_in_which_direction() -> None:
    test = DriftTest(0)
    generator = np.random.default_rng(0)
    for index in range(120):
        lower = 4.0 if index >= 60 else 0.0
        test.add({"appearance": float(generator.normal()), "rewards": float(generator.normal()) - lower})
    assert test.alarm is not None
    assert test.alarm.signal == "rewards"
    assert test.alarm.words == "the reward networks think less of the masks"
    assert 58 <= test.alarm.since <= 64
    before = test.alarm
    assert test.add({"appearance": 0.0}) is before


def test_a_stream_that_has_just_begun_raises_no_alarm() -> None:
    test = DriftTest(0)
    for _ in range(10):
        test.add({"appearance": 1.0, "rewards": 1.0, "rules": 0.0})
    assert test.alarm is None
    assert not test.knows_itself


def test_a_change_point_by_hand() -> None:
    assert change_point([0.5, None, 0.5, 0.5, 0.01, 0.02, 0.01]) == (4, True)
    assert change_point([0.5, 0.5, 0.99, 0.999]) == (2, False)


def test_the_audit_draws_its_share_and_always_the_same() -> None:
    drawn = [audit_draw(7, f"case {number}", 0.05) for number in range(4000)]
    assert 0.035 < np.mean(drawn) < 0.065
    assert drawn == [audit_draw(7, f"case {number}", 0.05) for number in range(4000)]
    assert not any(audit_draw(7, f"case {number}", 0.0) for number in range(100))
    assert all(audit_draw(7, f"case {number}", 1.0) for number in range(100))
