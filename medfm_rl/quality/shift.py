"""Is a case, is a batch, from where the quality model was calibrated?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy import stats
from scipy.spatial.distance import cdist

from medfm_rl.seeding import numpy_generator

_MOST_DIMENSIONS = 8
_PERMUTATIONS = 999
_MOST_PATIENTS = 150
_MOST_CASES = 5
_FOLDS = 5
_LARGEST_LOG_RATIO = (-math.log(20), math.log(20))
FEWEST_IN_BATCH = 5
"""Patients below which a batch cannot be told from chance."""

Array = npt.NDArray[np.float64]


class DomainReference(BaseModel):
    """The look of calibration images, to the encoder of the reward network or by themselves.

    Attributes:
        centre: Mean of the embeddings, `(F,)`.
        scale: Their standard deviation.
        axes: Principal axes of the standardised embeddings, `(D, F)`.
        deviations: Standard deviation along each axis, `(D,)`, and of what the axes leave over.
        reference: Coordinates of the embeddings that the axes were not fitted on, `(N, D + 1)`.
        patients: Number of the patient of each of those; no names are kept.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    axes: tuple[tuple[float, ...], ...]
    deviations: tuple[float, ...]
    reference: tuple[tuple[float, ...], ...]
    patients: tuple[int, ...]

    @classmethod
    def fit(
        cls, fitted: Array, reference: Array, patients: Sequence[str], least_scale: float = 1e-6
    ) -> DomainReference:
        """Fits the axes on some embeddings `(M, F)`, and keeps others `(N, F)` to compare new ones with.

        Args:
            fitted: Embeddings of patients that are not among the others.
            reference: What new embeddings are compared with.
            patients: Patient of each of the reference.
            least_scale: Standard deviation that every number has at least.

        Raises:
            ValueError: There are fewer than four to fit, or three to compare with.
        """
        if len(fitted) < 4 or len(reference) < 3:
            raise ValueError(
                f"{len(fitted)} and {len(reference)} embeddings; 4 to fit and 3 to compare with are needed"
            )
        centre, scale = fitted.mean(axis=0), np.maximum(fitted.std(axis=0), least_scale)
        standard = (fitted - centre) / scale
        dimensions = min(_MOST_DIMENSIONS, len(fitted) // 4)
        _, singular, axes = np.linalg.svd(standard, full_matrices=False)
        kept = axes[:dimensions]
        left_over = standard - standard @ kept.T @ kept
        deviations = [*(singular[:dimensions] / np.sqrt(len(fitted))), np.sqrt((left_over**2).sum(axis=1).mean())]
        empty = cls(
            centre=tuple(centre.tolist()),
            scale=tuple(scale.tolist()),
            axes=tuple(tuple(axis) for axis in kept.tolist()),
            deviations=tuple(max(float(value), 1e-6) for value in deviations),
            reference=(),
            patients=(),
        )
        numbers = tuple(np.unique(np.asarray(patients), return_inverse=True)[1].tolist())
        coordinates = tuple(tuple(row) for row in empty.coordinates(reference).tolist())
        return empty.model_copy(update={"reference": coordinates, "patients": numbers})

    def coordinates(self, embeddings: Array) -> Array:
        """Whitened coordinates `(N, D + 1)` of embeddings `(N, F)`; the last is the size of what the axes leave."""
        axes = np.asarray(self.axes)
        standard = (np.atleast_2d(embeddings) - np.asarray(self.centre)) / np.asarray(self.scale)
        along = standard @ axes.T
        left_over = np.sqrt(((standard - along @ axes) ** 2).sum(axis=1))
        return np.asarray(np.column_stack([along, left_over]) / np.asarray(self.deviations))

    @cached_property
    def _usual_distances(self) -> tuple[int, float, float]:
        """How many reference cases there are, and mean and standard deviation of the logarithms of their distances."""
        logs = np.log(np.maximum(np.linalg.norm(np.asarray(self.reference), axis=1), 1e-9))
        return len(logs), float(logs.mean()), max(float(logs.std(ddof=1)), 1e-3)

    def distance(self, embedding: Array) -> float:
        """Mahalanobis distance of an embedding `(F,)` from the calibration images (Lee et al., NeurIPS 2018)."""
        return float(np.linalg.norm(self.coordinates(embedding)[0]))

    def probability(self, embedding: Array) -> float:
        """Probability that a case of the reference's kind lies at least as far away.

        The logarithm of the distances is taken as normal, of unknown mean and variance. That is an approximation: ranks
        among few reference cases know no small probabilities.
        """
        count, mean, deviation = self._usual_distances
        excess = (np.log(max(self.distance(embedding), 1e-9)) - mean) / (deviation * np.sqrt(1 + 1 / count))
        return float(stats.t.sf(excess, count - 1))

    def likelihood_ratios(self, embeddings: Array, patients: Sequence[str]) -> tuple[Array, Array]:
        """How much more probable each case is in a batch than among the reference, up to one factor.

        A logistic regression tells the two apart by their coordinates, every patient counts as much as another, and no
        case is assessed by a regression that has seen its patient (five folds). Ratios are cut at 1/20 and 20: a few
        cases with all the weight would say nothing.

        Args:
            embeddings: Embeddings of the batch, `(N, F)`.
            patients: Patient of each; five or more.

        Returns:
            Ratios of the reference cases and of those of the batch.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedGroupKFold

        known = np.asarray(self.reference)
        together = np.concatenate([known, self.coordinates(embeddings)])
        new = np.arange(len(together)) >= len(known)
        names = np.concatenate([[f"reference {number}" for number in self.patients], [f"batch {n}" for n in patients]])
        counts = np.bincount(_numbers(names))[_numbers(names)]
        ratios = np.zeros(len(together))
        for fitted, assessed in StratifiedGroupKFold(_FOLDS).split(together, new, names):
            weights = 1 / counts[fitted]
            patients_fitted = weights.sum()
            for side in (True, False):
                # Both sides weigh the same, and together as much as there are patients: the images of one are no
                # independent evidence against the penalty.
                weights[new[fitted] == side] *= patients_fitted / 2 / weights[new[fitted] == side].sum()
            model = LogisticRegression().fit(together[fitted], new[fitted], weights)
            ratios[assessed] = np.exp(np.clip(model.decision_function(together[assessed]), *_LARGEST_LOG_RATIO))
        return ratios[~new], ratios[new]

    def batch_probability(self, embeddings: Array, patients: Sequence[str]) -> float | None:
        """p-value of a two-sample test of a batch against the reference.

        Energy distance (Szekely and Rizzo, 2013) between patients, with permutations of patients: the images of one are
        one piece of evidence.

        Returns:
            None where the batch or the reference has fewer than five patients.
        """
        generator = numpy_generator(0, "two-sample test")
        known = _drawn(_rows_of(self.patients), generator)
        new = _drawn([rows + len(self.reference) for rows in _rows_of(patients)], generator)
        if min(len(known), len(new)) < FEWEST_IN_BATCH:
            return None
        together = np.concatenate([np.asarray(self.reference), self.coordinates(embeddings)])
        rows = np.concatenate([*known, *new])
        ends = np.cumsum([len(group) for group in [*known, *new]])
        groups = np.split(np.arange(len(rows)), ends[:-1])
        together = together[rows]
        by_case = cdist(together, together)
        # The mean over pairs of cases: however many cases a patient has, it is expected to be the same.
        distances = np.array([[by_case[np.ix_(one, two)].mean() for two in groups] for one in groups])
        np.fill_diagonal(distances, 0)
        observed = _energy(distances, np.arange(len(groups)), len(known))
        drawn = [_energy(distances, generator.permutation(len(groups)), len(known)) for _ in range(_PERMUTATIONS)]
        return float((1 + sum(value >= observed - 1e-12 for value in drawn)) / (1 + _PERMUTATIONS))


def _numbers(names: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    return np.asarray(np.unique(names, return_inverse=True)[1])


def _rows_of(patients: Sequence[str] | Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Rows of each patient."""
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    return [np.flatnonzero(index == number) for number in range(len(names))]


def _drawn(groups: Sequence[npt.NDArray[np.int64]], generator: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """No more patients and cases than the test needs: its time grows with their square."""
    chosen = sorted(generator.permutation(len(groups))[:_MOST_PATIENTS].tolist())
    return [generator.permutation(groups[index])[:_MOST_CASES] for index in chosen]


def _energy(distances: Array, order: npt.NDArray[np.int64], first: int) -> float:
    one, two = order[:first], order[first:]
    within = [distances[np.ix_(part, part)].sum() / (len(part) * (len(part) - 1)) for part in (one, two)]
    return float(2 * distances[np.ix_(one, two)].mean() - sum(within))
