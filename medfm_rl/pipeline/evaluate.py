"""Segmentation of cases on their own grid, and its comparison with ground truth."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.data.files import write_json, write_text
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError, UserError
from medfm_rl.metrics.bootstrap import PairedDifference, paired_bootstrap
from medfm_rl.metrics.overlap import dice
from medfm_rl.metrics.surface import surface_distances
from medfm_rl.metrics.validity import Anatomy
from medfm_rl.pipeline.images import Progress
from medfm_rl.pipeline.models import Model
from medfm_rl.types import Case, FloatArray, LabelMap, LabelSchema

MEAN = "mean"


@dataclass(frozen=True)
class CaseScore:
    """How well one structure of one case is segmented.

    Attributes:
        case_id: Of the case.
        patient_id: Of the case.
        structure: Name, or "mean" over the structures.
        dice: In [0, 1].
        hd95: In `unit`; NaN where one of both masks lacks the structure.
        assd: In `unit`; NaN likewise.
        unit: "mm" where the spacing is known, else "px".
        valid: Whether the whole mask obeys the anatomy rules.
    """

    case_id: str
    patient_id: str
    structure: str
    dice: float
    hd95: float
    assd: float
    unit: str
    valid: bool


@dataclass(frozen=True)
class StructureSummary:
    """Scores of one structure over all cases.

    Attributes:
        structure: Name, or "mean".
        cases: How many.
        dice: Mean.
        dice_p10: 10th percentile.
        hd95: Mean over the cases that have it, in `unit`.
        assd: Mean over the cases that have it, in `unit`.
        unit: "mm" or "px"; "mixed" gives no distances, because they cannot be averaged.
        undefined: Cases without a distance.
        validity: Share of cases whose mask obeys the anatomy rules.
    """

    structure: str
    cases: int
    dice: float
    dice_p10: float
    hd95: float
    assd: float
    unit: str
    undefined: int
    validity: float


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model.

    Attributes:
        scores: Per case and structure.
        summary: Per structure.
    """

    scores: tuple[CaseScore, ...]
    summary: tuple[StructureSummary, ...]

    def of(self, structure: str) -> list[CaseScore]:
        """The scores of one structure, in the order of the cases."""
        return [score for score in self.scores if score.structure == structure]


def evaluate(
    segmenter: SegmenterAdapter, files: Sequence[CaseFile], anatomy: Anatomy, progress: Progress
) -> Evaluation:
    """Segments labelled cases and scores them.

    Raises:
        DataError: A case has no mask, or one that cannot be used.
    """
    scores: list[CaseScore] = []
    for done, file in enumerate(files, 1):
        labelled = file.read_labelled(segmenter.schema)
        prediction = segmenter.segment(labelled.case)
        scores += score_case(labelled.case, prediction, labelled.ground_truth, segmenter.schema, anatomy)
        progress("evaluating", done, len(files))
    return Evaluation(tuple(scores), summarise(scores))


def score_case(
    case: Case, prediction: LabelMap, ground_truth: LabelMap, schema: LabelSchema, anatomy: Anatomy
) -> list[CaseScore]:
    """Scores of every structure of a case, then of their mean."""
    overlaps = dice(prediction, ground_truth, schema.num_classes)
    spacing = case.geometry.array_spacing
    hd95, assd = surface_distances(prediction, ground_truth, schema.num_classes, spacing)
    valid, unit = anatomy.is_valid(prediction), "px" if spacing is None else "mm"
    rows = [(name, overlaps[i], hd95[i], assd[i]) for i, name in enumerate(schema.structures)]
    # A mean over structures exists where every structure has a distance.
    rows.append((MEAN, overlaps.mean(), hd95.mean(), assd.mean()))
    return [
        CaseScore(case.case_id, case.patient_id, name, float(overlap), float(far), float(mean), unit, valid)
        for name, overlap, far, mean in rows
    ]


