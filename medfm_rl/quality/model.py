"""`quality.json`: everything that turns a reward map into predicted Dice, an interval and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from torch import Tensor

from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.anatomy.rules import Profile
from medfm_rl.data.files import hash_folder, write_text
from medfm_rl.data.json_text import parse_json
from medfm_rl.errors import ModelError
from medfm_rl.quality.conformal import interval, patient_quantile, residuals
from medfm_rl.quality.evidence import Evidence, log_odds
from medfm_rl.quality.prediction import DicePredictor
from medfm_rl.quality.shift import DomainReference
from medfm_rl.reward.fusion import read_fusion
from medfm_rl.settings.problems import sum_up_problems
from medfm_rl.types import LabelSchema

QUALITY_FILE = "quality.json"
_FORMAT = 6
_UNSIGNED = 5
"""The format that had the sizes of errors without their signs, and no telling rules."""
_RENAMED = 4
"""The format that had `model_hash` under another name, and no hash of the reward folder and of the data."""
_KNOWN = (_RENAMED, _UNSIGNED, _FORMAT)


class Targets(BaseModel):
    """The demands on intervals and on accepted masks.

    Attributes:
        coverage: Share of cases whose Dice the interval holds.
        dice: Mean Dice below which a mask is bad.
        alpha: Largest share of bad masks among the accepted.
        confidence: Confidence of the statement about the accepted masks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    coverage: float = Field(0.9, gt=0.5, lt=1)
    dice: float = Field(0.8, gt=0, lt=1)
    alpha: float = Field(0.1, gt=0, lt=0.5)
    confidence: float = Field(0.9, gt=0.5, lt=1)


class PixelCalibration(BaseModel):
    """From what the reward networks and the segmenter say of a pixel to the probability that it is right.

    Its log-odds are `reward_weight * logit(reward) + confidence_weight * logit(confidence) + shift`, a logistic
    regression (Platt, 1999, with two inputs). The confidence is the probability that the segmenter of the run gives to
    the class that the mask has there. Where the maker of the mask said how probable it is too, that is a third input.

    Attributes:
        reward_weight: Weight of the mean map of the reward networks.
        confidence_weight: Weight of the segmenter's confidence; None where the segmenter is not asked.
        given_weight: Weight of the probability that was given along with the mask; None where none was.
        shift: Shift of the log-odds.
        ece_before: Expected calibration error of these mean maps on the cases that were held out from this fit.
        ece_after: The same of the calibrated probabilities.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    reward_weight: float = Field(1.0, ge=0)
    confidence_weight: float | None = Field(None, ge=0)
    given_weight: float | None = Field(None, ge=0)
    shift: float = 0.0
    ece_before: float
    ece_after: float

    def probability(self, evidence: Evidence) -> Tensor:
        """Probability that each pixel is right, `(*S')` in [0, 1].

        Raises:
            ModelError: The segmenter was asked when this was fitted, and was not now, or the other way round; or
                probabilities were given with the masks then, and are not now, or the other way round.
        """
        self.require_given(evidence.given is not None)
        if (evidence.confidence is None) != (self.confidence_weight is None):
            raise ModelError(f"{QUALITY_FILE} was calibrated for another kind of segmenter; calibrate again")
        odds = self.reward_weight * log_odds(evidence.mean_map) + self.shift
        if evidence.confidence is not None and self.confidence_weight is not None:
            odds = odds + self.confidence_weight * log_odds(evidence.confidence)
        if evidence.given is not None and self.given_weight is not None:
            odds = odds + self.given_weight * log_odds(evidence.given)
        return torch.sigmoid(odds)

    def require_given(self, given: bool) -> None:
        """Refuses probabilities of the masks' maker that were not calibrated, and calibrated ones that are missing.

        Raises:
            ModelError: It is so.
        """
        if given and self.given_weight is None:
            raise ModelError(
                f"{QUALITY_FILE} was calibrated without probabilities of the masks' maker, so that nobody knows what "
                "they are worth: leave out --probabilities, or calibrate with `medfm-rl calibrate --masks DIR "
                "--probabilities DIR`"
            )
        if not given and self.given_weight is not None:
            raise ModelError(
                f"{QUALITY_FILE} was calibrated with probabilities of the masks' maker: give those of these masks "
                "(`medfm-rl score --masks DIR --probabilities DIR`), or calibrate again without"
            )

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A file without given probabilities is as versions wrote it that did not know them."""
        content: dict[str, Any] = handler(self)
        return {name: value for name, value in content.items() if name != "given_weight" or value is not None}


