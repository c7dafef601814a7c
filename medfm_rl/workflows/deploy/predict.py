"""`medfm-rl predict`: a mask for every image, and its reward map where the model has reward networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medfm_rl.adapters import Sample, SegmenterAdapter
from medfm_rl.adapters.clips import require_clips, segmented_frames
from medfm_rl.adapters.post_processing import AS_IT_IS, PostProcessing
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.each_case import each_case
from medfm_rl.data.files import alone_writing
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.data.layouts import CaseFile, whole_clips
from medfm_rl.data.mask_labels import write_class_names
from medfm_rl.errors import DataError
from medfm_rl.networks import argmax_classes, hash_weights
from medfm_rl.progress import Progress, silent
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.runs.case_records import CaseRecords, hash_case, hash_segmenter, label_path, reward_path
from medfm_rl.runs.models import Model
from medfm_rl.tiling import tiled_reward_map
from medfm_rl.types import Case, Clip, FloatArray, LabelMap, LabelSchema
from medfm_rl.workflows.deploy.memory import must_fit
from medfm_rl.workflows.deploy.workers import Workers, at_work, seen_by_all


class Segmenting:
    """Segments a case or a clip, and takes what was made before.

    Args:
        segmenter: Makes masks.
        reward: Makes their reward maps; None for none.
        records: What was made before, and where.
        processing: What is done to the masks.

    Attributes:
        maker: Hashes of what makes masks and reward maps, but for image and prompts.
    """

    def __init__(
        self,
        segmenter: SegmenterAdapter,
        reward: RewardEnsemble | None,
        records: CaseRecords,
        processing: PostProcessing = AS_IT_IS,
    ) -> None:
        self._segmenter, self._reward, self._records, self._processing = segmenter, reward, records, processing
        rewards = None if reward is None else [hash_weights(reward), reward.fusion, reward.pessimism]
        self.maker: dict[str, Any] = {**hash_segmenter(segmenter), "reward": rewards, **processing.recorded()}

    @torch.no_grad()
    def take(self, file: CaseFile) -> None:
        """Writes the mask of a case and its reward map, unless they are there.

        Raises:
            DataError: It cannot be read, segmented or written.
        """
        segmenter, reward, out = self._segmenter, self._reward, self._records.out
        inputs = {**self.maker, **hash_case(file, segmenter)}
        if self._records.reuse(file.case_id, inputs) is not None:
            return
        with must_fit(f"case {file.case_id}", segmenter.device):
            if file.clip is not None:
                clip = file.read_clip()
                of_clip = segment_clip(segmenter, reward, clip, self._processing)
            else:
                case = file.read()
                made = segment_with_reward(segmenter, reward, case, self._processing)
        self._records.begin(file.case_id, inputs)
        if file.clip is not None:
            written = _write_clip(out, clip, *of_clip, segmenter.schema)
        else:
            written = _write_prediction(out, case, *made, segmenter.schema)
        outputs = self._records.hash_files(written)
        line = {"case": file.case_id, "inputs": inputs, "outputs": outputs}
        self._records.close(file.case_id, inputs, {}, outputs, line)

    def finish(self) -> dict[str, Any]:
        """Every case is handled when it is taken."""
        return {}


@dataclass(frozen=True)
class SegmentingOrder:
    """The work of `predict`, for workers.

    Attributes:
        model: Loads the model.
        out: Output folder.
        processing: As in `Segmenting`.
    """

    model: Callable[[str], Model]
    out: Path
    processing: PostProcessing

    def load(self, device: str) -> Segmenting:
        model = self.model(device)
        records = CaseRecords(self.out, "predict", model.identity, of_worker=True)
        return Segmenting(model.segmenter, model.reward, records, self.processing)


def predict(
    model: Model,
    files: Sequence[CaseFile],
    out: Path,
    progress: Progress = silent,
    workers: Workers | None = None,
    over_time: bool = False,
    cleaned: bool = False,
    anatomy: str | None = None,
) -> list[str]:
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
        workers: Segment cases side by side; the result is that of this process alone.
        over_time: Average each frame of a clip with those before and after it (`adapters.clips.averaged_over_time`).
        cleaned: Clean the masks up by the rules of the anatomy, in space and, of clips that are averaged, over time
            (`PostProcessing`).
        anatomy: Profile of these rules, or a file; None for that of the model.

    Returns:
        One message per case that was left out.

    Raises:
        DataError: No case could be segmented, or masks lie in `out` that another model made, or nobody knows what.
        ConfigError: There are workers, and the model lies in memory alone; there is no clip to average over time; or
            there is no such anatomy, or none of its rules says what to clean up.
        WorkerError: As in `at_work`.
    """
    require_clips(files, over_time)
    processing = PostProcessing(over_time, _rules(model, anatomy) if cleaned else None)
    order = None if workers is None else SegmentingOrder(model.elsewhere(), out, processing)
    with alone_writing(out):
        records = CaseRecords(out, "predict", model.identity)
        segmenting = Segmenting(model.segmenter, model.reward, records, processing)
        units = whole_clips(files)
        for file in units:
            records.require_own(file.case_id, label_path(out, file.case_id), segmenting.maker)
        with at_work(workers, order, segmenting.maker, seen_by_all(files), records, progress) as crew:
            crew.give_singly(units)

            def handle(file: CaseFile) -> None:
                crew.wait_for(file.case_id)
                segmenting.take(file)

            _, problems = each_case(units, handle, "predicting", progress)
        write_class_names(label_path(out, units[0].case_id).parent, model.segmenter.schema)
        records.log([{"case": name, "problem": problem} for name, problem in problems.items()])
        if len(problems) == len(units):
            raise DataError(f"no case could be segmented; the first: {next(iter(problems.values()))}")
        return list(problems.values())