def summarise(scores: Sequence[CaseScore]) -> tuple[StructureSummary, ...]:
    """Summaries by structure, in the order of first appearance."""
    summaries = []
    for structure in dict.fromkeys(score.structure for score in scores):
        own = [score for score in scores if score.structure == structure]
        units = {score.unit for score in own}
        overlaps = np.array([score.dice for score in own])
        far, mean = np.array([score.hd95 for score in own]), np.array([score.assd for score in own])
        defined = np.isfinite(far)
        comparable = len(units) == 1 and bool(defined.any())
        summaries.append(
            StructureSummary(
                structure,
                len(own),
                float(overlaps.mean()),
                float(np.quantile(overlaps, 0.1)),
                float(far[defined].mean()) if comparable else float("nan"),
                float(mean[defined].mean()) if comparable else float("nan"),
                units.pop() if len(units) == 1 else "mixed",
                int((~defined).sum()),
                float(np.mean([score.valid for score in own])),
            )
        )
    return tuple(summaries)


def compare(before: Evaluation, after: Evaluation) -> dict[str, PairedDifference]:
    """Differences of Dice by structure, paired by case, with bootstrap intervals over patients.

    Raises:
        DataError: The evaluations are of other cases, or of one patient only.
    """
    cases = [[score.case_id for score in evaluation.of(MEAN)] for evaluation in (before, after)]
    if cases[0] != cases[1]:
        differing = sorted(set(cases[0]) ^ set(cases[1]))
        raise DataError(f"the two models were not evaluated on the same cases (differing: {', '.join(differing[:3])})")
    differences = {}
    for structure in dict.fromkeys(score.structure for score in after.scores):
        ours, theirs = after.of(structure), before.of(structure)
        try:
            differences[structure] = paired_bootstrap(
                np.array([score.dice for score in theirs]),
                np.array([score.dice for score in ours]),
                [score.patient_id for score in ours],
            )
        except ValueError as error:
            raise DataError(f"no interval can be given: {error}") from error
    return differences


def write_evaluation(
    folder: Path, evaluations: Mapping[str, Evaluation], differences: Mapping[str, PairedDifference] | None
) -> None:
    """Writes `scores.csv` (per case and structure) and `summary.json`."""
    text = io.StringIO()
    rows = [{"model": name, **asdict(score)} for name, evaluation in evaluations.items() for score in evaluation.scores]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "scores.csv", text.getvalue())
    write_json(
        folder / "summary.json",
        {
            "models": {
                name: [_without_nan(asdict(summary)) for summary in evaluation.summary]
                for name, evaluation in evaluations.items()
            },
            "dice_difference": {name: asdict(difference) for name, difference in (differences or {}).items()},
        },
    )


@torch.no_grad()
def predict(model: Model, files: Sequence[CaseFile], out: Path, progress: Progress) -> list[str]:
    """Writes a label map per case in the geometry of its image, and its reward map where the model has a reward.

    Cases that are there already are kept, so an interrupted call can be repeated. A case that cannot be read is left
    out and named; the others are segmented.

    Returns:
        One message per case that was left out.

    Raises:
        DataError: No case could be segmented.
    """
    problems: list[str] = []
    for done, file in enumerate(files, 1):
        label_path = out / "labels" / f"{file.case_id}.nii.gz"
        if not label_path.exists():
            try:
                case = file.read()
                labels, reward_map = segment_and_judge(model, case)
            except UserError as error:
                problems.append(str(error))
            else:
                if reward_map is not None:
                    write_image(out / "rewards" / f"{file.case_id}.nii.gz", reward_map, case.geometry)
                # Last: a case with a label map is complete.
                write_labels(label_path, labels, case.geometry, model.segmenter.schema)
        progress("predicting", done, len(files))
    if len(problems) == len(files):
        raise DataError(f"no case could be segmented; the first: {problems[0]}")
    return problems


@torch.no_grad()
def segment_and_judge(model: Model, case: Case) -> tuple[LabelMap, FloatArray | None]:
    """Class indices of a case and the reward map of that segmentation, both on the case's own grid.

    The reward network sees the argmax on the grid of the network's input, from which the label map is restored.
    """
    sample = model.segmenter.preprocess(case)
    images = sample.image[None]
    logits = model.segmenter.eval()(images)
    labels = model.segmenter.restore(logits[0], sample)
    if model.reward is None:
        return labels, None
    reward_map = model.reward(images, logits.argmax(dim=1))[0]
    return labels, model.segmenter.restore_map(reward_map, sample).clip(0, 1)


def _without_nan(values: dict[str, object]) -> dict[str, object]:
    """NaN is no JSON."""
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in values.items()}
