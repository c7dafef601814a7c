"""`medfm-rl inspect`: what a segmenter is, and whether it can be adapted."""

from __future__ import annotations

from pathlib import Path

import torch

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.base import ModelSummary
from medfm_rl.adapters.kinds import kind_of
from medfm_rl.adapters.loading import load_segmenter
from medfm_rl.adapters.obstacles import find_obstacles
from medfm_rl.progress import Progress
from medfm_rl.runs.finished import load_model


def inspect_model(path: Path, device: torch.device, progress: Progress) -> ModelSummary:
    """The content of a segmenter folder, or of the result of a run, and whether it can be adapted.

    Args:
        path: The folder.
        device: Where the network runs once.
        progress: Told when it does.

    Raises:
        ModelError: It is neither, or the run is not finished.
    """
    settings = load_model(path, device.type).settings

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
    return ModelSummary(rows, obstacles(adapter))


def try_network(segmenter: SegmenterAdapter, device: torch.device, progress: Progress) -> tuple[str, ...]:
    """Why a segmenter cannot be adapted, as in `find_obstacles`, and a word about what is running."""
    name = "trying the network on one patch"
    progress(name, 0, 1)
    found = find_obstacles(segmenter, device)
    progress(name, 1, 1)
    return found
