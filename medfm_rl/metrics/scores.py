"""Scores of a model against ground truth, by case and structure, and their comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.errors import DataError
from medfm_rl.metrics.bootstrap import PairedDifference, paired_bootstrap
from medfm_rl.metrics.overlap import dice, where_both_are_said
from medfm_rl.metrics.surface import surface_distances
from medfm_rl.types import Case, LabelMap, LabelSchema

MEAN = "mean"


@dataclass(frozen=True)
class CaseScore:
    """How well one structure of one case is segmented.

    Attributes:
        case_id: Name of the case.
        patient_id: Patient of the case.
        structure: Name, or "mean" over the structures.
        dice: In [0, 1].
        hd95: In `unit`; NaN where one of both masks lacks the structure.
        assd: In `unit`; NaN likewise.
        unit: "mm" where the spacing is known, else "px".
        valid: Whether the whole mask obeys the anatomy rules.
        in_truth: Whether the ground truth has the structure; for the mean, whether it has all of them. Where it has
            not, Dice is 1 by convention for a mask that has none either, and 0 for one that has.
    """

    case_id: str
    patient_id: str
    structure: str
    dice: float
    hd95: float
    assd: float
    unit: str
    valid: bool
    in_truth: bool = True


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
        absent: Cases whose ground truth lacks it; for the mean, lacks any of them.
        dice_in_truth: Mean over the other cases; NaN where there is none.
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
    absent: int = 0
    dice_in_truth: float = float("nan")


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model.

    Attributes:
        scores: Per case and structure.
        summary: Per structure.
        problems: By case: why it could not be scored.
    """

    scores: tuple[CaseScore, ...]
    summary: tuple[StructureSummary, ...]
    problems: Mapping[str, str] = field(default_factory=dict)

    def without(self, problems: Mapping[str, str]) -> Evaluation:
        """The same without some cases, and why they are left out."""
        scores = tuple(score for score in self.scores if score.case_id not in problems)
        return Evaluation(scores, summarise(scores), problems)

    def of(self, structure: str) -> list[CaseScore]:
        """The scores of one structure, in the order of the cases."""
        return [score for score in self.scores if score.structure == structure]

    def absences(self) -> list[str]:
        """What to know of each structure that some ground truth lacks, for those cases enter its mean Dice."""
        said = []
        for item in self.summary:
            if item.structure == MEAN or not item.absent:
                continue
            found = sum(score.dice == 0 for score in self.of(item.structure) if not score.in_truth)
            others = item.cases - item.absent
            rest = f"over the others ({others}) the mean is {item.dice_in_truth:.3f}" if others else "no other is left"
            said.append(
                f"{item.structure}: {item.absent} of {item.cases} ground truths lack it. By convention their Dice is 1 "
                f"where the mask lacks it too ({item.absent - found}), and 0 where it has some ({found}); {rest}. In "
                "scores.csv, in_truth tells them apart"
            )
        return said


def score_case(
    case: Case,
    prediction: LabelMap,
    ground_truth: LabelMap,
    schema: LabelSchema,
    anatomy: Anatomy,
    structures: Sequence[str] | None = None,
) -> list[CaseScore]:
    """Scores of every structure of a case, or of some, then of their mean.

    Pixels that are `IGNORED` in the ground truth count in neither mask; where a structure reaches into them, its
    surface ends there, in both. Whether the mask obeys the rules is asked of the whole of it.
    """
    spacing = case.geometry.array_spacing
    valid, unit = anatomy.is_valid(prediction, spacing), "px" if spacing is None else "mm"
    prediction, ground_truth = where_both_are_said(prediction, ground_truth)
    names = schema.structures if structures is None else structures
    rated = [schema.structures.index(name) for name in names]
    overlaps = dice(prediction, ground_truth, schema.classes)[rated]
    hd95, assd = (found[rated] for found in surface_distances(prediction, ground_truth, schema.classes, spacing))
    counts = np.bincount(ground_truth.ravel(), minlength=schema.num_classes)
    there = np.array([counts[list(schema.classes_of(name))].any() for name in names])
    rows = [(name, overlaps[i], hd95[i], assd[i], there[i]) for i, name in enumerate(names)]
    # A mean over structures exists where every structure has a distance.
    rows.append((MEAN, overlaps.mean(), hd95.mean(), assd.mean(), there.all()))
    return [
        CaseScore(case.case_id, case.patient_id, name, float(overlap), float(far), float(mean), unit, valid, bool(has))
        for name, overlap, far, mean, has in rows
    ]


def summarise(scores: Sequence[CaseScore]) -> tuple[StructureSummary, ...]:
    """Summaries by structure, in the order of first appearance."""
    summaries = []
    for structure in dict.fromkeys(score.structure for score in scores):
        own = [score for score in scores if score.structure == structure]
        units = {score.unit for score in own}
        overlaps, there = np.array([score.dice for score in own]), np.array([score.in_truth for score in own])
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
                int((~there).sum()),
                float(overlaps[there].mean()) if there.any() else float("nan"),
            )
        )
    return tuple(summaries)


def compare(before: Evaluation, after: Evaluation) -> dict[str, PairedDifference]:
    """Differences of Dice by structure, paired by case, with bootstrap intervals over patients.

    Raises:
        DataError: The evaluations are of other cases or structures, or of one patient only.
    """
    structures, others = (list(dict.fromkeys(row.structure for row in model.scores)) for model in (after, before))
    if set(structures) != set(others):
        raise DataError(
            f"the two models do not segment the same structures ({', '.join(others)} and {', '.join(structures)})"
        )
    differences = {}
    for structure in structures:
        ours, theirs = _by_case(after, structure), _by_case(before, structure)
        cases = [[score.case_id for score in scores] for scores in (ours, theirs)]
        if cases[0] != cases[1]:
            differing = sorted(set(cases[0]) ^ set(cases[1]))
            raise DataError(
                f"the two models were not evaluated on the same cases (differing: {', '.join(differing[:3])})"
            )
        try:
            differences[structure] = paired_bootstrap(
                np.array([score.dice for score in theirs]),
                np.array([score.dice for score in ours]),
                [score.patient_id for score in ours],
            )
        except ValueError as error:
            raise DataError(f"no interval can be given: {error}") from error
    return differences


def _by_case(evaluation: Evaluation, structure: str) -> list[CaseScore]:
    return sorted(evaluation.of(structure), key=lambda score: score.case_id)
