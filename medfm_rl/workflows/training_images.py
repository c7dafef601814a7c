"""From files to what the networks learn from: preprocessed images of the patch size."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.stored_rows import MEMORY, RowsFolder
from medfm_rl.progress import Progress
from medfm_rl.reward.collection import ImageSet
from medfm_rl.rows import Rows
from medfm_rl.tiling import tile_boxes


def load_images(
    files: Sequence[CaseFile],
    adapter: SegmenterAdapter,
    progress: Progress,
    name: str,
    place: RowsFolder = MEMORY,
) -> ImageSet:
    """Reads and preprocesses images; no mask is opened.

    Images larger than the patch are cut into tiles that cover them, and volumes of a 2-D segmenter into slices.

    Args:
        files: The images.
        adapter: The segmenter.
        progress: Told how far it is.
        name: What the images are, for progress.
        place: Where the tiles are put.

    Raises:
        DataError: An image cannot be read or used.
    """
    images, case_ids, patient_ids, axes = place.new("images"), [], [], []
    for done, file in enumerate(files, 1):
        sample = adapter.preprocess(file.read())
        tiles = [sample.image[(slice(None), *box)] for box in tile_boxes(sample.image.shape[1:], adapter.patch_size)]
        images.add(torch.stack(tiles))
        case_ids += [file.case_id] * len(tiles)
        patient_ids += [file.patient_id] * len(tiles)
        axes += [adapter.grid_axes(sample)] * len(tiles)
        progress(f"reading {name}", done, len(files))
    return ImageSet(images.rows(), tuple(case_ids), tuple(patient_ids), tuple(axes))


def rows_of_clips(files: Sequence[CaseFile], images: ImageSet) -> list[list[int]]:
    """Rows of the frames of each clip in a set that `load_images` made of these files, in their order.

    Clips of one frame, and frames that were cut into tiles, are left out: what is a neighbour of a tile depends on how
    it moves.
    """
    rows: dict[str, list[int]] = {}
    for row, case_id in enumerate(images.case_ids):
        rows.setdefault(case_id, []).append(row)
    clips: dict[str, list[tuple[int, int]]] = {}
    for file in files:
        if file.clip_id is not None and file.frame is not None and len(rows[file.case_id]) == 1:
            clips.setdefault(file.clip_id, []).append((file.frame, rows[file.case_id][0]))
    return [[row for _, row in sorted(found)] for found in clips.values() if len(found) > 1]


def load_labelled(
    files: Sequence[CaseFile],
    adapter: SegmenterAdapter,
    progress: Progress,
    name: str,
    place: RowsFolder = MEMORY,
) -> tuple[ImageSet, Rows]:
    """Reads and preprocesses images with their masks `(N, *S')` uint8, tiled as in `load_images`.

    Pixels of which the masks say nothing are `IGNORED`.

    Raises:
        DataError: An image or mask cannot be read or used, or a mask is missing.
    """
    images, masks, case_ids, patient_ids, axes = place.new("images"), place.new("masks"), [], [], []
    for done, file in enumerate(files, 1):
        labelled = file.read_labelled(adapter.schema, may_ignore=True)
        sample = adapter.preprocess(labelled.case)
        mask = adapter.preprocess_labels(labelled.ground_truth, sample)
        for box in tile_boxes(sample.image.shape[1:], adapter.patch_size):
            images.add(sample.image[(slice(None), *box)][None])
            masks.add(mask[box][None])
            case_ids.append(file.case_id)
            patient_ids.append(file.patient_id)
            axes.append(adapter.grid_axes(sample))
        progress(f"reading {name}", done, len(files))
    return ImageSet(images.rows(), tuple(case_ids), tuple(patient_ids), tuple(axes)), masks.rows()
