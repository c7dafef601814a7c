"""`medfm-rl inspect`: what a segmenter is, and whether it can be adapted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.base import ModelSummary
from medfm_rl.adapters.kinds import kind_of
from medfm_rl.adapters.loading import load_segmenter, require_folder
from medfm_rl.adapters.obstacles import find_obstacles
from medfm_rl.adapters.value_range import range_doubts
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.progress import Progress
from medfm_rl.runs.finished import load_model
from medfm_rl.settings import AdaptConfig, DataSettings, Segmenter
from medfm_rl.settings.files import load_config
from medfm_rl.tiling import tile_boxes

_SETTINGS_FILES: Final = (".yaml", ".yml")
_FEW: Final = 4
"""Cases whose values are looked at."""


def inspect_model(
    path: Path, device: torch.device, progress: Progress, images: DataSettings | None = None
) -> ModelSummary:
    """The content of a segmenter, or of the result of a run, and whether it can be adapted.

    Args:
        path: The folder; or a settings file of `adapt`, whose segmenter is loaded as the file says.
        device: Where the network runs once.
        progress: Told when it does.
        images: Images to show it, to learn whether their values can be those that it was trained on.

    Raises:
        ModelError: It is neither, or the run is not finished.
        ConfigError: The settings file is not valid.
        DataError: The images cannot be used.
    """
    settings = _settings_at(path, device)
    summary = _summary(settings, device, progress)
    if images is None or summary.obstacles:
        return summary
    segmenter = load_segmenter(settings).to(device).eval()
    shown = few_patches(segmenter, find_cases(images))
    grey = shown[:, : segmenter.intensity_channels]
    rows = {**summary.rows, "values shown": f"{float(grey.min()):.4g} to {float(grey.max()):.4g}"}
    return replace(summary, rows=rows, doubts=range_doubts(segmenter, shown))


def _settings_at(path: Path, device: torch.device) -> Segmenter:
    if path.suffix.lower() not in _SETTINGS_FILES or path.is_dir():
        return load_model(path, device.type).settings
    settings = load_config(path, AdaptConfig).segmenter
    require_folder(settings.folder, kind_of(settings).remedy(settings))
    return settings


def few_patches(segmenter: SegmenterAdapter, files: Sequence[CaseFile]) -> Tensor:
    """The patch in the middle of each of a few cases, `(N, C, *S)`, as the segmenter's preprocessing leaves it.

    Raises:
        DataError: A case cannot be used.
    """
    count = min(_FEW, len(files))
    patches = []
    for index in range(count):
        image = segmenter.preprocess(files[index * len(files) // count].read()).image
        boxes = tile_boxes(image.shape[1:], segmenter.patch_size)
        patches.append(image[(slice(None), *boxes[len(boxes) // 2])])
    return torch.stack(patches)


def _summary(settings: Segmenter, device: torch.device, progress: Progress) -> ModelSummary:

    def obstacles(segmenter: SegmenterAdapter) -> tuple[str, ...]:
        return try_network(segmenter, device, progress)

    own_summary = kind_of(settings).summarise
    if own_summary is not None:
        summary: ModelSummary = own_summary(settings, obstacles)
        return summary
    adapter = load_segmenter(settings)
    rows = {
        "kind": settings.kind,
        "folder": str(settings.folder),
        "structures": ", ".join(f"{name} {label}" for name, label in adapter.schema.integers.items()),
        "channels": str(adapter.in_channels),
        "patch": " x ".join(map(str, adapter.patch_size)),
        "parameters": f"{sum(parameter.numel() for parameter in adapter.parameters()):,}",
    }
    if adapter.segments_clips:
        rows["clips"] = "frames are segmented together"
    return ModelSummary(rows, obstacles(adapter))


def try_network(segmenter: SegmenterAdapter, device: torch.device, progress: Progress) -> tuple[str, ...]:
    """Why a segmenter cannot be adapted, as in `find_obstacles`, and a word about what is running."""
    name = "trying the network on one patch"
    progress(name, 0, 1)
    found = find_obstacles(segmenter, device)
    progress(name, 1, 1)
    return found
