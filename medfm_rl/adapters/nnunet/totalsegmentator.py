"""Networks of TotalSegmentator, as TotalSegmentator runs nnU-Net."""

from __future__ import annotations

from pathlib import Path

from medfm_rl.adapters.nnunet.adapter import NnUNetAdapter
from medfm_rl.adapters.nnunet.folder import find_model_folder
from medfm_rl.adapters.nnunet.inference import STEP
from medfm_rl.settings import TotalSegmentatorSettings


def load(settings: TotalSegmentatorSettings) -> NnUNetAdapter:
    """The network, on canonical axes, with nothing mirrored; one fold, unless the task has several.

    Raises:
        MissingExtraError: nnunetv2 is not installed.
        ModelError: The folder cannot be used.
    """
    network = settings.network
    return NnUNetAdapter(
        model_folder(settings),
        None if network is None else network.folds,
        settings.checkpoint,
        mirroring=False,
        step_size=settings.step_size or (STEP if network is None else network.step_size),
        canonical=True,
        nested=True,
        trusted=settings.trusted,
        names=() if network is None else network.structures,
    )


def model_folder(settings: TotalSegmentatorSettings) -> Path:
    """The model folder in that of the weights: the one that the task runs where there are several.

    Raises:
        ModelError: There is none, or more than one and no task is named.
    """
    if settings.network is not None:
        found = settings.folder / settings.network.model
        if found.is_dir():
            return found
    return find_model_folder(settings.folder)


def facts(settings: TotalSegmentatorSettings) -> dict[str, str]:
    """What `inspect` tells of the task; nothing where none is named."""
    network = settings.network
    if network is None:
        return {}
    cropped = (
        {"cropped to": ", ".join(network.crops_to) + ": by TotalSegmentator, not here"} if network.crops_to else {}
    )
    return {"task": network.in_words, **cropped}


def remedy(settings: TotalSegmentatorSettings) -> str | None:
    """What to do where the folder is not there; None where no task is named."""
    return None if settings.network is None else settings.network.remedy
