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
from torch import Tensor

from medfm_rl.adapters import Sample, SegmenterAdapter, TorchModuleAdapter
from medfm_rl.errors import DataError, ModelError
from medfm_rl.metrics.validity import Anatomy, RuleResult
from medfm_rl.quality.appearance import appearance
from medfm_rl.quality.biomedclip import BiomedCLIP
from medfm_rl.quality.conformal import effective_patients, fewest_patients, interval, weighted_quantile
from medfm_rl.quality.evidence import Evidence, confidence_in
from medfm_rl.quality.model import MEAN, QUALITY_FILE, QualityModel
from medfm_rl.quality.shift import FEWEST_IN_BATCH
from medfm_rl.quality.views import ECHO_PROFILES, ViewClassifier, ViewFinding
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.types import Case, FloatArray, LabelMap, LabelSchema

Verdict = Literal["accept", "correct", "refer"]
State = Literal["holds", "weighted", "suspended", "untested"]
"""What the tests of a batch leave of what was promised."""
_CASE_LEVEL = 0.001
_BATCH_LEVEL = 0.05
_WORST_REGION = 0.05
_BATCH = 16


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
        shift_distance: Mahalanobis distance of the image from the calibration images, by what the reward network saw,
            by the appearance of the image, or by what BiomedCLIP saw, whichever is least probable.
        shift_probability: Probability of such a distance among images of their kind, for as many distances.
        verdict: accept: use it. correct: a person or a further step should correct it. refer: a person has to decide.
        reasons: Why, in words.
        embedding: What the reward network saw, for the test of a batch.
        view: What a classifier of views sees, where there is one.
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
    view: ViewFinding | None = None
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
        values["view"] = ViewFinding.from_json(content["view"])
        values["reasons"], values["embedding"] = tuple(content["reasons"]), tuple(content["embedding"])
        return cls(**values)


@dataclass(frozen=True)
class Guarantee:
    """A promise, and whether it holds for a batch.

    Attributes:
        promise: In words.
        status: holds, weighted (it holds with other intervals, if only the shares of the images differ), suspended (a
            test says that it does not), untested, or none (there never was one).
        reason: Why.
    """

    promise: str
    status: Literal["holds", "weighted", "suspended", "untested", "none"]
    reason: str


@dataclass(frozen=True, eq=False)
class BatchReport:
    """Reports of the masks of a batch, with the verdicts that hold for them together.

    Attributes:
        reports: In the order given.
        state: Whether what is promised holds for the batch: it does, it does with weighted intervals, a test has
            suspended it, or the batch is too small for the test.
        shift_probability: p-value of the two-sample test, or None where the batch is too small for it.
        guarantees: What is promised for this batch, and what is not.
    """

    reports: tuple[QualityReport, ...]
    state: State
    shift_probability: float | None
    guarantees: tuple[Guarantee, ...]


@dataclass(frozen=True, eq=False)
class Submission:
    """A mask that is ready to be judged.

    Attributes:
        case: The image.
        labels: `(*S)` class indices on its grid.
        sample: The image on the grid of the networks.
        action: `(*S')` uint8, the mask on it.
        confidence: `(*S')`, as in `Evidence`.
        rules: What each anatomy rule measured in the mask.
        view: What a classifier of views sees in the image, where there is one.
        biomedclip: `(512,)`, what BiomedCLIP sees in it, where it is asked.
    """

    case: Case
    labels: LabelMap
    sample: Sample
    action: Tensor
    confidence: Tensor | None
    rules: tuple[RuleResult, ...]
    view: ViewFinding | None = None
    biomedclip: npt.NDArray[np.float64] | None = None