class StructureModel(BaseModel):
    """Predicted Dice of one structure, or of the mean over structures.

    Attributes:
        predictor: The prediction; for the mean over structures None: it is the mean of their predictions.
        quantile: Conformal quantile of the relative error; None where there were too few patients for an interval.
        residuals: True less predicted Dice of each case of the domain reference, in its order, relative to the width
            that the prediction gives its interval (`conformal.spread_of`); None where its mask lacks the structure, so
            that nothing is predicted.
        signed: Whether these have signs; a file of an older version knows their sizes alone.
        error: Mean absolute error on the cases that the prediction was not fitted on; None where none has one.
        bias: Mean of predicted - true Dice on them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    predictor: DicePredictor | None
    quantile: float | None
    residuals: tuple[float | None, ...]
    signed: bool = True
    error: float | None
    bias: float | None

    @classmethod
    def of_errors(
        cls,
        predicted: npt.NDArray[np.float64],
        truth: npt.NDArray[np.float64],
        patients: Sequence[str] | Sequence[int],
        coverage: float,
        predictor: DicePredictor | None = None,
    ) -> StructureModel:
        """How far predictions miss the truth, on cases that they were not fitted on.

        Args:
            predicted: `(N,)`, NaN where nothing is predicted.
            truth: `(N,)`.
            patients: Patient of each.
            coverage: Share of cases whose Dice the interval is to hold.
            predictor: What predicts.
        """
        known = np.isfinite(predicted)
        rows = np.flatnonzero(known).tolist()
        relative = residuals(predicted, truth)
        quantile = patient_quantile(np.abs(relative[rows]), np.asarray(patients)[rows].tolist(), coverage)
        missed = (predicted - truth)[known]
        return cls(
            predictor=predictor,
            quantile=quantile if np.isfinite(quantile) else None,
            residuals=tuple(round(float(error), 6) if np.isfinite(error) else None for error in relative),
            error=float(np.abs(missed).mean()) if rows else None,
            bias=float(missed.mean()) if rows else None,
        )

    def known_conformity(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
        """Sizes of the relative errors of the cases that have a prediction, and their rows in the domain reference."""
        rows = np.array([row for row, score in enumerate(self.residuals) if score is not None], dtype=np.intp)
        return np.array([abs(score) for score in self.residuals if score is not None], dtype=np.float64), rows

    def interval(self, predicted: float) -> tuple[float, float]:
        """The interval of a prediction; [0, 1] where there were too few patients."""
        return interval(predicted, math.inf if self.quantile is None else self.quantile)


class EncoderReference(BaseModel):
    """The look of the calibration images to an encoder that is not of the run.

    Attributes:
        weights_hash: SHA-256 of the encoder's file.
        domain: Its embeddings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    weights_hash: str
    domain: DomainReference