def _rules(model: Model, anatomy: str | None) -> Anatomy:
    """The rules that masks are cleaned up by; None: those of the model."""
    return load_anatomy(model.anatomy_name if anatomy is None else anatomy, model.segmenter.schema)


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
    segmenter: SegmenterAdapter, reward: RewardEnsemble | None, clip: Clip, processing: PostProcessing = AS_IT_IS
) -> tuple[LabelMap, FloatArray | None]:
    """Class indices `(T, H, W)` of every frame of a clip and their reward maps.

    Args:
        segmenter: Makes the masks.
        reward: Makes their reward maps; None for none.
        clip: The clip.
        processing: What is done to the masks.

    Raises:
        DataError: As in `SegmenterAdapter.segment_clip`.
    """
    count, *shape = len(clip.frames), *clip.frames.shape[2:]
    labels = np.empty((count, *shape), dtype=np.uint8)
    reward_maps = None if reward is None else np.empty((count, *shape), dtype=np.float32)
    for frame in segmented_frames(segmenter, clip, processing.over_time):
        mask = processing.of(segmenter.restore(frame.logits, frame.sample))
        labels[frame.index] = mask
        if reward is not None and reward_maps is not None:
            action = _action(segmenter, frame.sample, frame.logits, mask, processing)
            reward_maps[frame.index] = _reward_map(segmenter, reward, frame.sample, action)
    finished = processing.of_clip(clip, labels)
    if reward is not None and reward_maps is not None:
        for index in np.flatnonzero((finished != labels).any(axis=(1, 2))).tolist():
            sample = segmenter.preprocess_frame(clip.frame(index), finished[index])
            action = segmenter.preprocess_labels(finished[index], sample)
            reward_maps[index] = _reward_map(segmenter, reward, sample, action)
    return finished, reward_maps


@torch.no_grad()
def segment_with_reward(
    segmenter: SegmenterAdapter, reward: RewardEnsemble | None, case: Case, processing: PostProcessing = AS_IT_IS
) -> tuple[LabelMap, FloatArray | None]:
    """Class indices of a case and the reward map of that segmentation, both on the case's own grid."""
    sample = segmenter.preprocess(case)
    logits = segmenter.predict_logits(sample)
    labels = processing.of(segmenter.restore(logits, sample))
    if reward is None:
        return labels, None
    return labels, _reward_map(segmenter, reward, sample, _action(segmenter, sample, logits, labels, processing))


def _action(
    segmenter: SegmenterAdapter, sample: Sample, logits: Tensor, labels: LabelMap, processing: PostProcessing
) -> Tensor:
    """Class indices on the grid of the network's input: those of the logits, or those of a mask that was changed."""
    if processing.anatomy is None:
        return argmax_classes(logits, dim=0)
    return segmenter.preprocess_labels(labels, sample)


def _reward_map(segmenter: SegmenterAdapter, reward: RewardEnsemble, sample: Sample, action: Tensor) -> FloatArray:
    image = sample.image.to(segmenter.device)
    reward_map = tiled_reward_map(reward, image, action.to(segmenter.device), segmenter.patch_size).cpu()
    return segmenter.restore_map(reward_map, sample).clip(0, 1)
