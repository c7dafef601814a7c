"""Which patients to review next: a random draw, on which promises may rest, and choices to learn from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist, pdist

from medfm_rl.quality.conformal import fewest_for_intervals
from medfm_rl.quality.model import Targets
from medfm_rl.seeding import derive_seed, numpy_generator

DEFAULT_AUDIT: Final = fewest_for_intervals(Targets().coverage)
"""Patients of an audit draw: as many as an interval of 90 % needs at least. No promise can rest on fewer."""
_STRATIFIED: Final = 0.66
_POWER: Final = 1.0
_LEAST_FEAR: Final = 1e-6

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A patient who may be reviewed, as the networks see the masks of all his images.

    Attributes:
        patient_id: Name of the patient.
        error: `(K - 1,)` in [0, 1], predicted 1 - Dice of each structure, as the mean over his images.
        disagreement: `(K - 1,)` in [0, 1], Dice that each structure would lose at the pixels' lower ends.
        embedding: `(F,)`, what the reward network sees in his images and masks, as the mean over them.
    """

    patient_id: str
    error: Array
    disagreement: Array
    embedding: Array

    @property
    def fear(self) -> Array:
        """`(K - 1,)`: the error of each structure that is to be feared, predicted error plus disagreement."""
        return self.error + self.disagreement


@dataclass(frozen=True, eq=False)
class Choice:
    """A patient who was chosen to learn from.

    Attributes:
        candidate: The patient.
        gain: What he was chosen by; None where chance alone decided.
        novelty: In [0, 1], how unlike he is to those before him; None where nobody asked.
        structure: Index of the structure that he was chosen for, from 0; None for all of them together.
    """

    candidate: Candidate
    gain: float | None = None
    novelty: float | None = None
    structure: int | None = None


def audit_order(patients: Iterable[str], seed: int) -> list[str]:
    """All patients in a random order, each order as probable as any other; an audit draw is its beginning.

    The place of a patient depends on the seed and on his name, and neither on his images nor on who else is there: a
    patient who has to be passed over moves nobody else, and who comes later does not change the order of those before.

    Args:
        patients: Their names, in any order.
        seed: Recorded, so that the draw can be made again.
    """
    return _shuffled(patients, seed, "audit")


def random_order(patients: Iterable[str], seed: int) -> list[str]:
    """All patients in another random order, independent of that of `audit_order`."""
    return _shuffled(patients, seed, "random")


def by_gain(candidates: Sequence[Candidate], covered: Sequence[Array], budget: int) -> list[Choice]:
    """Chooses patients one by one, each time who is expected to teach most beside those before.

    The gain of a patient is (predicted error + disagreement) x novelty:

    - The predicted error is 1 - predicted Dice; the disagreement of the reward networks is in the same unit, the Dice
      that the mask would lose if each pixel were right with one standard deviation less of probability than the
      networks say on average. Their sum is the error to be feared, a mean and one standard deviation of it. It is
      averaged over structures and images, so that a patient is not chosen for having many.
    - The novelty is 1 - the largest similarity to a patient who was reviewed or chosen before; 1 where there is none.
      The similarity of two patients at distance d is exp(-d^2 / 2 s^2), where the numbers of the embeddings have mean 0
      and variance 1 among the patients, and s is the median distance of two of them (Gretton et al., JMLR 2012). It is
      bounded, so that an odd image far from all others is not chosen for that alone.

    A product needs no weights: whatever either factor is multiplied by, the order stays. The idea is that of suggestive
    annotation (Yang et al., MICCAI 2017), where networks have to disagree on an image and the images have to be
    unlike each other, and the greedy search that of core-sets (Sener and Savarese, ICLR 2018), which also counts as
    covered what is labelled already.

    Args:
        candidates: Who may be chosen.
        covered: Embeddings `(F,)` of patients who are reviewed.
        budget: How many to choose.

    Returns:
        As many choices as there are patients for, the first one first. Who teaches as much as another comes in the
        order of predicted error, then of names.
    """
    if not candidates:
        return []
    similar = _similarities(np.array([*(one.embedding for one in candidates), *covered]))
    count = len(candidates)
    nearest = similar[:count, count:].max(axis=1, initial=0.0)
    fear = np.array([float(one.fear.mean()) for one in candidates])
    left = list(range(count))
    choices: list[Choice] = []
    while left and len(choices) < budget:
        best = min(left, key=lambda row: (-fear[row] * (1 - nearest[row]), -fear[row], candidates[row].patient_id))
        novelty = float(1 - nearest[best])
        choices.append(Choice(candidates[best], float(fear[best]) * novelty, novelty))
        left.remove(best)
        nearest = np.maximum(nearest, similar[:count, best])
    return choices


def by_clasp(candidates: Sequence[Candidate], budget: int, seed: int) -> list[Choice]:
    """Chooses patients as ClaSP PE chooses patches (Lüth et al., TMLR 2026, arXiv 2601.13677).

    66 % of the patients are chosen for one structure each, with equal shares for the structures, the others for all of
    them together; within a share by the highest log(score) + noise, with noise from Gumbel(0, 1 / beta), which draws
    patients with probabilities that go with score^beta (Kirsch et al., TMLR 2023). Beta is 1, theirs for a first round;
    the schedule that makes later rounds greedier is left out. The score is the error to be feared, as in `by_gain`, in
    place of the predictive entropy of a patch: patients are reviewed as a whole.

    Args:
        candidates: Who may be chosen.
        budget: How many to choose.
        seed: Draws the noise, and which structures get one more where the shares are not whole.

    Returns:
        As many choices as there are patients for, those for a structure first.
    """
    if not candidates:
        return []
    generator = numpy_generator(seed, "clasp")
    ordered = sorted(candidates, key=lambda one: one.patient_id)
    fear = np.maximum(np.array([one.fear for one in ordered]), _LEAST_FEAR)
    scores = np.column_stack([fear, fear.mean(axis=1)])
    noisy = np.log(scores) + generator.gumbel(0, 1 / _POWER, scores.shape)
    structures = fear.shape[1]
    turns = np.concatenate(
        [generator.permutation(structures) for _ in range(math.ceil(budget / structures))] or [np.zeros(0, np.int64)]
    )
    for_one = math.floor(_STRATIFIED * budget)
    left = set(range(len(ordered)))
    choices: list[Choice] = []
    for turn in range(min(budget, len(ordered))):
        structure = int(turns[turn]) if turn < for_one else None
        column = structures if structure is None else structure
        best = max(left, key=lambda row: noisy[row, column])
        choices.append(Choice(ordered[best], float(scores[best, column]), None, structure))
        left.remove(best)
    return choices


def _shuffled(patients: Iterable[str], seed: int, name: str) -> list[str]:
    return sorted(set(patients), key=lambda patient: (derive_seed(seed, name, patient), patient))


def _similarities(embeddings: Array) -> Array:
    """Similarity in [0, 1] of each two rows of embeddings `(N, F)`, `(N, N)`."""
    spread = embeddings.std(axis=0)
    # A number that all share, up to rounding, tells nobody from another.
    told = spread > 1e-9 * np.maximum(np.abs(embeddings).max(axis=0), 1e-30)
    standard = (embeddings[:, told] - embeddings[:, told].mean(axis=0)) / spread[told]
    if len(standard) < 2 or not told.any():
        return np.ones((len(embeddings), len(embeddings)))
    distances = pdist(standard)
    # Where most are the same, the median is 0 and those that differ set the scale.
    scale = float(np.median(distances)) or float(np.median(distances[distances > 0]))
    similar: Array = np.exp(-np.square(cdist(standard, standard)) / (2 * scale**2))
    return similar
