"""Fits a quality model on labelled cases: half of the patients to fit on, the other half for what is promised."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medfm_rl import __version__
from medfm_rl.data.layouts import name_patients, split_by_patient
from medfm_rl.errors import DataError
from medfm_rl.metrics.calibration import expected_calibration_error
from medfm_rl.metrics.validity import Anatomy
from medfm_rl.quality.appearance import LEAST_SCALE
from medfm_rl.quality.conformal import (
    accept_threshold,
    conformity,
    fewest_for_threshold,
    fewest_patients,
    patient_quantile,
    threshold_candidates,
)
from medfm_rl.quality.evidence import Evidence, log_odds
from medfm_rl.quality.model import MEAN, EncoderReference, PixelCalibration, QualityModel, StructureModel, Targets
from medfm_rl.quality.prediction import DicePredictor, fit_predictor
from medfm_rl.quality.shift import DomainReference
from medfm_rl.seeding import derive_seed, numpy_generator

FEWEST_PATIENTS = 8
_MOST_PIXELS = 400_000


@dataclass(frozen=True, eq=False)
class CalibrationCase:
    """A mask with its evidence and the truth.

    Attributes:
        patient_id: Every split is made by it.
        evidence: What the networks and rules say.
        right: `(*S')` bool, whether each pixel of the action is right.
        dice: `(K - 1,)`, true Dice of each structure on the case's own grid.
        biomedclip: `(512,)`, what BiomedCLIP sees; None where it is not asked.
    """

    patient_id: str
    evidence: Evidence
    right: Tensor
    dice: npt.NDArray[np.float32]
    biomedclip: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Provenance:
    """What a quality model records of where it comes from.

    Attributes:
        origin: What the calibration cases are, in words.
        target_domain: Whether they are labelled cases of the domain that is scored.
        model_hash: Hash of the run's model, as `hash_run` gives it.
        reward_hash: The same.
        reward_hashes: SHA-256 of each reward network.
        data_hash: SHA-256 over names and contents of the files of the cases; None where they came from no files.
        biomedclip_hash: SHA-256 of BiomedCLIP's weights, where it is asked.
    """

    origin: str
    target_domain: bool
    model_hash: str
    reward_hash: str
    reward_hashes: dict[str, str]
    data_hash: str | None = None
    biomedclip_hash: str | None = None


def require_patients(patients: Collection[str], targets: Targets) -> None:
    """Refuses so few patients that nothing can be fitted.

    Args:
        patients: Patients of the calibration cases, each once.
        targets: What is asked.

    Raises:
        DataError: There are too few.
    """
    if len(patients) < FEWEST_PATIENTS:
        raise DataError(
            f"calibration has {len(patients)} patients and needs at least {FEWEST_PATIENTS}; "
            f"{2 * fewest_patients(targets.coverage)} for intervals of {targets.coverage:.0%}, and "
            f"{2 * fewest_for_threshold(targets.alpha, targets.confidence)} for a threshold that keeps bad masks below "
            f"{targets.alpha:.0%} of the accepted: give more labelled cases; {name_patients(patients)}"
        )


def fit_quality(
    cases: Sequence[CalibrationCase], anatomy: Anatomy, targets: Targets, provenance: Provenance, seed: int = 0
) -> QualityModel:
    """Fits everything that `quality.json` holds.

    Pixel calibration, predictors and the axes of the shift test are fitted on half of the patients; intervals, the
    threshold and the reference of the shift test come from the other half, which makes their promises hold.

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
    require_patients(patients, targets)
    fitted, promised = split_by_patient(list(cases), 0.5, derive_seed(seed, "quality"))
    pixels = _calibrate_pixels(fitted, promised, seed)
    structures, mean_fitted, mean_promised = _structures(fitted, promised, pixels, anatomy, targets)
    threshold, reason = _threshold(promised, mean_fitted, mean_promised, targets, seed)
    parts, names = (fitted, promised), [case.patient_id for case in promised]
    embeddings = [np.stack([case.evidence.embedding for case in part]) for part in parts]
    looks = [np.stack([case.evidence.appearance for case in part]) for part in parts]
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
        model_hash=provenance.model_hash,
        reward_hash=provenance.reward_hash,
        reward_hashes=provenance.reward_hashes,
        data_hash=provenance.data_hash,
        anatomy=anatomy.name,
        profile=anatomy.profile,
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
    return PixelCalibration(
        reward_weight=weights[0],
        confidence_weight=weights[1] if len(weights) > 1 else None,
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
    """Log-odds of the reward, and of the segmenter's confidence where there is one, `(N, 1 or 2)`; which are right.

    Pixels are drawn before any map is looked at, so that those of volumes need not all be in memory.
    """
    sizes = [case.right.numel() for case in cases]
    total = sum(sizes)
    rows = np.arange(total)
    if total > _MOST_PIXELS:
        rows = numpy_generator(seed, "pixels").choice(total, _MOST_PIXELS, replace=False)
    asked = cases[0].evidence.confidence is not None
    inputs, right = np.empty((len(rows), 1 + asked)), np.empty(len(rows), dtype=bool)
    for case, size, start in zip(cases, sizes, np.cumsum([0, *sizes[:-1]]), strict=True):
        places = np.flatnonzero((rows >= start) & (rows < start + size))
        chosen = torch.from_numpy(rows[places] - start)
        maps = [case.evidence.mean_map, case.evidence.confidence]
        for column, values in enumerate(values for values in maps if values is not None):
            inputs[places, column] = log_odds(values.flatten()[chosen]).double().numpy()
        right[places] = case.right.flatten()[chosen].numpy()
    return inputs, right


def _sigmoid(odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1 / (1 + np.exp(-odds))


def _structures(
    fitted: Sequence[CalibrationCase],
    promised: Sequence[CalibrationCase],
    pixels: PixelCalibration,
    anatomy: Anatomy,
    targets: Targets,
) -> tuple[dict[str, StructureModel], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Models by structure and for the mean; predicted means of the fitted and of the promised cases.

    A structure that a mask lacks is not predicted, and its case not learned from: such a mask is referred.
    """
    names = anatomy.schema.structures
    numbers = {
        part: [case.evidence.features(names, pixels.probability(case.evidence)) for case in cases]
        for part, cases in (("f", fitted), ("p", promised))
    }
    models: dict[str, StructureModel] = {}
    predicted: dict[str, list[npt.NDArray[np.float64]]] = {"f": [], "p": []}
    for index, name in enumerate(names):
        there = [row for row, row_numbers in enumerate(numbers["f"]) if row_numbers[index]["size"] > 0]
        predictor = fit_predictor(
            [numbers["f"][row][index] for row in there],
            np.array([float(fitted[row].dice[index]) for row in there]),
            [fitted[row].patient_id for row in there],
        )
        for part in ("f", "p"):
            predicted[part].append(np.array([predictor.predict(row[index]) for row in numbers[part]]))
        models[name] = _model(predictor, predicted["p"][-1], promised, index, targets)
    means = {part: np.mean(values, axis=0) for part, values in predicted.items()}
    models[MEAN] = _model(None, means["p"], promised, None, targets)
    return models, means["f"], means["p"]


def _model(
    predictor: DicePredictor | None,
    predicted: npt.NDArray[np.float64],
    cases: Sequence[CalibrationCase],
    index: int | None,
    targets: Targets,
) -> StructureModel:
    truth = np.array([float(case.dice.mean() if index is None else case.dice[index]) for case in cases])
    scores = conformity(predicted, truth)
    quantile = patient_quantile(scores, [case.patient_id for case in cases], targets.coverage)
    return StructureModel(
        predictor=predictor,
        quantile=quantile if np.isfinite(quantile) else None,
        conformity=tuple(scores.round(6).tolist()),
        error=float(np.abs(predicted - truth).mean()),
        bias=float((predicted - truth).mean()),
    )


def _threshold(
    cases: Sequence[CalibrationCase],
    mean_fitted: npt.NDArray[np.float64],
    mean_promised: npt.NDArray[np.float64],
    targets: Targets,
    seed: int,
) -> tuple[float | None, str]:
    # The test counts independent cases: one of each patient, drawn without looking at it.
    order = numpy_generator(seed, "one case a patient").permutation(len(cases))
    rows = sorted({cases[row].patient_id: int(row) for row in order}.values())
    good = np.array([float(cases[row].dice.mean()) >= targets.dice for row in rows])
    threshold = accept_threshold(
        mean_promised[rows], good, threshold_candidates(mean_fitted), targets.alpha, targets.confidence
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
