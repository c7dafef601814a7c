"""What `medfm-rl inspect` tells of a model folder of nnU-Net."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medfm_rl.adapters.base import ModelSummary, SegmenterAdapter
from medfm_rl.adapters.nnunet.adapter import NnUNetAdapter
from medfm_rl.adapters.nnunet.folder import (
    DATASET,
    PLANS,
    available_folds,
    channel_names,
    find_model_folder,
    read_json,
    require_nnunet,
)
from medfm_rl.errors import ModelError
from medfm_rl.types import BACKGROUND


def summarise(
    kind: str,
    folder: Path,
    load: Callable[[], NnUNetAdapter],
    obstacles: Callable[[SegmenterAdapter], tuple[str, ...]] = SegmenterAdapter.obstacles,
    more: Mapping[str, str] | None = None,
) -> ModelSummary:
    """Says what a model folder holds and whether it can be adapted, also where it cannot be loaded.

    Args:
        kind: nnunet or totalsegmentator.
        folder: As in `NnUNetAdapter`.
        load: Loads the model.
        obstacles: Tells why a model that could be loaded cannot be adapted.
        more: Further facts.

    Raises:
        MissingExtraError: nnunetv2 is not installed.
        ModelError: It is no nnU-Net model folder.
    """
    require_nnunet()
    folder = find_model_folder(folder)
    dataset, plans = read_json(folder / DATASET), read_json(folder / PLANS)
    folds = available_folds(folder)
    rows = {
        "kind": kind,
        "folder": str(folder),
        **(more or {}),
        "structures": ", ".join(f"{name} {label}" for name, label in dataset.get("labels", {}).items()),
        **({} if "regions_class_order" not in dataset else {"written as": _order(dataset)}),
        "channels": ", ".join(channel_names(dataset)),
        "file ending": str(dataset.get("file_ending", "not given")),
        "reader": str(plans.get("image_reader_writer", "not given")),
        "folds": ", ".join(map(str, folds)) or "none",
    }
    try:
        adapter = load()
    except ModelError as error:
        return ModelSummary(rows, (str(error),))
    configuration = adapter.tool.configuration
    if not adapter.schema.overlaps:
        rows["structures"] = ", ".join(f"{name} {label}" for name, label in adapter.schema.integers.items())
    rows |= {
        "configuration": adapter.tool.configuration_name,
        **({} if adapter.previous is None else {"previous stage": str(adapter.previous.place)}),
        "trainer": adapter.tool.trainer.__name__,
        "network": str(configuration.network_arch_class_name).rpartition(".")[2],
        "parameters": f"{sum(parameter.numel() for parameter in adapter.networks[0].parameters()):,} in each fold",
        "patch": " x ".join(map(str, adapter.patch_size)),
        "spacing": " x ".join(f"{float(value):g}" for value in configuration.spacing) + " mm",
        "mirrored axes": "none" if adapter.tool.mirror_axes is None else ", ".join(map(str, adapter.tool.mirror_axes)),
    }
    return ModelSummary(rows, obstacles(adapter))


def _order(dataset: Mapping[str, Any]) -> str:
    """What is written for each of structures that overlap."""
    names = [name for name in dataset.get("labels", {}) if name not in (BACKGROUND, "ignore")]
    written = zip(names, dataset["regions_class_order"], strict=False)
    return ", ".join(f"{label} for {name}" for name, label in written) + "; the later over the earlier"
