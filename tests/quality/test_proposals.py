from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm_rl.quality.proposals import DEFAULT_AUDIT, Candidate, audit_order, by_clasp, by_gain, random_order


def candidate(name: str, error: float | list[float], place: float | list[float] = 0.0, apart: float = 0.0) -> Candidate:
    errors = np.atleast_1d(np.array(error, dtype=np.float64))
    return Candidate(name, errors, np.full(len(errors), apart), np.atleast_1d(np.array(place, dtype=np.float64)))


def names(choices: list) -> list[str]:
    return [choice.candidate.patient_id for choice in choices]


def test_an_audit_draw_has_as_many_patients_as_an_interval_needs() -> None:
    """90 % of n + 1 are no more than n from n = 9 on."""
    assert DEFAULT_AUDIT == 9


def test_every_patient_is_drawn_as_often_as_any_other() -> None:
    """2000 draws of 3 of 10: 600 each, with a standard deviation of 20.5."""
    patients = [f"p{number}" for number in range(10)]
    counts = Counter(patient for seed in range(2000) for patient in audit_order(patients, seed)[:3])
    assert all(abs(counts[patient] - 600) < 5 * 20.5 for patient in patients)


@given(st.sets(st.text(min_size=1, max_size=5), min_size=1, max_size=12), st.integers(0, 1000), st.randoms())
@settings(max_examples=50, deadline=None)
def test_a_draw_does_not_depend_on_the_order_of_files_nor_on_who_else_is_there(patients, seed, chance) -> None:
    listed = sorted(patients)
    whole = audit_order(listed, seed)
    assert sorted(whole) == listed
    chance.shuffle(listed)
    assert audit_order([*listed, *listed], seed) == whole
    gone = listed[0]
    assert audit_order(listed[1:], seed) == [patient for patient in whole if patient != gone]


def test_the_random_choice_to_learn_from_is_another_draw() -> None:
    patients = [f"p{number}" for number in range(30)]
    assert random_order(patients, 0) != audit_order(patients, 0)
    assert random_order(patients, 0) != random_order(patients, 1)


def test_the_first_patient_is_that_of_the_largest_error() -> None:
    chosen = by_gain([candidate("a", 0.1, 0), candidate("b", 0.3, 1), candidate("c", 0.2, 2)], [], 1)
    assert names(chosen) == ["b"]
    assert chosen[0].novelty == 1
    assert chosen[0].gain == pytest.approx(0.3)


def test_disagreement_counts_like_error() -> None:
    chosen = by_gain([candidate("a", 0.2, 0), candidate("b", 0.1, 1, apart=0.15)], [], 1)
    assert names(chosen) == ["b"]
    assert chosen[0].gain == pytest.approx(0.25)


def test_gains_by_hand() -> None:
    """Places 0, 0, 3 and 6: distances 0, 3, 3, 6, 6, 3 in units of one factor, with a median of 3.

    After a at 0, b there has no novelty, c at one median distance has 1 - exp(-1/2) = .393 and d at two has
    1 - exp(-2) = .865. Gains: b 0, c .4 x .393 = .157, d .2 x .865 = .173, so d is next. After that c is one median
    away from both.
    """
    four = [candidate("a", 0.5, 0), candidate("b", 0.45, 0), candidate("c", 0.4, 3), candidate("d", 0.2, 6)]
    chosen = by_gain(four, [], 4)
    assert names(chosen) == ["a", "d", "c", "b"]
    gains = [0.5, 0.2 * (1 - math.exp(-2)), 0.4 * (1 - math.exp(-0.5)), 0.0]
    assert [choice.gain for choice in chosen] == pytest.approx(gains)


def test_who_is_like_a_reviewed_patient_teaches_nothing_new() -> None:
    two = [candidate("a", 0.5, 0), candidate("b", 0.2, 4)]
    assert names(by_gain(two, [], 1)) == ["a"]
    assert names(by_gain(two, [np.array([0.0])], 1)) == ["b"]


def test_patients_who_all_look_alike_come_in_the_order_of_their_errors() -> None:
    alike = [candidate(name, error, [1.0, 0.1]) for name, error in (("a", 0.1), ("b", 0.3), ("c", 0.3), ("d", 0.2))]
    assert names(by_gain(alike, [], 4)) == ["b", "c", "d", "a"]


def test_one_patient_and_none() -> None:
    assert names(by_gain([candidate("a", 0.3)], [], 8)) == ["a"]
    assert names(by_clasp([candidate("a", 0.3)], 8, 0)) == ["a"]
    assert by_gain([], [np.zeros(1)], 8) == []
    assert by_clasp([], 8, 0) == []
    assert by_gain([candidate("a", 0.3)], [], 0) == []
    assert by_clasp([candidate("a", 0.3)], 0, 0) == []


@st.composite
def several(draw: st.DrawFn) -> list[Candidate]:
    count = draw(st.integers(1, 8))
    numbers = st.floats(0, 1, allow_nan=False)
    return [
        candidate(f"p{row}", [draw(numbers), draw(numbers)], [draw(numbers), draw(numbers)], draw(numbers) / 10)
        for row in range(count)
    ]


@given(several(), st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_nobody_is_chosen_twice_and_gains_do_not_grow(candidates: list[Candidate], budget: int) -> None:
    for chosen in (by_gain(candidates, [], budget), by_clasp(candidates, budget, 0)):
        assert len(set(names(chosen))) == len(chosen) == min(budget, len(candidates))
    gains = [choice.gain for choice in by_gain(candidates, [], budget)]
    assert all(one >= other - 1e-12 for one, other in itertools.pairwise(gains))


@given(several(), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_units_of_embeddings_and_errors_do_not_matter(candidates: list[Candidate], factor: float) -> None:
    """A power of two rounds nothing: the order is the same to the last tie."""
    factor = 2.0 ** round(math.log2(factor))
    scaled = [
        Candidate(one.patient_id, one.error * factor, one.disagreement * factor, one.embedding * factor)
        for one in candidates
    ]
    assert names(by_gain(scaled, [], 4)) == names(by_gain(candidates, [], 4))


def test_clasp_gives_every_structure_its_share() -> None:
    """Of 9 patients .66 x 9 = 5 are chosen for one of two structures, 3 and 2 or 2 and 3, and 4 for both together."""
    generator = np.random.default_rng(0)
    many = [candidate(f"p{row}", generator.uniform(0, 1, 2).tolist()) for row in range(40)]
    counts = Counter(choice.structure for choice in by_clasp(many, 9, 0))
    assert counts[None] == 4
    assert sorted((counts[0], counts[1])) == [2, 3]


def test_clasp_draws_in_proportion_to_the_error() -> None:
    """With beta 1 the first of two patients with errors .3 and .1 is drawn in three of four cases."""
    two = [candidate("a", 0.3), candidate("b", 0.1)]
    first = sum(names(by_clasp(two, 1, seed)) == ["a"] for seed in range(1000))
    assert abs(first - 750) < 5 * math.sqrt(1000 * 0.75 * 0.25)


def test_clasp_finds_who_fails_in_one_structure_alone() -> None:
    """One of 20 fails in the second structure, which the mean over structures says less of."""
    others = [candidate(f"p{row:02d}", [0.2, 1e-6]) for row in range(19)]
    chosen = by_clasp([*others, candidate("odd", [1e-6, 0.3])], 6, 3)
    assert next(choice for choice in chosen if choice.structure == 1).candidate.patient_id == "odd"
