"""From a case and a mask to a report: predicted Dice, interval, rules, shift, verdict, and the reasons in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from medfm_rl.adapters import Sample, SegmenterAdapter, TorchModuleAdapter
from medfm_rl.errors import DataError, ModelError
from medfm_rl.metrics.validity import Anatomy, RuleResult
from medfm_rl.quality.evidence import Evidence, calibrated
from medfm_rl.quality.model import MEAN, QUALITY_FILE, QualityModel, reward_hashes
from medfm_rl.quality.shift import FEWEST_IN_BATCH
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.types import Case, FloatArray, LabelMap

Verdict = Literal["accept", "correct", "refer"]
_CASE_LEVEL = 0.001
_BATCH_LEVEL = 0.05
_WORST_REGION = 0.05


@dataclass(frozen=True)
class StructureScore:
    """Predicted quality of one structure of a mask, or of the mean over structures.

    Attributes:
        structure: Name, or `mean`.
        predicted_dice: In [0, 1]; None where the mask lacks the structure, and nothing can be said.
        low: Lower end of the interval; None likewise.
        high: Upper end.
        mean_reward: Mean probability of being right in and around the structure.
        worst_reward: Mean of that probability over the worst region in and around it.
        worst_centre: Centre of that region, pixel index on the case's own grid.
    """

    structure: str
    predicted_dice: float | None
    low: float | None
    high: float | None
    mean_reward: float
    worst_reward: float
    worst_centre: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class QualityReport:
    """What is known of one mask.

    Attributes:
        case_id: Of the case.
        patient_id: Of the case.
        scores: Of each structure, the mean last.
        rules: What each anatomy rule measured.
        shift_distance: Mahalanobis distance of the image from the calibration images.
        shift_probability: Probability of such a distance among images of their kind.
        verdict: accept: use it. correct: a person or a further step should correct it. refer: a person has to decide.
        reasons: Why, in words.
        embedding: What the reward network saw, for the test of a batch.
        reward_map: `(*S)` on the case's own grid, calibrated; empty where the report was read back.
    """

    case_id: str
    patient_id: str
    scores: tuple[StructureScore, ...]
    rules: tuple[RuleResult, ...]
    shift_distance: float
    shift_probability: float
    verdict: Verdict
    reasons: tuple[str, ...]
    embedding: tuple[float, ...] = ()
    reward_map: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def mean(self) -> StructureScore:
        return self.scores[-1]

    def to_json(self) -> dict[str, Any]:
        """Everything but the reward map, as plain JSON values."""
        content = asdict(replace(self, reward_map=np.zeros(0, np.float32)))
        del content["reward_map"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> QualityReport:
        """The report that `to_json` wrote, without its map."""
        values = dict(content)
        values["scores"] = tuple(
            StructureScore(**{**score, "worst_centre": tuple(score["worst_centre"])}) for score in content["scores"]
        )
        values["rules"] = tuple(RuleResult(**rule) for rule in content["rules"])
        values["reasons"], values["embedding"] = tuple(content["reasons"]), tuple(content["embedding"])
        return cls(**values)


@dataclass(frozen=True)
class Guarantee:
    """A promise, and whether it holds for a batch.

    Attributes:
        promise: In words.
        status: holds, suspended (a test says that it does not), untested, or none (there never was one).
        reason: Why.
    """

    promise: str
    status: Literal["holds", "suspended", "untested", "none"]
    reason: str


@dataclass(frozen=True, eq=False)
class BatchReport:
    """Reports of the masks of a batch, with the verdicts that hold for them together.

    Attributes:
        reports: In the order given.
        shift_probability: p-value of the two-sample test, or None where the batch is too small for it.
        guarantees: What is promised for this batch, and what is not.
    """

    reports: tuple[QualityReport, ...]
    shift_probability: float | None
    guarantees: tuple[Guarantee, ...]


class QualityController:
    """Judges masks, whatever made them, with the reward networks and the quality model of a run.

    Args:
        segmenter: Brings images and masks to the grid of the reward networks; it is not asked for a mask.
        reward: The reward networks.
        model: The quality model.
        device: Where the networks run.

    Raises:
        ModelError: The parts are of different anatomies.
    """

    def __init__(
        self,
        segmenter: SegmenterAdapter,
        reward: RewardEnsemble,
        model: QualityModel,
        device: torch.device | None = None,
    ) -> None:
        self.segmenter = segmenter
        self.device = device or torch.device("cpu")
        self.reward = reward.to(self.device)
        self.model = model
        self.anatomy: Anatomy = model.bound_anatomy()
        self.schema = self.anatomy.schema
        classes = {member.num_classes for member in reward._networks()}
        if segmenter.schema.names != model.names or classes != {self.schema.num_classes}:
            raise ModelError(
                f"the quality model is of {', '.join(self.schema.structures)}, the segmenter of "
                f"{', '.join(segmenter.schema.structures)} and the reward networks of {sorted(classes)} classes; they "
                "must be of one anatomy"
            )

    @classmethod
    def load(
        cls,
        path: Path,
        load_segmenter: Callable[[Path], SegmenterAdapter] = TorchModuleAdapter.load,
        device: torch.device | None = None,
    ) -> QualityController:
        """Loads the folder of a finished run of `adapt`.

        Args:
            path: The run, with `model`, `reward` and `quality.json`.
            load_segmenter: Reads the segmenter's folder, where it is not a torch segmenter.
            device: Where the networks run.

        Raises:
            ModelError: A part is missing, damaged, or does not belong to the others.
        """
        if not (path / "model").is_dir():
            raise ModelError(f"{path}: not a finished run of `medfm-rl adapt`, there is no folder model in it")
        model = QualityModel.read(path / QUALITY_FILE)
        model.check_networks(reward_hashes(path / "reward"), path / "reward")
        return cls(load_segmenter(path / "model"), RewardEnsemble.load(path / "reward"), model, device)

    def assess(self, case: Case, labels: LabelMap) -> QualityReport:
        """Judges one mask; nothing can be said of shift but for the case itself.

        Args:
            case: The image.
            labels: Its mask, class indices `(*S)` on the image's own grid.

        Raises:
            DataError: Image and mask do not belong together, or the image is not of the kind that the segmenter takes.
        """
        sample = self.segmenter.preprocess(case)
        evidence = collect_evidence(self.segmenter, self.reward, self.anatomy, case, sample, labels, self.device)
        pixels = self.model.pixels
        evidence = replace(evidence, reward_map=calibrated(evidence.reward_map, pixels.slope, pixels.shift))
        native = self.segmenter.restore_map(evidence.reward_map, sample).clip(0, 1)
        scores = self._scores(evidence, labels, native)
        embedding = evidence.embedding
        report = QualityReport(
            case.case_id,
            case.patient_id,
            scores,
            evidence.rules,
            self.model.domain.distance(embedding),
            self.model.domain.probability(embedding),
            "refer",
            (),
            tuple(embedding.tolist()),
            native,
        )
        return self._decided(report, suspended=False)

    def settle(self, reports: Sequence[QualityReport]) -> BatchReport:
        """Tests a batch for shift and gives the verdicts that hold under its outcome.

        Where the batch differs from the calibration cases, the threshold for acceptance promises nothing: a mask is
        accepted only where the whole interval of its mean Dice lies at or above the limit.
        """
        probability = None
        if reports:
            embeddings = np.array([report.embedding for report in reports])
            probability = self.model.domain.batch_probability(embeddings, [report.patient_id for report in reports])
        suspended = probability is not None and probability < _BATCH_LEVEL
        settled = tuple(self._decided(report, suspended) for report in reports)
        return BatchReport(settled, probability, self._guarantees(probability))

    def _scores(self, evidence: Evidence, labels: LabelMap, native: FloatArray) -> tuple[StructureScore, ...]:
        rows = evidence.features(self.schema.structures)
        scores = []
        size = [max(3, round(_WORST_REGION * side)) for side in labels.shape]
        smooth = ndimage.uniform_filter(native, size, mode="nearest")
        for index, (name, numbers) in enumerate(zip(self.schema.structures, rows, strict=True), 1):
            near = _near(labels == index, size)
            centre, worst = _worst(smooth, near)
            model = self.model.structures[name]
            assert model.predictor is not None
            if not (labels == index).any() or numbers["size"] == 0:
                scores.append(StructureScore(name, None, None, None, 0.0, worst, centre))
                continue
            predicted = model.predictor.predict(numbers)
            low, high = model.interval(predicted)
            scores.append(StructureScore(name, predicted, low, high, numbers["mean_reward"], worst, centre))
        lowest = min(scores, key=lambda score: score.worst_reward)
        known = [score.predicted_dice for score in scores if score.predicted_dice is not None]
        mean_reward = float(np.mean([score.mean_reward for score in scores]))
        place = (lowest.worst_reward, lowest.worst_centre)
        if len(known) < len(scores):
            return (*scores, StructureScore(MEAN, None, None, None, mean_reward, *place))
        predicted = float(np.mean(known))
        low, high = self.model.structures[MEAN].interval(predicted)
        return (*scores, StructureScore(MEAN, predicted, low, high, mean_reward, *place))

    def _decided(self, report: QualityReport, suspended: bool) -> QualityReport:
        verdict, reasons = self._decide(report, suspended)
        return replace(report, verdict=verdict, reasons=tuple(reasons))

    def _decide(self, report: QualityReport, suspended: bool) -> tuple[Verdict, list[str]]:
        limit = self.model.targets.dice
        missing = [score.structure for score in report.scores[:-1] if score.predicted_dice is None]
        if missing:
            return "refer", [f"{', '.join(missing)} is missing from the mask: no quality can be predicted"]
        mean = report.mean
        assert mean.predicted_dice is not None
        assert mean.low is not None
        assert mean.high is not None
        found = f"mean Dice is predicted as {mean.predicted_dice:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
        broken = [str(rule) for rule in report.rules if not rule.passed]
        if report.shift_probability < _CASE_LEVEL:
            unlike = (
                f"the image is unlike those of the calibration: distance {report.shift_distance:.1f}, of which the "
                f"probability is {report.shift_probability:.1g}"
            )
            return "refer", [unlike, found, *broken]
        if mean.high < limit:
            return "refer", [f"{found}, all below {limit:g}", *broken]
        if broken:
            return "correct", [*broken, found]
        threshold = self.model.accept_threshold
        if mean.low >= limit:
            return "accept", [f"{found}, all at or above {limit:g}; every anatomy rule is met"]
        if threshold is not None and not suspended and mean.predicted_dice >= threshold:
            return "accept", [f"{found}, at or above the threshold {threshold:.3f}; every anatomy rule is met"]
        why = "the batch differs from the calibration cases, so that the threshold does not count"
        if threshold is None:
            why = "there is no threshold with a guarantee"
        elif not suspended:
            why = f"it is below the threshold {threshold:.3f}"
        return "correct", [f"{found}, which may be below {limit:g}; {why}"]

    def _guarantees(self, probability: float | None) -> tuple[Guarantee, ...]:
        model, targets = self.model, self.model.targets
        interval = f"{targets.coverage:.0%} of the intervals of predicted Dice hold the true Dice"
        status: Literal["holds", "suspended", "untested"]
        if probability is None:
            status = "untested"
            reason = (
                f"the two-sample test needs at least {FEWEST_IN_BATCH} patients in the batch and in the calibration; "
                "whether they are alike is for you to say"
            )
        elif probability < _BATCH_LEVEL:
            status = "suspended"
            reason = (
                f"the batch differs from the calibration cases ({model.origin}): two-sample test, "
                f"p = {probability:.3g}; calibrate on labelled cases of this domain"
            )
        else:
            status = "holds"
            reason = f"no difference from the calibration cases ({model.origin}) was found: p = {probability:.3g}"
        guarantees = []
        missing = model.structures[MEAN].quantile is None
        why = f"{model.conformal_patients} calibration patients are too few for intervals of this coverage"
        guarantees.append(Guarantee(interval, "none" if missing else status, why if missing else reason))
        missing = model.accept_threshold is None
        promise, _, why = model.accept_reason.partition(": ")
        guarantees.append(Guarantee(promise, "none" if missing else status, why if missing else reason))
        return tuple(guarantees)


@torch.no_grad()
def collect_evidence(
    segmenter: SegmenterAdapter,
    reward: RewardEnsemble,
    anatomy: Anatomy,
    case: Case,
    sample: Sample,
    labels: LabelMap,
    device: torch.device,
) -> Evidence:
    """What the reward networks and the rules say of a mask.

    Args:
        segmenter: Brings image and mask to the grid of the networks.
        reward: The networks, on `device`.
        anatomy: The rules.
        case: The image.
        sample: The same, preprocessed by the segmenter.
        labels: Class indices `(*S)` on the image's grid.
        device: Where the networks are.

    Raises:
        DataError: The mask does not lie on the grid of the image, or has classes that the rules do not know.
    """
    if labels.shape != case.shape:
        raise DataError(
            f"case {case.case_id}: the mask has size {labels.shape}, its image {case.shape}; they must be equal"
        )
    try:
        rules = anatomy.check(labels, case.geometry.array_spacing)
    except ValueError as error:
        raise DataError(f"case {case.case_id}: {error}") from error
    action = segmenter.preprocess_labels(labels, sample)
    found = reward.examine(sample.image[None].to(device), action[None].to(device), segmenter.patch_size)
    return Evidence(
        action,
        found.mean[0].cpu(),
        found.spread[0].cpu(),
        found.features[0].double().numpy(),
        rules,
        anatomy.schema.num_classes,
    )


def _near(mask: npt.NDArray[np.bool_], size: Sequence[int]) -> npt.NDArray[np.bool_]:
    grown = ndimage.maximum_filter(mask.astype(np.uint8), size)
    return np.asarray(grown > 0)


def _worst(smooth: FloatArray, near: npt.NDArray[np.bool_]) -> tuple[tuple[int, ...], float]:
    """Index and value of the lowest smoothed reward, of the whole image where the structure is not there."""
    place = int(np.where(near, smooth, np.inf).argmin()) if near.any() else int(smooth.argmin())
    centre = np.unravel_index(place, smooth.shape)
    return tuple(int(index) for index in centre), float(smooth.flat[place])
