from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm_rl.errors import DataError
from medfm_rl.reward.origins import GROUND_TRUTH, ActionOrigin, Reference, patients_of
from medfm_rl.reward.patient_split import held_out_reward_patients, hold_out, patient_folds, validation_patients_of
from medfm_rl.seeding import derive_seed

CONSENSUS = Reference("consensus", 0.25)


def drawn(*patients: str, reference: Reference = GROUND_TRUTH) -> list[ActionOrigin]:
    return [ActionOrigin(patient, patient, reference, ("policy",)) for patient in patients]


def named(count: int, start: int = 0) -> list[str]:
    return [f"p{index:03d}" for index in range(start, start + count)]


DRAWS = st.lists(st.sets(st.sampled_from(named(30)), max_size=15), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(start=st.sets(st.sampled_from(named(30)), min_size=6), draws=DRAWS, seed=st.integers(0, 1000))
def test_a_patient_keeps_its_role_and_its_part_over_all_iterations(
    start: set[str], draws: list[set[str]], seed: int
) -> None:
    first = drawn(*sorted(start))
    origins, before = list(first), (set[str](), set[str](), set[str]())
    for newcomers in (set[str](), *draws):
        origins = [*origins, *drawn(*sorted(newcomers))]
        judged = held_out_reward_patients(origins, first, seed)
        members = [origin for origin in origins if origin.patient_id not in judged]
        held_out = validation_patients_of(members, [o for o in first if o.patient_id not in judged], 0.2, seed)
        now = judged, held_out, patients_of(members) - held_out
        assert all(now), "no part is empty"
        assert all(earlier <= later for earlier, later in zip(before, now, strict=True))
        assert set.union(*now) == patients_of(origins)
        before = now


@settings(deadline=None, max_examples=40)
@given(said_of=st.sets(st.sampled_from(named(40)), max_size=20), seed=st.integers(0, 1000))
def test_patients_whose_masks_reviewers_judged_have_the_role_that_their_records_get_later(
    said_of: set[str], seed: int
) -> None:
    """A grade is there before D_R has the patient, or he is in it from the start: nobody changes sides."""
    first = drawn(*named(20))
    before = held_out_reward_patients(first, first, seed, said_of)
    after = held_out_reward_patients([*first, *drawn(*sorted(said_of))], first, seed, said_of)
    assert before == after
    assert before - said_of <= held_out_reward_patients(first, first, seed)
    members = [origin for origin in first if origin.patient_id not in before]
    later = [*members, *drawn(*sorted(said_of - before))]
    parts = [validation_patients_of(origins, members, 0.2, seed, said_of - before) for origins in (members, later)]
    assert parts[0] == parts[1]
    assert not parts[0] & before


def test_the_first_iteration_is_dealt_in_exact_shares_of_its_patients() -> None:
    first = drawn(*named(30))
    judged = held_out_reward_patients(first, first, seed=3)
    assert judged == set(patient_folds(first, 3, derive_seed(3, "judge"))[0])
    assert len(judged) == 10
    members = [origin for origin in first if origin.patient_id not in judged]
    held_out = validation_patients_of(members, members, 0.2, seed=4)
    assert held_out == hold_out(members, 0.2, derive_seed(4, "split"))
    assert len(held_out) == 4


def test_patients_that_come_later_are_dealt_in_about_the_same_shares() -> None:
    first, later = drawn(*named(6)), named(3000, start=6)
    origins = [*first, *drawn(*later)]
    assert len(held_out_reward_patients(origins, first, 0).intersection(later)) == pytest.approx(1000, abs=100)
    assert len(validation_patients_of(origins, first, 0.2, 0).intersection(later)) == pytest.approx(600, abs=80)


@pytest.mark.parametrize("seed", range(20))
def test_the_judge_has_two_patients_with_ground_truth_however_few_there_are(seed: int) -> None:
    source = named(3)
    first = [*drawn(*source), *drawn(*named(20, start=3), reference=CONSENSUS)]
    judged = held_out_reward_patients(first, first, seed)
    assert len(judged.intersection(source)) >= 2
    assert len(patients_of(first) - judged) >= 2


@pytest.mark.parametrize(("source", "left"), [(3, 1), (4, 2), (5, 2), (6, 2)])
def test_the_ensemble_has_patients_with_ground_truth_however_few_there_are(source: int, left: int) -> None:
    """Dealt together with 30 of the target, all of 3 are in a third of the patients once in 27 times."""
    with_truth = named(source)
    first = [*drawn(*with_truth), *drawn(*named(30, start=source), reference=CONSENSUS)]
    for seed in range(200):
        judged = held_out_reward_patients(first, first, seed)
        assert len(judged.intersection(with_truth)) >= 2
        assert len(set(with_truth) - judged) >= left


def test_where_both_have_enough_patients_the_roles_are_the_shares_that_were_dealt() -> None:
    """As in published results: 90 patients of the source and 80 of the target."""
    first = [*drawn(*named(90)), *drawn(*named(80, start=90), reference=CONSENSUS)]
    for seed in range(50):
        assert held_out_reward_patients(first, first, seed) == set(
            patient_folds(first, 3, derive_seed(seed, "judge"))[0]
        )


def test_a_mask_that_was_accepted_and_is_trusted_less_is_not_ground_truth() -> None:
    """As if reviewed patients of the target joined: those with a mask drawn by an expert count as those of a source."""
    source, drawn_by_expert, accepted = named(2), named(2, start=2), named(20, start=4)
    first = [*drawn(*source, *drawn_by_expert), *drawn(*accepted, reference=Reference("expert mask", 0.5))]
    for seed in range(50):
        with_truth = held_out_reward_patients(first, first, seed).intersection(source + drawn_by_expert)
        assert len(with_truth) == 2


def test_too_few_patients_for_three_parts_are_refused() -> None:
    with pytest.raises(DataError, match="2 patients cannot be split into 3 parts"):
        held_out_reward_patients(drawn("a", "b"), drawn("a", "b"), 0)
