"""A test of drift after every study."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from medfm_rl.quality import drift
from medfm_rl.quality.appearance import appearance, meaning_of_number
from medfm_rl.quality.drift import (
    STUDIES_TO_FALSE_ALARM,
    ConformalRanks,
    Detector,
    DriftTest,
    Numbers,
    Watch,
    audit_draw,
    change_point,
)


def test_a_rank_by_hand() -> None:
    ranks = ConformalRanks(0, "by hand", 2)
    first, second, third = (ranks.add(np.array(values)) for values in ([1.0, 1.0], [3.0, 0.0], [2.0, 1.0]))
    assert (first > 0).all()
    assert (first < 1).all()
    # Larger than all: between 0 and 1 / 2; smaller than all: between 1 / 2 and 1.
    assert 0 < second[0] < 1 / 2 < second[1] < 1
    # In the middle of three: between 1 / 3 and 2 / 3. As large as one, larger than the other: between 0 and 2 / 3.
    assert 1 / 3 < third[0] < 2 / 3
    assert 0 < third[1] < 2 / 3


@given(st.integers(0, 1000), st.integers(1, 5))
def test_p_values_of_exchangeable_numbers_are_uniform_however_many_are_equal(seed: int, kinds: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, kinds, (300, 1)).astype(float)
    ranks = ConformalRanks(seed, "numbers")
    assert stats.kstest([ranks.add(row)[0] for row in numbers], "uniform").pvalue > 1e-5


def test_every_bet_is_fair() -> None:
    for bet in range(7):
        # The integral of a density; the tails have no end at 0 and 1, and are cut off at 1e-9.
        total = integrate.quad(lambda p, bet=bet: drift._payoffs(np.array([p]))[0, bet], 0, 1, limit=200)[0]
        assert total == pytest.approx(1, abs=0.05)


def test_capital_is_that_of_gamblers_who_entered_one_by_one() -> None:
    """Against an oracle that keeps each gambler apart."""
    p_values = np.random.default_rng(0).random((12, 3))
    detector = Detector(games=3)
    games: list[list[np.ndarray]] = [[], [], []]
    for row in p_values:
        for game, p in enumerate(row):
            games[game].append(np.full(7, 1 / 7))
            payoffs = drift._payoffs(np.array([p]))[0]
            games[game] = [(0.98 * own + 0.02 * own.sum() / 7) * payoffs for own in games[game]]
        detector.add(row)
        assert detector.by_game == pytest.approx([sum(own.sum() for own in game) for game in games])


def test_nobody_enters_a_game_of_which_nothing_is_said() -> None:
    """Money saved in silence would be bet on the first number, whose rank is a draw."""
    watch = Watch("look", 0)
    for _ in range(3000):
        watch.add(None)
    assert watch.evidence == 0
    watch.add([1.0, 2.0])
    # The mean of the payoffs of each bet on a first p-value, to the one gambler in each of two games.
    first = ConformalRanks(0, "look", 2).add(np.array([1.0, 2.0]))
    assert watch.evidence == pytest.approx(drift._payoffs(first).mean())
    with pytest.raises(ValueError, match="argument 2"):
        watch.add([1.0])


@pytest.mark.parametrize("seed", range(10))
def test_an_alarm_is_by_a_signal_that_has_spoken(seed: int) -> None:
    """Any evidence raises this alarm; nothing was ever reviewed."""
    alarm = DriftTest(seed, limit=0.01).add({"appearance": 1.0})
    assert alarm is not None
    assert (alarm.signal, alarm.since) == ("appearance", 1)


def test_a_first_review_after_a_long_time_withdraws_nothing() -> None:
    for seed in range(40):
        test, generator = DriftTest(seed, limit=200), np.random.default_rng(seed)
        for _ in range(150):
            test.add({"rewards": float(generator.normal())})
        before = test.evidence[-1]
        test.add({"reviewed": 0.1})
        assert test.evidence[-1] <= before + 2


def studies(count: int, change: int, shift: float, generator: np.random.Generator) -> list[Numbers]:
    """Signals that see the same images, and depend on one another in ways that are no lines."""
    seen = generator.normal(size=count)
    numbers = np.column_stack([seen**2, seen]) / 2 + generator.normal(size=(count, 2))
    numbers[change:] += shift
    return [
        {
            "appearance": float(row[0]),
            "rewards": -float(row[1]),
            "rules": float(generator.random() < 0.1),
            "look": (of_image + generator.normal(size=79)).tolist(),
        }
        for row, of_image in zip(numbers, seen, strict=True)
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


@pytest.mark.parametrize(
    ("place", "shift", "words"),
    [
        (9, 2.5, "images are brighter in part 10 of 64 (of 2-D images row 2, column 2 of 8)"),
        (64 + 9, -2.5, "the 90 % quantile of grey values is lower"),
        (64 + 11 + 1, -2.5, "images have less detail of 2 to 4 pixels"),
    ],
)
def test_a_change_of_one_number_in_79_is_noticed_soon_and_named(place: int, shift: float, words: str) -> None:
    delays = []
    for seed in range(10):
        test, generator = DriftTest(seed), np.random.default_rng(seed)
        for index in range(140):
            look = generator.normal(size=79)
            look[place] += shift if index >= 60 else 0.0
            test.add({"appearance": float(generator.normal()), "look": look.tolist()})
        assert test.alarm is not None
        assert (test.alarm.signal, test.alarm.words) == ("look", words)
        delays.append(test.alarm.study - 60)
    assert np.median(delays) <= 15


def test_the_numbers_of_a_colour_image_are_named_by_channel() -> None:
    count = appearance(torch.rand(1, 3, 16, 16)).shape[1]
    names = [meaning_of_number(place, count, True) for place in range(count)]
    assert len(set(names)) == count == 237
    assert names[64] == "images are brighter in part 1 of 64 (of 2-D images row 1, column 1 of 8) in channel 2 of 3"
    assert names[3 * 64 + 11] == "the 0 % quantile of grey values is higher in channel 2 of 3"
    assert names[-1] == "images have more detail of 8 to 16 pixels in channel 3 of 3"


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
