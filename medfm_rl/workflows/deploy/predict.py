"""`medfm-rl predict`: a mask for every image, and its reward map where the model has reward networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medfm_rl.adapters import Sample, SegmenterAdapter
from medfm_rl.adapters.delta import state_hash
from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.each_case import each_case
from medfm_rl.data.files import alone_writing
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.data.layouts import CaseFile, whole_clips
from medfm_rl.data.mask_labels import write_class_names
from medfm_rl.errors import DataError
from medfm_rl.networks import argmax_classes
from medfm_rl.progress import Progress, silent
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.runs.case_records import CaseRecords, hash_case, hash_segmenter, label_path, reward_path
from medfm_rl.runs.models import Model
from medfm_rl.tiling import tiled_reward_map
from medfm_rl.types import Case, Clip, FloatArray, LabelMap, LabelSchema
from medfm_rl.workflows.deploy.memory import must_fit

_TOGETHER = 8
"""Frames that go through the network at once."""


@torch.no_grad()
def predict(model: Model, files: Sequence[CaseFile], out: Path, progress: Progress = silent) -> list[str]:
    """Writes a label map per case in the geometry of its image, and its reward map where the model has a reward.

    Frames of a clip are segmented together, and their masks are one file: a sequence with the time as fourth axis.

    Inputs and makers of each go to `audit.jsonl`, with the hashes of what was written.

    Masks that this model made of the same images with the same prompts are kept, so an interrupted call can be
    repeated. Those of other images or prompts are made anew. A case that cannot be read or written, or whose mask
    somebody has changed since, is left out and named; the others are segmented.

    Args:
        model: The model.
        files: The cases.
        out: Folder for `labels`, `rewards` and the records.
        progress: Told how far it is.

    Returns:
        One message per case that was left out.

    Raises:
        DataError: No case could be segmented, or masks lie in `out` that another model made, or nobody knows what.
    """
    with alone_writing(out):
        segmenter, reward = model.segmenter, model.reward
        records, maker = CaseRecords(out, "predict", model.identity), _hash_maker(segmenter, reward)
        units = whole_clips(files)
        for file in units:
            records.require_own(file.case_id, label_path(out, file.case_id), maker)

        def handle(file: CaseFile) -> None:
            inputs = {**maker, **hash_case(file, segmenter)}
            if records.reuse(file.case_id, inputs) is not None:
                return
            with must_fit(f"case {file.case_id}", segmenter.device):
                if file.clip is not None:
                    clip = file.read_clip()
                    of_clip = segment_clip(segmenter, reward, clip)
                else:
                    case = file.read()
                    made = segment_with_reward(segmenter, reward, case)
            records.begin(file.case_id, inputs)
            if file.clip is not None:
                written = _write_clip(out, clip, *of_clip, segmenter.schema)
            else:
                written = _write_prediction(out, case, *made, segmenter.schema)
            outputs = records.hash_files(written)
            records.log([{"case": file.case_id, "inputs": inputs, "outputs": outputs}])
            records.write(file.case_id, inputs, {}, outputs)

        _, problems = each_case(units, handle, "predicting", progress)
        write_class_names(label_path(out, units[0].case_id).parent, segmenter.schema)
        records.log([{"case": name, "problem": problem} for name, problem in problems.items()])
        if len(problems) == len(units):
            raise DataError(f"no case could be segmented; the first: {next(iter(problems.values()))}")
        return list(problems.values())


def _hash_maker(segmenter: SegmenterAdapter, reward: RewardEnsemble | None) -> dict[str, Any]:
    """Hashes of what makes masks and reward maps, but for image and prompts."""
    rewards = None if reward is None else [state_hash(reward), reward.fusion, reward.pessimism]
    return {**hash_segmenter(segmenter), "reward": rewards}


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


def _write_clip(
    out: Path, clip: Clip, labels: LabelMap, reward_maps: FloatArray | None, schema: LabelSchema
) -> list[Path]:
    """Writes what was made of a clip, and says where."""
    written = [label_path(out, clip.clip_id)]
    write_sequence(written[0], schema.to_ids(labels), clip.geometry, clip.times)
    if reward_maps is not None:
        written.append(reward_path(out, clip.clip_id))
        write_sequence(written[1], reward_maps, clip.geometry, clip.times)
    return written


@torch.no_grad()
def segment_clip(
    segmenter: SegmenterAdapter, reward: RewardEnsemble | None, clip: Clip
) -> tuple[LabelMap, FloatArray | None]:
    """Class indices `(T, H, W)` of every frame of a clip and their reward maps, each frame by itself.

    Raises:
        DataError: The segmenter takes volumes alone, or other channels.
    """
    count, *shape = len(clip.frames), *clip.frames.shape[2:]
    labels = np.empty((count, *shape), dtype=np.uint8)
    reward_maps = None if reward is None else np.empty((count, *shape), dtype=np.float32)
    for start in range(0, count, _TOGETHER):
        indices = range(start, min(start + _TOGETHER, count))
        samples = [segmenter.preprocess(clip.frame(index)) for index in indices]
        for index, sample, logits in zip(indices, samples, segmenter.predict_logits_of_batch(samples), strict=True):
            labels[index] = segmenter.restore(logits, sample)
            if reward is not None and reward_maps is not None:
                reward_maps[index] = _reward_map(segmenter, reward, sample, logits)
    return labels, reward_maps


@torch.no_grad()
def segment_with_reward(
    segmenter: SegmenterAdapter, reward: RewardEnsemble | None, case: Case
) -> tuple[LabelMap, FloatArray | None]:
    """Class indices of a case and the reward map of that segmentation, both on the case's own grid.

    The reward network sees the argmax on the grid of the network's input, from which the label map is restored.
    """
    sample = segmenter.preprocess(case)
    logits = segmenter.predict_logits(sample)
    labels = segmenter.restore(logits, sample)
    return labels, None if reward is None else _reward_map(segmenter, reward, sample, logits)


def _reward_map(segmenter: SegmenterAdapter, reward: RewardEnsemble, sample: Sample, logits: Tensor) -> FloatArray:
    image, action = sample.image.to(segmenter.device), argmax_classes(logits, dim=0).to(segmenter.device)
    reward_map = tiled_reward_map(reward, image, action, segmenter.patch_size).cpu()
    return segmenter.restore_map(reward_map, sample).clip(0, 1)
