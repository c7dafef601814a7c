"""Segmentation of cases on their own grid, and its comparison with ground truth."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path

import numpy as np

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.clips import CaseMasks, require_clips
from medfm_rl.adapters.post_processing import PostProcessing
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.data.each_case import each_case
from medfm_rl.data.files import write_json, write_text
from medfm_rl.data.layouts import CaseFile, require_masks, with_masks
from medfm_rl.errors import DataError
from medfm_rl.metrics.bootstrap import PairedDifference
from medfm_rl.metrics.scores import CaseScore, Evaluation, score_case, summarise
from medfm_rl.progress import Progress

_LOG = logging.getLogger(__name__)
_SCORES, _SUMMARY = "scores.csv", "summary.json"


def evaluate_segmenter(
    segmenter: SegmenterAdapter,
    files: Sequence[CaseFile],
    anatomy: Anatomy,
    progress: Progress,
    over_time: bool = False,
    cleaned: bool = False,
) -> Evaluation:
    """Segments labelled cases and scores them; one that cannot be scored is left out and named, the others are scored.

    Frames of a clip are cases; of a clip of which some frames have a mask, the others are not looked at.

    Structures that some ground truths lack are named too. A mask that is of some structures alone, such as a tracing of
    the left ventricle, is compared in these, and the mean is over them.

    Args:
        segmenter: The segmenter.
        files: Labelled cases.
        anatomy: Rules that valid masks meet.
        progress: Told how far it is.
        over_time: Whether each frame of a clip is averaged with those before and after it.
        cleaned: Whether masks are cleaned up by the rules (`PostProcessing`).

    Raises:
        DataError: Not one case could be scored.
        ConfigError: There is no clip to average over time, or no rule to clean up by.
    """
    require_clips(files, over_time)
    masks = CaseMasks(segmenter, PostProcessing(over_time, anatomy if cleaned else None))

    def score(file: CaseFile) -> list[CaseScore]:
        labelled = file.read_labelled(segmenter.schema, may_ignore=True, may_lack=True)
        prediction = masks.segment(file, labelled.case)
        return score_case(
            labelled.case, prediction, labelled.ground_truth, segmenter.schema, anatomy, labelled.structures
        )

    files = with_masks(files)
    if all(file.label_path is None for file in files):
        require_masks(files, "evaluation")
    found, problems = each_case(files, score, "evaluating", progress)
    if not found:
        raise DataError(f"no case could be scored; the first: {next(iter(problems.values()))}")
    scores = [row for rows in found.values() for row in rows]
    evaluation = Evaluation(tuple(scores), summarise(scores), problems)
    for absence in evaluation.absences():
        _LOG.warning("%s", absence)
    return evaluation


def refuse_evaluated(folder: Path) -> None:
    """Raises DataError where the results of an evaluation lie in a folder: another one would replace them."""
    for name in (_SCORES, _SUMMARY):
        if (folder / name).exists():
            raise DataError(f"{folder}: holds the results of an evaluation; give another folder by --out")


def free_folder(folder: Path) -> Path:
    """A folder without results of an evaluation: the one given, or the next of `NAME-2`, `NAME-3` and so on."""
    places = chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in count(2)))
    return next(place for place in places if not any((place / name).exists() for name in (_SCORES, _SUMMARY)))


def write_evaluation(
    folder: Path, evaluations: Mapping[str, Evaluation], differences: Mapping[str, PairedDifference] | None
) -> None:
    """Writes `scores.csv` (per case and structure) and `summary.json`, with what was left out and how many patients."""
    text = io.StringIO()
    rows = [{"model": name, **asdict(score)} for name, evaluation in evaluations.items() for score in evaluation.scores]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / _SCORES, text.getvalue())
    write_json(
        folder / _SUMMARY,
        {
            "models": {
                name: [_without_nan(asdict(summary)) for summary in evaluation.summary]
                for name, evaluation in evaluations.items()
            },
            "patients": len({row["patient_id"] for row in rows}),
            "problems": dict(chain.from_iterable(item.problems.items() for item in evaluations.values())),
            "dice_difference": {name: asdict(difference) for name, difference in (differences or {}).items()},
        },
    )


def _without_nan(values: dict[str, object]) -> dict[str, object]:
    """NaN is no JSON."""
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in values.items()}
