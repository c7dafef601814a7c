"""Fits a quality model on labelled cases: half of the patients to fit on, the other half for what is promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import torch

from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.data.layouts import name_patients, split_by_patient
from medfm_rl.errors import DataError
from medfm_rl.metrics.calibration import expected_calibration_error
from medfm_rl.metrics.scores import MEAN
from medfm_rl.quality.appearance import LEAST_SCALE
from medfm_rl.quality.calibration_case import CalibrationCase
from medfm_rl.quality.conformal import (
    accept_threshold,
    fewest_for_intervals,
    fewest_for_threshold,
    threshold_candidates,
)
from medfm_rl.quality.evidence import log_odds
from medfm_rl.quality.model import EncoderReference, PixelCalibration, QualityModel, StructureModel, Targets
from medfm_rl.quality.prediction import DicePredictor, fit_predictor
from medfm_rl.quality.shift import DomainReference
from medfm_rl.quality.telling_rules import telling_rules
from medfm_rl.seeding import derive_seed, numpy_generator
from medfm_rl.version import __version__

FEWEST_PATIENTS = 8
_MOST_PIXELS = 400_000


@dataclass(frozen=True)
class Provenance:
    """The origin of a quality model, as it records it.

    Attributes:
        origin: What the calibration cases are, in words.
        target_domain: Whether they are labelled cases of the domain that is scored.
        model_hash: SHA-256 of the run's folder `model`.
        reward_hash: SHA-256 of its folder `reward`.
        reward_hashes: SHA-256 of each reward network.
        data_hash: SHA-256 over names and contents of the files of the cases; None where they came from no files.
        biomedclip_hash: SHA-256 of BiomedCLIP's weights, where it is asked.
        networks: Names of the reward networks that assess; None for all that the policy followed.
    """

    origin: str
    target_domain: bool
    model_hash: str
    reward_hash: str
    reward_hashes: dict[str, str]
    data_hash: str | None = None
    biomedclip_hash: str | None = None
    networks: tuple[str, ...] | None = None


def require_patients(patients: Sequence[str], targets: Targets) -> None:
    """Refuses so few patients that nothing can be fitted.

    Args:
        patients: The patient of each calibration case.
        targets: What is asked.

    Raises:
        DataError: There are too few.
    """
    count = len(set(patients))
    if count < FEWEST_PATIENTS:
        raise DataError(
            f"calibration has {count} patients and needs at least {FEWEST_PATIENTS}; "
            f"{2 * fewest_for_intervals(targets.coverage)} for intervals of {targets.coverage:.0%}, and "
            f"{2 * fewest_for_threshold(targets.alpha, targets.confidence)} for a threshold that keeps bad masks below "
            f"{targets.alpha:.0%} of the accepted: give more labelled cases; {name_patients(patients)}"
        )


def fit_quality(
    cases: Sequence[CalibrationCase], anatomy: Anatomy, targets: Targets, provenance: Provenance, seed: int = 0
) -> QualityModel:
    """Fits everything that `quality.json` holds.

    Pixel calibration, predictors, telling rules and the axes of the shift test are fitted on half of the patients;
    intervals, the errors that verdicts rest on, the threshold and the reference of the shift test come from the other
    half, which makes their promises hold.

    Args:
        cases: Labelled cases.
        anatomy: The rules that the evidence was made with.
        targets: What is asked.
        provenance: Where the cases and networks come from.
        seed: Seed of the split.

    Raises:
        DataError: There are too few patients.
    """
    patients = {case.patient_id for case in cases}
    require_patients([case.patient_id for case in cases], targets)
    fitted, promised = split_by_patient(list(cases), 0.5, derive_seed(seed, "quality"))
    pixels = _calibrate_pixels(fitted, promised, seed)
    to_fit, to_promise = (_Half.of(part, pixels, anatomy.schema.structures) for part in (fitted, promised))
    predictors = _fit_predictors(to_fit, anatomy.schema.structures)
    predicted, truth, names = to_promise.predict(predictors), to_promise.dice, [case.patient_id for case in promised]
    structures = {
        name: StructureModel.of_errors(predicted[:, index], truth[:, index], names, targets.coverage, predictor)
        for index, (name, predictor) in enumerate(zip(anatomy.schema.structures, predictors, strict=True))
    }
    means = (predicted.mean(axis=1), truth.mean(axis=1))
    structures[MEAN] = StructureModel.of_errors(*means, names, targets.coverage)
    telling = telling_rules(fitted, targets, seed)
    threshold, reason = _threshold(
        to_promise.without(telling, predicted),
        to_fit.without(telling, to_fit.predict(predictors)),
        to_promise,
        targets,
        seed,
    )
    parts = (fitted, promised)
    embeddings = [np.stack([case.embedding for case in part]) for part in parts]
    looks = [np.stack([case.appearance for case in part]) for part in parts]
    return QualityModel(
        version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        origin=provenance.origin,
        target_domain=provenance.target_domain,
        cases=len(cases),
        patients=len(patients),
        conformal_patients=len({case.patient_id for case in promised}),
        names=anatomy.schema.names,
        ids=anatomy.schema.ids,
        region_ids=anatomy.schema.region_ids,
        model_hash=provenance.model_hash,
        reward_hash=provenance.reward_hash,
        reward_hashes=provenance.reward_hashes,
        networks=provenance.networks,
        data_hash=provenance.data_hash,
        anatomy=anatomy.name,
        profile=anatomy.profile,
        telling_rules=telling,
        targets=targets,
        pixels=pixels,
        structures=structures,
        accept_threshold=threshold,
        accept_reason=reason,
        domain=DomainReference.fit(embeddings[0], embeddings[1], names),
        appearance=DomainReference.fit(looks[0], looks[1], names, LEAST_SCALE),
        biomedclip=_seen_by_biomedclip(fitted, promised, provenance),
    )


def _seen_by_biomedclip(
    fitted: Sequence[CalibrationCase], promised: Sequence[CalibrationCase], provenance: Provenance
) -> EncoderReference | None:
    if provenance.biomedclip_hash is None:
        return None
    parts = [np.array([case.biomedclip for case in part], dtype=np.float64) for part in (fitted, promised)]
    domain = DomainReference.fit(parts[0], parts[1], [case.patient_id for case in promised])
    return EncoderReference(weights_hash=provenance.biomedclip_hash, domain=domain)


def _calibrate_pixels(
    fitted: Sequence[CalibrationCase], promised: Sequence[CalibrationCase], seed: int
) -> PixelCalibration:
    inputs, right = _pixels(fitted, seed)
    weights, shift = _logistic(inputs, right)
    held_out, held_out_right = _pixels(promised, seed)
    others = iter(weights[1:])
    asked, given = (next(others) if known else None for known in _known_confidences(fitted))
    return PixelCalibration(
        reward_weight=weights[0],
        confidence_weight=asked,
        given_weight=given,
        shift=shift,
        ece_before=expected_calibration_error(_sigmoid(held_out[:, 0]), held_out_right),
        ece_after=expected_calibration_error(_sigmoid(held_out @ np.array(weights) + shift), held_out_right),
    )


def _logistic(inputs: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> tuple[list[float], float]:
    """Weights of the inputs `(N, F)`, none below 0, and a shift; the first input as it is where none tells anything.

    A weight below 0 would turn a map upside down: there is nothing in that input to be calibrated.
    """
    from sklearn.linear_model import LogisticRegression

    used = list(range(inputs.shape[1])) if 0 < right.mean() < 1 else []
    while used:
        model = LogisticRegression(C=np.inf).fit(inputs[:, used], right)
        found = dict(zip(used, model.coef_[0].tolist(), strict=True))
        if min(found.values()) > 0:
            return [found.get(column, 0.0) for column in range(inputs.shape[1])], float(model.intercept_[0])
        used.remove(min(found, key=lambda column: found[column]))
    return [1.0, *[0.0] * (inputs.shape[1] - 1)], 0.0


def _pixels(cases: Sequence[CalibrationCase], seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Log-odds of the reward and of the confidences that there are, `(N, 1 to 3)`; which are right.

    Of many pixels each case gives the same share, drawn from its own: neither its maps nor a list of the pixels of all
    cases need be in memory.
    """
    sizes = [case.pixels for case in cases]
    share = min(1.0, _MOST_PIXELS / sum(sizes))
    generator = numpy_generator(seed, "pixels")
    counts = [round(share * size) for size in sizes]
    known = _known_confidences(cases)
    inputs, right = np.empty((sum(counts), 1 + sum(known))), np.empty(sum(counts), dtype=bool)
    for case, size, count, start in zip(cases, sizes, counts, np.cumsum([0, *counts[:-1]]), strict=True):
        drawn = np.arange(size) if count == size else generator.choice(size, count, replace=False, shuffle=False)
        rows, chosen = slice(start, start + count), torch.from_numpy(drawn)
        evidence, truth = case.load()
        maps = [evidence.mean_map, *evidence.confidences]
        for column, values in enumerate(values for values in maps if values is not None):
            inputs[rows, column] = log_odds(values.flatten()[chosen]).double().numpy()
        right[rows] = truth.flatten()[chosen].numpy()
    return inputs, right


