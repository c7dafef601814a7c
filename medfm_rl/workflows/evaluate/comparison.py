"""Two models on the same labelled cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.layouts import CaseFile, describe_patients
from medfm_rl.errors import DataError, ModelError
from medfm_rl.metrics.bootstrap import PairedDifference
from medfm_rl.metrics.scores import Evaluation, StructureSummary, compare
from medfm_rl.progress import Progress
from medfm_rl.reports.tables import TableRow
from medfm_rl.workflows.evaluate.evaluation import evaluate_segmenter


@dataclass(frozen=True)
class Comparison:
    """Two models on the same labelled cases, such as source and adapted model."""

    before: Evaluation
    after: Evaluation
    differences: dict[str, PairedDifference]

    def rows(self) -> list[TableRow]:
        """One row per structure, the mean last."""
        after = {new.structure: new for new in self.after.summary}
        return [
            TableRow(
                old.structure,
                old.dice,
                after[old.structure].dice,
                self.differences[old.structure],
                *self._distances(old, after[old.structure]),
            )
            for old in self.before.summary
        ]

    def _distances(self, old: StructureSummary, new: StructureSummary) -> tuple[str, str]:
        """Mean HD95 of both, over the cases in which both have one: a model may find what the other has missed."""
        found = [
            np.array([score.hd95 for score in evaluation.of(old.structure)]) for evaluation in (self.before, self.after)
        ]
        both = np.isfinite(found[0]) & np.isfinite(found[1])
        if not both.any() or "mixed" in (old.unit, new.unit):
            return "undefined", "undefined"
        of = "" if both.all() else f" ({both.sum()} of {len(both)} cases)"
        before, after = (f"{values[both].mean():.1f} {old.unit}{of}" for values in found)
        return before, after


def compare_models(
    before: SegmenterAdapter,
    after: SegmenterAdapter,
    files: Sequence[CaseFile],
    anatomy: str,
    progress: Progress,
    names: tuple[str, str] = ("the source model", "the adapted model"),
    over_time: bool = False,
    cleaned: bool = False,
) -> Comparison:
    """Evaluates two models on the same cases; one that either cannot score is left out of both and named.

    Args:
        before: The first model.
        after: The second one.
        files: Labelled cases.
        anatomy: Profile of the rules that count valid masks.
        progress: Told how far it is.
        names: What to call the two there.
        over_time: As in `evaluate_segmenter`.
        cleaned: Likewise.

    Raises:
        DataError: Not one case could be scored, or all are of one patient.
        ModelError: The models segment other structures.
    """
    if set(before.schema.class_names) != set(after.schema.class_names):
        raise ModelError(
            f"the models segment other structures ({', '.join(before.schema.structures)} and "
            f"{', '.join(after.schema.structures)}); only models of the same structures can be compared"
        )
    _require_patients(files)

    def score(name: str, segmenter: SegmenterAdapter, cases: Sequence[CaseFile]) -> Evaluation:
        def named(_: str, done: int, total: int) -> None:
            progress(f"evaluating {name}", done, total)

        rules = load_anatomy(anatomy, segmenter.schema)
        return evaluate_segmenter(segmenter, cases, rules, named, over_time, cleaned)

    old = score(names[0], before, files)
    new = score(names[1], after, [file for file in files if file.case_id not in old.problems])
    problems = {**old.problems, **new.problems}
    _require_patients([file for file in files if file.case_id not in problems])
    old, new = old.without(problems), new.without(problems)
    return Comparison(old, new, compare(old, new))


def _require_patients(files: Sequence[CaseFile]) -> None:
    """Refuses cases of one patient, for which there is no interval."""
    if len({file.patient_id for file in files}) < 2:
        places = [path.parent for file in files for path in file.image_paths]
        where = f"{places[0]}: " if places else ""
        raise DataError(f"{where}intervals need images of at least 2 patients; {describe_patients(files)}")
