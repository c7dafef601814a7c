"""From the evidence on a mask and on a batch to predicted Dice, interval, rules, shift and verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from medfm_rl.adapters import CaseGrid, SegmenterAdapter
from medfm_rl.adapters.loading import load_grid
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.errors import ModelError
from medfm_rl.metrics.scores import MEAN
from medfm_rl.quality.biomedclip import BiomedCLIP
from medfm_rl.quality.conformal import effective_patients, fewest_for_intervals, interval, weighted_quantile
from medfm_rl.quality.echo_views import ECHO_PROFILES, ViewClassifier
from medfm_rl.quality.evidence import Evidence
from medfm_rl.quality.guarantees import BatchStanding, Footing
from medfm_rl.quality.in_stream import StreamStanding
from medfm_rl.quality.model import QUALITY_FILE, QualityModel, StructureModel
from medfm_rl.quality.reports import BatchReport, QualityReport, ShiftSeenBy, State, StructureScore
from medfm_rl.quality.reviewed_errors import ReviewedErrors
from medfm_rl.quality.shift import DomainReference
from medfm_rl.quality.submission import Submission, collect_evidence, segment, submit
from medfm_rl.quality.terms import Terms
from medfm_rl.quality.verdicts import decide, risk
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.settings import RESEARCH, SitePolicy
from medfm_rl.structures import bounding_box, pixels_of
from medfm_rl.types import Case, FloatArray, LabelMap

_BATCH_LEVEL = 0.05
_WORST_REGION = 0.05
_Likelihoods = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
Keep = Callable[[Iterable[QualityReport]], Sequence[QualityReport]]
"""Takes reports one by one, and gives them back as a sequence."""


class QualityController:
    """Assesses masks, whatever made them, with the reward networks and the quality model of a run.

    Args:
        grid: Brings images and masks to the grid of the reward networks. Where it is the segmenter of the run it is
            asked how probable a mask is too, unless it needs prompts.
        reward: The reward networks.
        model: The quality model.
        device: Where the networks run.
        views: Refers images that are no apical views, whatever their masks.
        biomedclip: Asked whether an image is like those of the calibration, too.
        policy: Limits that masks have to keep, and what is done with what is not proven.
        reviewed: What reviewed patients tell of predictions, by which these are moved; None where nobody has reviewed.

    Raises:
        ConfigError: The policy does not fit the run, or contradicts itself.
        ModelError: The parts are of different anatomies, or the quality model does not know this BiomedCLIP.
    """

    def __init__(
        self,
        grid: CaseGrid,
        reward: RewardEnsemble,
        model: QualityModel,
        device: torch.device | None = None,
        views: ViewClassifier | None = None,
        biomedclip: BiomedCLIP | None = None,
        policy: SitePolicy = RESEARCH,
        reviewed: ReviewedErrors | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.grid = grid.to(self.device)
        self.reward = reward.to(self.device)
        self.model = model
        self.reviewed = reviewed
        self.terms = Terms.bind(policy, model, 0 if reviewed is None else reviewed.count)
        self.anatomy: Anatomy = model.bound_anatomy()
        self.schema = self.anatomy.schema
        classes = {member.num_classes for member in reward.networks}
        alike = (grid.schema.names, grid.schema.num_classes) == (model.names, self.schema.num_classes)
        if not alike or classes != {self.schema.num_classes}:
            raise ModelError(
                f"the quality model is of {', '.join(self.schema.structures)}, the segmenter of "
                f"{', '.join(grid.schema.structures)} and the reward networks of {sorted(classes)} classes; they "
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
        grid: CaseGrid | None = None,
        device: torch.device | None = None,
        views: ViewClassifier | None = None,
        biomedclip: BiomedCLIP | None = None,
        policy: SitePolicy = RESEARCH,
    ) -> QualityController:
        """Loads the folder of a finished run of `adapt`, or of a judge that `train-judge` made.

        Args:
            path: The folder, with `model`, `reward` and `quality.json`.
            grid: What lies in `model`, where it has been loaded already; None: it is loaded here, of whatever kind it
                is, to make no masks (it needs no boxes).
            device: Where the networks run.
            views: As in the constructor.
            biomedclip: As in the constructor.
            policy: As in the constructor.

        Raises:
            ModelError: A part is missing, damaged, or does not belong to the others.
            MissingExtraError: The segmenter needs a package that is not installed.
            ConfigError: The settings of the run cannot be read, or the policy does not fit it.
        """
        if not (path / "model").is_dir():
            raise ModelError(f"{path}: not a finished run of `medfm-rl adapt`, there is no folder model in it")
        model = QualityModel.read(path / QUALITY_FILE)
        model.check_networks(path)
        if grid is None:
            grid = load_grid(path / "config.yaml", path / "model")
        return cls(
            grid,
            RewardEnsemble.load(path / "reward", model.networks),
            model,
            device,
            views,
            biomedclip,
            policy,
            ReviewedErrors.of_run(path),
        )

    @property
    def gate_hashes(self) -> dict[str, str]:
        """SHA-256 of the weights of the further networks that look at images, by name."""
        gates = {"views": self.views, "biomedclip": self.biomedclip}
        return {name: gate.weights_hash for name, gate in gates.items() if gate is not None}

    @property
    def segmenter(self) -> SegmenterAdapter:
        """The segmenter of the run.

        Raises:
            ModelError: There is none: a judge that `train-judge` made assesses masks alone.
        """
        if not isinstance(self.grid, SegmenterAdapter):
            raise ModelError(
                "a judge without a segmenter makes no masks; give masks (--masks), or another segmenter that makes them"
            )
        return self.grid

    def assess(self, case: Case, labels: LabelMap) -> QualityReport:
        """Assesses one mask; nothing can be said of shift but for the case itself.

        So nothing is proven of its verdict; what it is worth among others, `settle` says.

        Args:
            case: The image.
            labels: Its mask, class indices `(*S)` on the image's own grid.

        Raises:
            DataError: Image and mask do not belong together, or the image is not of the kind that the segmenter, the
                classifier of views or BiomedCLIP takes.
        """
        report = self.assess_batch([self.submit(case, labels)])[0]
        return report if self.reviewed is None else self._known(report, BatchStanding("untested", 1))

    def submit(self, case: Case, labels: LabelMap, given: FloatArray | None = None) -> Submission:
        """Checks a mask and makes it ready to be assessed among others, which is faster than one by one.

        Args:
            case: The image.
            labels: As in `assess`.
            given: `(*S)` in [0, 1], probability that the maker of the mask gave to the class at each pixel
                (`medfm_rl.data.probabilities`); needed where the quality model was calibrated with it, and refused
                where it was not.

        Raises:
            DataError: As in `assess`.
            ModelError: Probabilities are needed or refused.
        """
        self.model.pixels.require_given(given is not None)
        return self._shown_to_gates(submit(self.grid, self.anatomy, case, labels, given))

    def segment(self, case: Case, in_clip: LabelMap | None = None) -> Submission:
        """A mask of the run's own segmenter, ready to be assessed: one inference serves both.

        Args:
            case: The image.
            in_clip: As in `quality.submission.segment`.

        Raises:
            DataError: As in `assess`.
        """
        return self._shown_to_gates(segment(self.segmenter, self.anatomy, case, in_clip))

    def _shown_to_gates(self, submission: Submission) -> Submission:
        return replace(
            submission,
            view=None if self.views is None else self.views.find(submission.case),
            biomedclip=None if self.biomedclip is None else self.biomedclip.embed(submission.case),
        )

    def assess_batch(self, submissions: Sequence[Submission]) -> list[QualityReport]:
        """Reports of masks, in their order, whatever the others are.

        They are those of the quality model alone; what reviewed patients know better, `settle` applies.
        """
        found = collect_evidence(submissions, self.reward, self.grid.patch_size, self.schema, self.device)
        return [self._report(item, evidence) for item, evidence in zip(submissions, found, strict=True)]

    def _report(self, submission: Submission, evidence: Evidence) -> QualityReport:
        case, labels, sample = submission.case, submission.labels, submission.sample
        probability = self.model.pixels.probability(evidence)
        rows = evidence.features(self.schema.structures, probability)
        native = self.grid.restore_map(probability, sample).clip(0, 1)
        scores = self._scores(rows, labels, native)
        embedding, domain, looks = evidence.embedding, self.model.domain, self.model.appearance
        known: list[tuple[ShiftSeenBy, DomainReference, npt.NDArray[np.float64]]] = [
            ("reward network", domain, embedding),
            ("appearance", looks, evidence.appearance),
        ]
        if submission.biomedclip is not None and self.model.biomedclip is not None:
            known.append(("BiomedCLIP", self.model.biomedclip.domain, submission.biomedclip))
        # The smallest of some probabilities, times their number, is one (Bonferroni).
        seen_by, distance, likelihood = min(
            ((name, of.distance(found), min(1.0, len(known) * of.probability(found))) for name, of, found in known),
            key=lambda found: found[2],
        )
        report = QualityReport(
            case.case_id,
            case.patient_id,
            scores,
            evidence.rules,
            distance,
            likelihood,
            "refer",
            (),
            tuple(embedding.tolist()),
            tuple(evidence.appearance.round(4).tolist()),
            submission.view,
            shift_seen_by=seen_by,
            reward_map=native,
        )
        report = replace(report, risk=risk(report, self.model, self.terms.limits))
        return decide(report, BatchStanding("untested", 1), self.terms)

    def settle(self, reports: Sequence[QualityReport], keep: Keep = tuple) -> BatchReport:
        """Tests a batch for shift and gives the verdicts under its outcome, and what they are worth.

        Where the batch differs from the calibration cases and enough of those are like it, they are weighted, for the
        intervals and for the probability that the verdict rests on; the threshold for acceptance promises nothing then.
        Where too few are like it, verdicts are those of the calibration as it is, and what is promised is suspended.

        Args:
            reports: Of the masks.
            keep: Takes the settled reports one by one, and gives them back as a sequence.
        """
        standing, likelihoods = self._tested(reports)
        return standing.summary(keep(self._settled(reports, standing, likelihoods)), self.terms)

    def _tested(self, reports: Sequence[QualityReport]) -> tuple[BatchStanding, _Likelihoods | None]:
        """How a batch stands beside the calibration cases, and their likelihood ratios and its own where they count.

        Reviewed patients are of the domain that is scored, and by their errors nothing is compared with those cases.
        """
        if self.reviewed is not None:
            return BatchStanding("untested", len({report.patient_id for report in reports})), None
        domain = self.model.domain
        patients, embeddings = _patients_and_embeddings(reports)
        probability = domain.batch_probability(embeddings, patients) if reports else None
        state: State = "untested" if probability is None else "holds"
        effective = 0.0
        likelihoods: _Likelihoods | None = None
        if probability is not None and probability < _BATCH_LEVEL:
            reference, own = domain.likelihood_ratios(embeddings, patients)
            effective = effective_patients(reference, domain.patients, own)
            state = "suspended"
            if effective >= fewest_for_intervals(self.model.targets.coverage):
                state, likelihoods = "weighted", (reference, own)
        return BatchStanding(state, len(set(patients)), probability, effective), likelihoods

    def _settled(
        self, reports: Sequence[QualityReport], standing: BatchStanding, likelihoods: _Likelihoods | None
    ) -> Iterator[QualityReport]:
        """Reports with intervals and verdicts of a batch, weighted by likelihood ratios where there are some."""
        if likelihoods is None:
            yield from (self._known(report, standing) for report in reports)
            return
        reference = likelihoods[0]
        for own, report in zip(likelihoods[1], reports, strict=True):
            found = self._with_intervals(report, partial(self._weighted_interval, reference=reference, own=own))
            value = risk(found, self.model, self.terms.limits, reference, float(own))
            yield decide(replace(found, risk=value), standing, self.terms)

    def settle_in_stream(self, reports: Sequence[QualityReport], stream: StreamStanding) -> BatchReport:
        """Gives the verdicts under the state of the stream that the masks are of, and what they are worth.

        However few they are: the stream is tested, and not these masks. Intervals and probabilities are those of the
        calibration as it is.
        """
        return stream.summary([self._known(report, stream) for report in reports], self.terms)

    def _known(self, report: QualityReport, standing: Footing) -> QualityReport:
        """A report with its verdict by the errors of reviewed patients, or of the calibration as it is.

        It may have come out of another batch, with the intervals that held there.
        """
        if self.reviewed is None:
            found = self._with_intervals(report, StructureModel.interval)
            value = risk(found, self.model, self.terms.limits)
        else:
            found = self.reviewed.moved(report)
            value = self.reviewed.risk(found, self.terms.limits)
        return decide(replace(found, risk=value), standing, self.terms)

    def _with_intervals(
        self, report: QualityReport, interval_of: Callable[[StructureModel, float], tuple[float, float]]
    ) -> QualityReport:
        """The report with the intervals that its predictions have by a function of structure and prediction."""
        scores = []
        for score in report.scores:
            if score.predicted_dice is not None:
                low, high = interval_of(self.model.structures[score.structure], score.predicted_dice)
                score = replace(score, low=low, high=high)
            scores.append(score)
        return replace(report, scores=tuple(scores))

    def _weighted_interval(
        self, structure: StructureModel, predicted: float, reference: npt.NDArray[np.float64], own: float
    ) -> tuple[float, float]:
        """The interval that holds for a case of that likelihood ratio."""
        conformity, rows = structure.known_conformity()
        patients = np.array(self.model.domain.patients)[rows].tolist()
        quantile = weighted_quantile(conformity, reference[rows], patients, own, self.model.targets.coverage)
        return interval(predicted, quantile)

    def _scores(
        self, rows: Sequence[Mapping[str, float]], labels: LabelMap, native: FloatArray
    ) -> tuple[StructureScore, ...]:
        scores = []
        size = [max(3, round(_WORST_REGION * side)) for side in labels.shape]
        smooth = ndimage.uniform_filter(native, size, mode="nearest")
        for name, numbers in zip(self.schema.structures, rows, strict=True):
            mask = pixels_of(labels, self.schema.classes_of(name))
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


def _patients_and_embeddings(reports: Sequence[QualityReport]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The patient of each, and what the reward network saw, `(N, D)`."""
    found = [(report.patient_id, np.array(report.embedding)) for report in reports]
    return [patient for patient, _ in found], np.array([embedding for _, embedding in found])


def _worst(smooth: FloatArray, mask: npt.NDArray[np.bool_], size: Sequence[int]) -> tuple[tuple[int, ...], float]:
    """Index and value of the lowest smoothed reward near a structure, of the whole image where there is none."""
    box = bounding_box(mask, size)
    if box is None:
        centre = np.unravel_index(int(smooth.argmin()), smooth.shape)
        return tuple(int(index) for index in centre), float(smooth[centre])
    near = ndimage.maximum_filter(mask[box].astype(np.uint8), size, mode="constant") > 0
    values = np.where(near, smooth[box], np.inf)
    place = np.unravel_index(int(values.argmin()), values.shape)
    return tuple(part.start + int(index) for part, index in zip(box, place, strict=True)), float(values[place])
