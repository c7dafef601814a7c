from __future__ import annotations

import numpy as np
import pytest

from medfm_rl.quality.conformal import effective_patients, patient_quantile, weighted_quantile
from medfm_rl.quality.shift import DomainReference


def names(count: int, each: int = 1) -> list[str]:
    return [f"p{row // each}" for row in range(count)]


@pytest.fixture
def reference() -> DomainReference:
    rng = np.random.default_rng(0)
    return DomainReference.fit(draw(rng, 60), draw(rng, 60), names(60, 2))


def draw(rng: np.random.Generator, count: int, shift: float = 0.0) -> np.ndarray:
    """Embeddings of 12 numbers that vary along three directions and hardly beside them."""
    axes = np.random.default_rng(7).normal(size=(3, 12))
    return rng.normal(size=(count, 3)) @ axes + 0.1 * rng.normal(size=(count, 12)) + shift


def test_coordinates_are_whitened(reference: DomainReference) -> None:
    coordinates = reference.coordinates(draw(np.random.default_rng(1), 2000))
    assert coordinates[:, :3].std(axis=0) == pytest.approx(np.ones(3), abs=0.3)


def test_cases_of_the_same_kind_are_rarely_called_strange(reference: DomainReference) -> None:
    found = [reference.probability(row) for row in draw(np.random.default_rng(2), 500)]
    assert np.mean(np.array(found) < 0.05) < 0.12
    assert np.mean(np.array(found) < 0.001) < 0.01


def test_a_case_from_elsewhere_is_far_away(reference: DomainReference) -> None:
    near, far = draw(np.random.default_rng(3), 1)[0], np.full(12, 40.0)
    assert reference.distance(far) > 10 * reference.distance(near)
    assert reference.probability(far) < 1e-4
    # Beside the directions along which calibration images vary, a little is much.
    beside = draw(np.random.default_rng(3), 1)[0] + 2 * np.sign(np.random.default_rng(5).normal(size=12))
    assert reference.probability(beside) < 1e-3


def test_a_batch_of_the_same_kind_passes_and_another_does_not(reference: DomainReference) -> None:
    found = [reference.batch_probability(draw(np.random.default_rng(seed), 20), names(20)) for seed in range(10, 40)]
    assert np.mean(np.array(found, float) < 0.05) <= 0.2
    moved = reference.batch_probability(draw(np.random.default_rng(4), 20, shift=1.5), names(20))
    assert moved is not None
    assert moved <= 0.002


def test_weighted_intervals_cover_where_images_come_in_other_shares() -> None:
    """Errors grow along one direction, and the batch lies further along it: 90 % of the calibration are too narrow."""
    rng = np.random.default_rng(0)

    def images(patients: int, centre: float) -> tuple[np.ndarray, list[str]]:
        along = np.repeat(rng.normal(centre, 1, patients), 2) + 0.1 * rng.normal(size=2 * patients)
        return np.column_stack([along, rng.normal(size=(2 * patients, 3))]), names(2 * patients, 2)

    def errors(found: np.ndarray) -> np.ndarray:
        return np.asarray(np.abs(rng.normal(size=len(found))) * np.exp(0.6 * found[:, 0]))

    plain, weighted = [], []
    for _ in range(20):
        (known, known_names), (new, new_names) = images(60, 0.0), images(60, 0.8)
        domain = DomainReference.fit(images(60, 0.0)[0], known, known_names)
        scores, observed = errors(known), errors(new)
        reference, own = domain.likelihood_ratios(new, new_names)
        quantiles = [weighted_quantile(scores, reference, domain.patients, ratio, 0.9) for ratio in own]
        plain.append(np.mean(observed <= patient_quantile(scores, domain.patients, 0.9)))
        weighted.append(np.mean(observed <= quantiles))
        assert 9 < effective_patients(reference, domain.patients, own) < 60
    assert np.mean(plain) < 0.85
    assert np.mean(weighted) >= 0.9


def test_without_a_difference_likelihood_ratios_are_near_one(reference: DomainReference) -> None:
    for found in reference.likelihood_ratios(draw(np.random.default_rng(8), 60), names(60, 2)):
        assert 0.5 < np.median(found) < 2


def test_images_of_one_patient_are_one_piece_of_evidence(reference: DomainReference) -> None:
    one = np.repeat(draw(np.random.default_rng(5), 1), 40, axis=0)
    assert reference.batch_probability(one, ["p"] * 40) is None
    assert reference.batch_probability(draw(np.random.default_rng(5), 4), names(4)) is None


def test_the_file_keeps_numbers_and_no_names(reference: DomainReference) -> None:
    text = reference.model_dump_json()
    assert "p1" not in text
    again = DomainReference.model_validate_json(text)
    rows = draw(np.random.default_rng(6), 8)
    assert again.distance(rows[0]) == reference.distance(rows[0])
    assert again.batch_probability(rows, names(8)) == reference.batch_probability(rows, names(8))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 9 embeddings; 4 to fit and 3 to compare"):
        DomainReference.fit(np.zeros((3, 2)), np.zeros((9, 2)), names(9))
