"""`medfm-rl evaluate`: a model against ground truth, by itself or beside another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.files import alone_writing
from medfm_rl.data.layouts import CaseFile
from medfm_rl.metrics.scores import Evaluation
from medfm_rl.progress import Progress, silent
from medfm_rl.runs.models import Model
from medfm_rl.workflows.evaluate.comparison import Comparison, compare_models
from medfm_rl.workflows.evaluate.evaluation import evaluate_segmenter, refuse_evaluated, write_evaluation


@dataclass(frozen=True)
class Measured:
    """The result of a call of `evaluate`.

    Attributes:
        evaluation: Scores of the model.
        comparison: The same beside those of the other model; None where there was none.
    """

    evaluation: Evaluation
    comparison: Comparison | None


def evaluate(
    model: Model,
    files: Sequence[CaseFile],
    out: Path,
    against: Model | None = None,
    anatomy: str | None = None,
    progress: Progress = silent,
    over_time: bool = False,
    cleaned: bool = False,
) -> Measured:
    """Segments labelled cases, scores the masks, and writes `scores.csv` and `summary.json`.

    Args:
        model: The model.
        files: Labelled cases.
        out: Folder for the results, without those of another evaluation.
        against: A second model to compare with, on the same cases; `load_compared` loads both alike.
        anatomy: Profile of the rules that count valid masks; None for that of the model.
        progress: Told how far it is.
        over_time: Whether each frame of a clip is averaged with those before and after it, by either model.
        cleaned: Whether the masks of either are cleaned up by the rules (`PostProcessing`).

    Raises:
        UserError: A case or a model cannot be used, or there are results in `out`.
    """
    with alone_writing(out):
        refuse_evaluated(out)
        rules = model.anatomy_name if anatomy is None else anatomy
        if against is None:
            segmenter = model.segmenter
            anatomy_ = load_anatomy(rules, segmenter.schema)
            evaluation = evaluate_segmenter(segmenter, files, anatomy_, progress, over_time, cleaned)
            write_evaluation(out, {model.name: evaluation}, None)
            return Measured(evaluation, None)
        names = (against.name, model.name)
        comparison = compare_models(
            against.segmenter, model.segmenter, files, rules, progress, names, over_time, cleaned
        )
        evaluations = {against.name: comparison.before, model.name: comparison.after}
        write_evaluation(out, evaluations, comparison.differences)
        return Measured(comparison.after, comparison)