def _known_confidences(cases: Sequence[CalibrationCase]) -> tuple[bool, ...]:
    """Which of the confidences there are; the same for all cases."""
    evidence, _ = cases[0].load()
    return tuple(values is not None for values in evidence.confidences)


def _sigmoid(odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1 / (1 + np.exp(-odds))


@dataclass(frozen=True, eq=False)
class _Half:
    """One half of the cases, with the numbers of each of their structures."""

    cases: Sequence[CalibrationCase]
    numbers: Sequence[Sequence[Mapping[str, float]]]

    @classmethod
    def of(cls, cases: Sequence[CalibrationCase], pixels: PixelCalibration, names: Sequence[str]) -> _Half:
        numbers = []
        for case in cases:
            evidence, _ = case.load()
            numbers.append(evidence.features(names, pixels.probability(evidence)))
        return cls(cases, numbers)

    @property
    def there(self) -> npt.NDArray[np.bool_]:
        """Which structures the masks have, `(N, K - 1)`; of one that a mask lacks nothing is predicted."""
        return np.array([[row["size"] > 0 for row in rows] for rows in self.numbers], dtype=bool)

    @property
    def dice(self) -> npt.NDArray[np.float64]:
        """True Dice `(N, K - 1)`."""
        return np.array([case.dice for case in self.cases], dtype=np.float64)

    def predict(self, predictors: Sequence[DicePredictor]) -> npt.NDArray[np.float64]:
        """Predicted Dice `(N, K - 1)`; NaN of a structure that a mask lacks."""
        found = [
            [predictor.predict(row) for predictor, row in zip(predictors, rows, strict=True)] for rows in self.numbers
        ]
        return np.where(self.there, np.array(found), np.nan)

    def without(self, telling: Sequence[int], predicted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Predictions `(N, K - 1)`, NaN of masks that break one of these rules."""
        broken = [any(not case.rules[place].passed for place in telling) for case in self.cases]
        return np.where(np.array(broken, dtype=bool)[:, None], np.nan, predicted)


def _fit_predictors(half: _Half, names: Sequence[str]) -> list[DicePredictor]:
    """One for each structure, from the masks that have it."""
    there, dice = half.there, half.dice
    predictors = []
    for index in range(len(names)):
        rows = np.flatnonzero(there[:, index]).tolist()
        predictors.append(
            fit_predictor(
                [half.numbers[row][index] for row in rows],
                dice[rows, index],
                [half.cases[row].patient_id for row in rows],
            )
        )
    return predictors


def _threshold(
    predicted: npt.NDArray[np.float64],
    predicted_to_fit: npt.NDArray[np.float64],
    half: _Half,
    targets: Targets,
    seed: int,
) -> tuple[float | None, str]:
    """The threshold of the mean Dice, and what it promises or why there is none.

    Args:
        predicted: Predictions `(N, K - 1)` of the cases that the promise stands on; NaN of what is never accepted.
        predicted_to_fit: Predictions of the other half, from which candidates come.
        half: The cases of the first.
        targets: What is asked.
        seed: Which case of a patient counts.
    """
    means, candidates = predicted.mean(axis=1), predicted_to_fit.mean(axis=1)
    # The test counts independent cases: one of each patient, drawn without looking at it. A mask that lacks a
    # structure, or breaks a telling rule, is never accepted, so it is none of those.
    order = [
        row for row in numpy_generator(seed, "one case a patient").permutation(len(means)) if np.isfinite(means[row])
    ]
    rows = sorted({half.cases[row].patient_id: int(row) for row in order}.values())
    good = half.dice[rows].mean(axis=1) >= targets.dice
    candidates = candidates[np.isfinite(candidates)]
    threshold = None
    if rows and len(candidates):
        threshold = accept_threshold(
            means[rows], good, threshold_candidates(candidates), targets.alpha, targets.confidence
        )
    promise = (
        f"at most {targets.alpha:.0%} of the accepted masks below a mean Dice of {targets.dice:g}, with a confidence "
        f"of {targets.confidence:.0%}"
    )
    if threshold is not None:
        return threshold, f"{promise} ({len(rows)} calibration patients)"
    needed = fewest_for_threshold(targets.alpha, targets.confidence)
    if len(rows) < needed:
        return None, f"{promise}: needs at least {2 * needed} calibration patients, half of them to fit on"
    return None, f"{promise}: no threshold does, {int((~good).sum())} of {len(rows)} calibration masks are below"