class QualityController:
    """Judges masks, whatever made them, with the reward networks and the quality model of a run.

    Args:
        segmenter: That of the run. Brings images and masks to the grid of the reward networks and, unless it needs
            prompts, is asked how probable the mask is.
        reward: The reward networks.
        model: The quality model.
        device: Where the networks run.
        views: Refers images that are no apical views, whatever their masks.
        biomedclip: Asked whether an image is like those of the calibration, too.

    Raises:
        ModelError: The parts are of different anatomies, or the quality model does not know this BiomedCLIP.
    """

    def __init__(
        self,
        segmenter: SegmenterAdapter,
        reward: RewardEnsemble,
        model: QualityModel,
        device: torch.device | None = None,
        views: ViewClassifier | None = None,
        biomedclip: BiomedCLIP | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.segmenter = segmenter.to(self.device)
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
        self.views = views
        if views is not None and self.anatomy.name not in ECHO_PROFILES:
            raise ModelError(
                f"a classifier of echo's views is of no use here: the rules are {self.anatomy.name}, it needs "
                f"{' or '.join(sorted(ECHO_PROFILES))}"
            )

        self.biomedclip = biomedclip
        if biomedclip is not None and (
            model.biomedclip is None or model.biomedclip.weights_hash != biomedclip.weights_hash
        ):
            raise ModelError(
                f"{QUALITY_FILE} does not know what this BiomedCLIP saw in the calibration images: calibrate with "
                "`medfm-rl calibrate --biomedclip FILE`"
            )

    @classmethod
    def load(
        cls,
        path: Path,
        load_segmenter: Callable[[Path], SegmenterAdapter] = TorchModuleAdapter.load,
        device: torch.device | None = None,
        views: ViewClassifier | None = None,
        biomedclip: BiomedCLIP | None = None,
    ) -> QualityController:
        """Loads the folder of a finished run of `adapt`.

        Args:
            path: The run, with `model`, `reward` and `quality.json`.
            load_segmenter: Reads the segmenter's folder, where it is not a torch segmenter.
            device: Where the networks run.
            views: As in the constructor.
            biomedclip: As in the constructor.

        Raises:
            ModelError: A part is missing, damaged, or does not belong to the others.
        """
        if not (path / "model").is_dir():
            raise ModelError(f"{path}: not a finished run of `medfm-rl adapt`, there is no folder model in it")
        model = QualityModel.read(path / QUALITY_FILE)
        model.check_networks(path)
        return cls(
            load_segmenter(path / "model"), RewardEnsemble.load(path / "reward"), model, device, views, biomedclip
        )

    def assess(self, case: Case, labels: LabelMap) -> QualityReport:
        """Judges one mask; nothing can be said of shift but for the case itself.

        Args:
            case: The image.
            labels: Its mask, class indices `(*S)` on the image's own grid.

        Raises:
            DataError: Image and mask do not belong together, or the image is not of the kind that the segmenter, the
                classifier of views or BiomedCLIP takes.
        """
        return self.judge([self.submit(case, labels)])[0]

    def submit(self, case: Case, labels: LabelMap) -> Submission:
        """Checks a mask and makes it ready to be judged among others, which is faster than one by one.

        Raises:
            DataError: As in `assess`.
        """
        return self._shown_to_gates(submit(self.segmenter, self.anatomy, case, labels))

    def segment(self, case: Case) -> Submission:
        """A mask of the run's own segmenter, ready to be judged: one inference serves both.

        Raises:
            DataError: As in `assess`.
        """
        return self._shown_to_gates(segment(self.segmenter, self.anatomy, case))

    def _shown_to_gates(self, submission: Submission) -> Submission:
        return replace(
            submission,
            view=None if self.views is None else self.views.find(submission.case),
            biomedclip=None if self.biomedclip is None else self.biomedclip.embed(submission.case),
        )

    def judge(self, submissions: Sequence[Submission]) -> list[QualityReport]:
        """Reports of masks, in their order: those of `assess`, whatever the others are."""
        found = collect_evidence(submissions, self.reward, self.segmenter.patch_size, self.schema, self.device)
        return [self._report(item, evidence) for item, evidence in zip(submissions, found, strict=True)]

    def _report(self, submission: Submission, evidence: Evidence) -> QualityReport:
        case, labels, sample = submission.case, submission.labels, submission.sample
        evidence = self.model.pixels.apply(evidence)
        native = self.segmenter.restore_map(evidence.reward_map, sample).clip(0, 1)
        scores = self._scores(evidence, labels, native)
        embedding, domain, looks = evidence.embedding, self.model.domain, self.model.appearance
        known = [(domain, embedding), (looks, evidence.appearance)]
        if submission.biomedclip is not None and self.model.biomedclip is not None:
            known.append((self.model.biomedclip.domain, submission.biomedclip))
        # The smallest of some probabilities, times their number, is one (Bonferroni).
        distance, probability = min(
            ((of.distance(numbers), min(1.0, len(known) * of.probability(numbers))) for of, numbers in known),
            key=lambda found: found[1],
        )
        report = QualityReport(
            case.case_id,
            case.patient_id,
            scores,
            evidence.rules,
            distance,
            probability,
            "refer",
            (),
            tuple(embedding.tolist()),
            submission.view,
            native,
        )
        return self._decided(report, "untested")

    def settle(self, reports: Sequence[QualityReport]) -> BatchReport:
        """Tests a batch for shift and gives the verdicts that hold under its outcome.

        Where the batch differs from the calibration cases, the threshold for acceptance promises nothing. If enough of
        the calibration cases are like the batch, they are weighted, and a mask is accepted where the whole weighted
        interval of its mean Dice lies at or above the limit. If not, no mask is accepted.
        """
        domain, patients = self.model.domain, [report.patient_id for report in reports]
        embeddings = np.array([report.embedding for report in reports])
        probability = domain.batch_probability(embeddings, patients) if reports else None
        state: State = "untested" if probability is None else "holds"
        effective = 0.0
        if probability is not None and probability < _BATCH_LEVEL:
            reference, own = domain.likelihood_ratios(embeddings, patients)
            effective = effective_patients(reference, domain.patients, own)
            state = "suspended"
            if effective >= fewest_patients(self.model.targets.coverage):
                state = "weighted"
                reports = [self._weighted(report, reference, ratio) for report, ratio in zip(reports, own, strict=True)]
        settled = tuple(self._decided(report, state) for report in reports)
        return BatchReport(settled, state, probability, self._guarantees(probability, state, effective))

    def _weighted(self, report: QualityReport, reference: npt.NDArray[np.float64], own: float) -> QualityReport:
        """The report with the intervals that hold for a case of that likelihood ratio."""
        scores = []
        for score in report.scores:
            if score.predicted_dice is not None:
                model = self.model.structures[score.structure]
                quantile = weighted_quantile(
                    np.array(model.conformity), reference, self.model.domain.patients, own, self.model.targets.coverage
                )
                low, high = interval(score.predicted_dice, quantile)
                score = replace(score, low=low, high=high)
            scores.append(score)
        return replace(report, scores=tuple(scores))

    def _scores(self, evidence: Evidence, labels: LabelMap, native: FloatArray) -> tuple[StructureScore, ...]:
        rows = evidence.features(self.schema.structures)
        scores = []
        size = [max(3, round(_WORST_REGION * side)) for side in labels.shape]
        smooth = ndimage.uniform_filter(native, size, mode="nearest")
        for index, (name, numbers) in enumerate(zip(self.schema.structures, rows, strict=True), 1):
            mask = labels == index
            centre, worst = _worst(smooth, mask, size)
            model = self.model.structures[name]
            assert model.predictor is not None
            if not mask.any() or numbers["size"] == 0:
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

    def _decided(self, report: QualityReport, state: State) -> QualityReport:
        verdict, reasons = self._decide(report, state)
        return replace(report, verdict=verdict, reasons=tuple(reasons))

    def _decide(self, report: QualityReport, state: State) -> tuple[Verdict, list[str]]:
        limit = self.model.targets.dice
        if report.view is not None and not report.view.is_apical:
            seen = report.view
            return "refer", [
                f"the view classifier sees {seen.view.replace('_', ' ')} (p = {seen.probability:.2f}), and the rules "
                "are for apical views"
            ]
        missing = [score.structure for score in report.scores[:-1] if score.predicted_dice is None]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            return "refer", [f"{', '.join(missing)} {verb} missing from the mask: no quality can be predicted"]
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
        if mean.low >= limit:
            if state == "suspended":
                return "refer", [
                    f"{found}, at or above {limit:g}, but the batch differs from the calibration cases, and no "
                    "interval can be promised; every anatomy rule is met"
                ]
            return "accept", [f"{found}, all at or above {limit:g}; every anatomy rule is met"]
        threshold, shifted = self.model.accept_threshold, state in ("weighted", "suspended")
        if threshold is not None and not shifted and mean.predicted_dice >= threshold:
            return "accept", [f"{found}, at or above the threshold {threshold:.3f}; every anatomy rule is met"]
        why = "the batch differs from the calibration cases, so that the threshold does not count"
        if threshold is None:
            why = "there is no threshold with a guarantee"
        elif not shifted:
            why = f"it is below the threshold {threshold:.3f}"
        return "correct", [f"{found}, which may be below {limit:g}; {why}"]

    def _guarantees(self, probability: float | None, state: State, effective: float) -> tuple[Guarantee, ...]:
        """What is promised of intervals and threshold in this state of the batch.

        Args:
            probability: Of the two-sample test.
            state: What it and the weights of the calibration patients lead to.
            effective: How many calibration patients the weighted ones are worth, where there are weights.
        """
        model, targets = self.model, self.model.targets
        promise = f"{targets.coverage:.0%} of the intervals of predicted Dice hold the true Dice"
        found = "" if probability is None else f"two-sample test, p = {probability:.3g}"
        differs = f"the batch differs from the calibration cases ({model.origin}): {found}"
        worth = f"{model.conformal_patients} patients are worth {effective:.1f} where those like the batch weigh more"
        advice = "calibrate on labelled cases of this domain"
        match state:
            case "untested":
                reason = (
                    f"the two-sample test needs at least {FEWEST_IN_BATCH} patients in the batch and in the "
                    "calibration; whether they are alike is for you to say"
                )
            case "holds":
                reason = f"no difference from the calibration cases ({model.origin}) was found: {found}"
            case "weighted":
                reason = (
                    f"{differs}; {worth}. The intervals are weighted, and hold if only the images differ and not how "
                    f"good masks of such images are; to be sure, {advice}"
                )
            case "suspended":
                reason = f"{differs}; {worth}, and {fewest_patients(targets.coverage)} are needed; {advice}"
        missing = model.structures[MEAN].quantile is None
        why = f"{model.conformal_patients} calibration patients are too few for intervals of this coverage"
        guarantees = [Guarantee(promise, "none" if missing else state, why if missing else reason)]
        missing = model.accept_threshold is None
        promise, _, why = model.accept_reason.partition(": ")
        # Weights say nothing of a threshold.
        status: State = "suspended" if state == "weighted" else state
        guarantees.append(Guarantee(promise, "none" if missing else status, why if missing else reason))
        return tuple(guarantees)


def submit(segmenter: SegmenterAdapter, anatomy: Anatomy, case: Case, labels: LabelMap) -> Submission:
    """Applies the rules to a mask and brings image and mask to the grid of the networks.

    Args:
        segmenter: Knows that grid.
        anatomy: The rules.
        case: The image.
        labels: Class indices `(*S)` on the image's grid.

    Raises:
        DataError: The mask does not lie on the grid of the image, or has classes that the rules do not know; or the
            image is not of the kind that the segmenter takes.
    """
    if labels.shape != case.shape:
        raise DataError(
            f"case {case.case_id}: the mask has size {labels.shape}, its image {case.shape}; they must be equal"
        )
    sample = segmenter.preprocess(case)
    logits = None if segmenter.prompted else segmenter.predict_logits(sample)
    return _prepare(segmenter, anatomy, case, labels, sample, logits)


def segment(segmenter: SegmenterAdapter, anatomy: Anatomy, case: Case) -> Submission:
    """A mask of the segmenter, ready to be judged: one inference serves both.

    Args:
        segmenter: Makes the mask.
        anatomy: The rules.
        case: The image.

    Raises:
        DataError: The image is not of the kind that the segmenter takes.
    """
    sample = segmenter.preprocess(case)
    logits = segmenter.predict_logits(sample)
    known = None if segmenter.prompted else logits
    return _prepare(segmenter, anatomy, case, segmenter.restore(logits, sample), sample, known)


def _prepare(
    segmenter: SegmenterAdapter,
    anatomy: Anatomy,
    case: Case,
    labels: LabelMap,
    sample: Sample,
    logits: Tensor | None,
) -> Submission:
    """As `submit`, with the sample of the case and, where the segmenter can be asked, its logits `(K, *S')`.

    Raises:
        DataError: The mask has classes that the rules do not know.
    """
    try:
        rules = anatomy.check(labels, case.geometry.array_spacing)
    except ValueError as error:
        raise DataError(f"case {case.case_id}: {error}") from error
    action = segmenter.preprocess_labels(labels, sample)
    confidence = None if logits is None else confidence_in(logits, action)
    return Submission(case, labels, sample, action, confidence, rules)


def collect_evidence(
    submissions: Sequence[Submission],
    reward: RewardEnsemble,
    patch_size: tuple[int, ...],
    schema: LabelSchema,
    device: torch.device,
) -> list[Evidence]:
    """What the reward networks and the rules say of masks, in their order.

    Args:
        submissions: The masks.
        reward: The networks, on `device`.
        patch_size: Of the segmenter.
        schema: Structures of the masks.
        device: Where the networks are.
    """
    of_shape: dict[tuple[int, ...], list[int]] = {}
    for row, item in enumerate(submissions):
        of_shape.setdefault(tuple(item.sample.image.shape), []).append(row)
    found: dict[int, Evidence] = {}
    batches = [rows[start : start + _BATCH] for rows in of_shape.values() for start in range(0, len(rows), _BATCH)]
    for rows in batches:
        images = torch.stack([submissions[row].sample.image for row in rows]).to(device)
        actions = torch.stack([submissions[row].action for row in rows])
        seen = reward.examine(images, actions.to(device), patch_size)
        maps, spread, features = seen.mean.cpu(), seen.spread.cpu(), seen.features.double().cpu().numpy()
        looks = appearance(images[:, : reward.in_channels]).numpy()
        for place, row in enumerate(rows):
            item = submissions[row]
            found[row] = Evidence(
                actions[place],
                maps[place],
                spread[place],
                item.confidence,
                features[place],
                looks[place],
                item.rules,
                schema.num_classes,
            )
    return [found[row] for row in range(len(submissions))]


def _worst(smooth: FloatArray, mask: npt.NDArray[np.bool_], size: Sequence[int]) -> tuple[tuple[int, ...], float]:
    """Index and value of the lowest smoothed reward near a structure, of the whole image where there is none."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        centre = np.unravel_index(int(smooth.argmin()), smooth.shape)
        return tuple(int(index) for index in centre), float(smooth[centre])
    box = tuple(
        slice(max(0, part.start - reach), part.stop + reach) for part, reach in zip(found[0], size, strict=True)
    )
    near = ndimage.maximum_filter(mask[box].astype(np.uint8), size, mode="constant") > 0
    values = np.where(near, smooth[box], np.inf)
    place = np.unravel_index(int(values.argmin()), values.shape)
    return tuple(part.start + int(index) for part, index in zip(box, place, strict=True)), float(values[place])
