"""Segmentation of cases on their own grid, and its comparison with ground truth."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.delta import state_hash
from medfm_rl.data.files import write_json, write_text
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.data.layouts import CaseFile, require_masks
from medfm_rl.errors import DataError, UserError
from medfm_rl.metrics.bootstrap import PairedDifference
from medfm_rl.metrics.scores import CaseScore, Evaluation, score_case, summarise
from medfm_rl.metrics.validity import Anatomy
from medfm_rl.networks import argmax_classes
from medfm_rl.pipeline.case_records import CaseRecords, hash_case, hash_segmenter, label_path, reward_path
from medfm_rl.pipeline.identity import Identity
from medfm_rl.pipeline.images import Progress
from medfm_rl.pipeline.memory import must_fit
from medfm_rl.pipeline.models import Model
from medfm_rl.reward.tiles import tiled_reward_map
from medfm_rl.types import Case, FloatArray, LabelMap, LabelSchema

_SCORES, _SUMMARY = "scores.csv", "summary.json"


def evaluate(
    segmenter: SegmenterAdapter, files: Sequence[CaseFile], anatomy: Anatomy, progress: Progress
) -> Evaluation:
    """Segments labelled cases and scores them.

    Raises:
        DataError: A case has no mask, or one that cannot be used.
    """
    require_masks(files, "evaluation")
    scores: list[CaseScore] = []
    for done, file in enumerate(files, 1):
        labelled = file.read_labelled(segmenter.schema)
        prediction = segmenter.segment(labelled.case)
        scores += score_case(labelled.case, prediction, labelled.ground_truth, segmenter.schema, anatomy)
        progress("evaluating", done, len(files))
    return Evaluation(tuple(scores), summarise(scores))


def refuse_evaluated(folder: Path) -> None:
    """Raises DataError where the results of an evaluation lie in a folder: another one would replace them."""
    for name in (_SCORES, _SUMMARY):
        if (folder / name).exists():
            raise DataError(f"{folder}: holds the results of an evaluation; give another folder by --out")


def write_evaluation(
    folder: Path, evaluations: Mapping[str, Evaluation], differences: Mapping[str, PairedDifference] | None
) -> None:
    """Writes `scores.csv` (per case and structure) and `summary.json`."""
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
            "dice_difference": {name: asdict(difference) for name, difference in (differences or {}).items()},
        },
    )


@torch.no_grad()
def predict(
    model: Model, files: Sequence[CaseFile], out: Path, progress: Progress, identity: Identity | None = None
) -> list[str]:
    """Writes a label map per case in the geometry of its image, and its reward map where the model has a reward.

    What each was made of and by goes to `audit.jsonl`, with the hashes of what was written.

    Masks that this model made of the same images with the same prompts are kept, so an interrupted call can be
    repeated. Those of other images or prompts are made anew. A case that cannot be read, or whose mask somebody has
    changed since, is left out and named; the others are segmented.

    Args:
        model: The model.
        files: The cases.
        out: Folder for `labels`, `rewards` and the records.
        progress: Told how far it is.
        identity: Identity of the folder that the model was loaded from, for the audit log; None for one without a
            folder.

    Returns:
        One message per case that was left out.

    Raises:
        DataError: No case could be segmented, or masks lie in `out` that another model made, or nobody knows what.
    """
    records, maker = CaseRecords(out, "predict", identity), _hash_model(model)
    for file in files:
        records.require_own(file.case_id, label_path(out, file.case_id), maker)
    problems: list[str] = []
    for done, file in enumerate(files, 1):
        try:
            inputs = {**maker, **hash_case(file, model.segmenter)}
            made = None
            if records.reuse(file.case_id, inputs) is None:
                with must_fit(f"case {file.case_id}", model.segmenter.device):
                    case = file.read()
                    made = segment_with_reward(model, case)
        except UserError as error:
            problems.append(str(error))
            records.log([{"case": file.case_id, "problem": str(error)}])
        else:
            if made is not None:
                records.begin(file.case_id, inputs)
                outputs = records.hash_files(_write_prediction(out, case, *made, model.segmenter.schema))
                records.log([{"case": file.case_id, "inputs": inputs, "outputs": outputs}])
                records.write(file.case_id, inputs, {}, outputs)
        progress("predicting", done, len(files))
    if len(problems) == len(files):
        raise DataError(f"no case could be segmented; the first: {problems[0]}")
    return problems


def _hash_model(model: Model) -> dict[str, Any]:
    """What makes masks and reward maps, but for image and prompts."""
    reward = model.reward
    judge = None if reward is None else [state_hash(reward), reward.fusion, reward.pessimism]
    return {**hash_segmenter(model.segmenter), "reward": judge}


def _write_prediction(
    out: Path, case: Case, labels: LabelMap, reward_map: FloatArray | None, schema: LabelSchema
) -> list[Path]:
    """Writes what was made of a case, and says where."""
    written = [label_path(out, case.case_id)]
    write_labels(written[0], labels, case.geometry, schema)
    if reward_map is not None:
        written.append(reward_path(out, case.case_id))
        write_image(written[1], reward_map, case.geometry)
    return written


@torch.no_grad()
def segment_with_reward(model: Model, case: Case) -> tuple[LabelMap, FloatArray | None]:
    """Class indices of a case and the reward map of that segmentation, both on the case's own grid.

    The reward network sees the argmax on the grid of the network's input, from which the label map is restored.
    """
    segmenter = model.segmenter
    sample = segmenter.preprocess(case)
    logits = segmenter.predict_logits(sample)
    labels = segmenter.restore(logits, sample)
    if model.reward is None:
        return labels, None
    image, action = sample.image.to(segmenter.device), argmax_classes(logits, dim=0).to(segmenter.device)
    reward_map = tiled_reward_map(model.reward, image, action, segmenter.patch_size).cpu()
    return labels, segmenter.restore_map(reward_map, sample).clip(0, 1)


def _without_nan(values: dict[str, object]) -> dict[str, object]:
    """NaN is no JSON."""
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in values.items()}