class QualityModel(BaseModel):
    """The content of `quality.json`.

    Attributes:
        format: Format of this file.
        version: Version of medfm-rl that wrote it.
        created: UTC, ISO 8601.
        origin: What the calibration cases were, in words.
        target_domain: Whether they are cases of the domain that is scored, labelled by a person.
        cases: Calibration cases.
        patients: Calibration patients.
        conformal_patients: Those that intervals, thresholds and the shift test stand on.
        names: "background" and the structures.
        ids: Integers of the classes in files.
        region_ids: Integers that each structure takes in, where they overlap; else left out of the file.
        model_hash: SHA-256 of the run's folder `model`.
        reward_hash: SHA-256 of its folder `reward`; None in a file that an older version wrote.
        reward_hashes: SHA-256 of the folder of each reward network, which tell the one that has changed.
        networks: Names of the reward networks that assess; None for all that the policy followed.
        data_hash: SHA-256 over names and contents of the images and masks of the calibration cases; None in a file that
            an older version wrote.
        anatomy: Name of the profile.
        profile: The rules, learned limits included.
        telling_rules: Places in the profile of the rules that hardly any good mask breaks (`quality.telling_rules`);
            none in a file that an older version wrote.
        targets: What was asked.
        pixels: Calibration of pixels.
        structures: By name of the structure, and `mean`.
        accept_threshold: Predicted mean Dice from which masks are accepted, or None where none can be guaranteed.
        accept_reason: Why there is none, or what the threshold promises.
        domain: What the images looked like to the reward networks.
        appearance: What they looked like by themselves.
        biomedclip: What they looked like to BiomedCLIP; None where it was not asked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    format: Literal[6] = 6
    version: str
    created: str
    origin: str
    target_domain: bool
    cases: int
    patients: int
    conformal_patients: int
    names: tuple[str, ...]
    ids: tuple[int, ...]
    model_hash: str
    reward_hash: str | None
    reward_hashes: dict[str, str]
    networks: tuple[str, ...] | None = None
    data_hash: str | None
    anatomy: str
    profile: Profile
    telling_rules: tuple[int, ...] = ()
    targets: Targets
    pixels: PixelCalibration
    structures: dict[str, StructureModel]
    accept_threshold: float | None
    accept_reason: str
    domain: DomainReference
    appearance: DomainReference
    biomedclip: EncoderReference | None = None
    region_ids: tuple[tuple[int, ...], ...] = ()

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A file of all networks, or of structures that do not overlap, is as versions wrote it that knew no other."""
        content: dict[str, Any] = handler(self)
        return {name: value for name, value in content.items() if name not in ("networks", "region_ids") or value}

    @property
    def label_schema(self) -> LabelSchema:
        """Structures of the masks."""
        return LabelSchema(self.names, self.ids, self.region_ids)

    def bound_anatomy(self) -> Anatomy:
        """The rules, bound to the structures."""
        return Anatomy(self.anatomy, self.profile, self.label_schema)

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> QualityModel:
        """Reads and validates the file.

        Raises:
            ModelError: It is missing, or not what this version writes.
        """
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and content.get("format") == _RENAMED:
                content = _with_names_of_today(content)
            if isinstance(content, dict) and content.get("format") == _UNSIGNED:
                content = _with_errors_of_unknown_sign(content)
            if isinstance(content, dict) and content.get("format") != _FORMAT:
                raise ModelError(
                    f"{path}: format {content.get('format')!r}; this version reads format {_FORMAT}: calibrate again"
                )
            return cls.model_validate(content)
        except FileNotFoundError as error:
            raise ModelError(
                f"{path}: there is no such file, so nothing says how good a reward is; make one from labelled cases by "
                f"`medfm-rl calibrate {path.parent} --labelled DIR`"
            ) from error
        except ValidationError as error:
            raise ModelError(f"{path}: not a quality model ({sum_up_problems(error)}); calibrate again") from error
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: not a quality model ({error}); calibrate again") from error

    def check_networks(self, run: Path, model_hash: str | None = None) -> None:
        """Refuses a run with other networks than those that were calibrated.

        Args:
            run: Folder with `reward` and `model`.
            model_hash: SHA-256 of `model`, where it is known already.

        Raises:
            ModelError: They differ.
        """
        hashes = reward_hashes(run / "reward")
        if self.networks is not None:
            hashes = {name: found for name, found in hashes.items() if name in self.networks}
        differing = sorted(
            name
            for name in hashes.keys() | self.reward_hashes.keys()
            if hashes.get(name) != self.reward_hashes.get(name)
        )
        if differing:
            raise ModelError(
                f"{run / 'reward'}: the reward networks are not those that {QUALITY_FILE} was calibrated with "
                f"(differing: {', '.join(differing)}); calibrate again by `medfm-rl calibrate`"
            )
        if (model_hash or hash_folder(run / "model")) != self.model_hash:
            raise ModelError(
                f"{run / 'model'}: the segmenter is not the one that {QUALITY_FILE} was calibrated with; calibrate "
                "again by `medfm-rl calibrate`"
            )


def is_outdated(path: Path) -> bool:
    """Whether a file is a quality model of a format that this version does not read."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") not in (None, *_KNOWN)


def _with_names_of_today(content: dict[str, Any]) -> dict[str, Any]:
    """A file of the format before: its hash of the segmenter is `model_hash`, the other two were not recorded."""
    renamed = {("model_hash" if name == "segmenter_hash" else name): value for name, value in content.items()}
    return {**renamed, "format": _UNSIGNED, "reward_hash": None, "data_hash": None}


def _with_errors_of_unknown_sign(content: dict[str, Any]) -> dict[str, Any]:
    """A file of the format before: the errors of its predictions have no signs."""
    structures = content.get("structures")
    if isinstance(structures, dict):
        structures = {name: _unsigned(item) if isinstance(item, dict) else item for name, item in structures.items()}
        content = {**content, "structures": structures}
    return {**content, "format": _FORMAT}


def _unsigned(structure: dict[str, Any]) -> dict[str, Any]:
    renamed = {("residuals" if name == "conformity" else name): value for name, value in structure.items()}
    return {**renamed, "signed": False}


def reward_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each network of a reward folder that takes part in the ensemble.

    Raises:
        ModelError: The folder has no ensemble.
    """
    _, members = read_fusion(folder)
    return {member: hash_folder(folder / member) for member in members}
