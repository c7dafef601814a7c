"""Which adapter settings or a folder need, and the settings that travel with a model to another place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter
from torch.nn import Parameter

from medfm_rl.adapters import biomedparse, promptable
from medfm_rl.adapters.base import SegmenterAdapter
from medfm_rl.adapters.biomedparse import BiomedParseAdapter
from medfm_rl.adapters.description import kind_of_folder
from medfm_rl.adapters.lora import add_low_rank
from medfm_rl.adapters.monai_bundle import METADATA, MonaiBundleAdapter, exported_weights
from medfm_rl.adapters.nnunet.adapter import NnUNetAdapter
from medfm_rl.adapters.nnunet.folder import DATASET, PLANS, find_model_folder
from medfm_rl.adapters.sam.litemedsam import LiteMedSAMAdapter
from medfm_rl.adapters.sam.medsam import MedSAM2Adapter, MedSAMAdapter
from medfm_rl.adapters.sam.promptable import PromptableAdapter
from medfm_rl.adapters.torch_module.adapter import TorchModuleAdapter
from medfm_rl.adapters.torch_module.folder import read_description
from medfm_rl.data.files import leads_into
from medfm_rl.errors import ModelError
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import (
    BiomedParseSettings,
    FixedPrompts,
    MonaiBundleSettings,
    NnUNetSettings,
    PromptableSettings,
    Segmenter,
    SegmenterSettings,
    TotalSegmentatorSettings,
)

PROMPTABLE: Final[dict[str, type[PromptableAdapter]]] = {
    adapter.kind: adapter for adapter in (LiteMedSAMAdapter, MedSAMAdapter, MedSAM2Adapter)
}


def load_segmenter(settings: Segmenter) -> SegmenterAdapter:
    """Loads the segmenter of a config.

    Raises:
        MissingExtraError: Its kind needs a package that is not installed.
        ModelError: The folder cannot be used.
    """
    require_folder(settings.folder)
    match settings:
        case SegmenterSettings():
            return TorchModuleAdapter.load(settings.folder)
        case NnUNetSettings():
            return NnUNetAdapter(
                settings.folder, settings.folds, settings.checkpoint, settings.mirroring, trusted=settings.trusted
            )
        case TotalSegmentatorSettings():
            # As TotalSegmentator runs nnU-Net: one fold, canonical axes, nothing mirrored.
            return NnUNetAdapter(
                settings.folder,
                None,
                settings.checkpoint,
                mirroring=False,
                step_size=settings.step_size,
                canonical=True,
                nested=True,
                trusted=settings.trusted,
            )
        case MonaiBundleSettings():
            return MonaiBundleAdapter(settings.folder, settings.weights)
        case PromptableSettings():
            return PROMPTABLE[settings.kind].load(settings.folder, settings.prompts)
        case BiomedParseSettings():
            return BiomedParseAdapter.load(settings.folder, settings.prompts)


def read_beside(settings: Segmenter) -> dict[str, Path]:
    """What a segmenter is read from besides its folder, by the setting or field of `segmenter.json` that names it.

    These are prompts, weights that lie elsewhere, and a checkout with its tokenizer. Nothing is loaded: what the code
    of a factory imports and what the configuration of a bundle names are not known.

    Raises:
        ModelError: The folder has no description that can be read.
    """
    folder, prompts = settings.folder, None
    named: dict[str, Path | None] = {}
    match settings:
        case SegmenterSettings():
            named = {"weights": folder / read_description(folder).weights}
        case NnUNetSettings() | TotalSegmentatorSettings():
            # From one fold as from another: what does not lie in a fold is the same file for all.
            named = {"checkpoint": find_model_folder(folder) / "fold_0" / settings.checkpoint}
        case MonaiBundleSettings():
            named = {"weights": folder / "models" / settings.weights}
        case PromptableSettings():
            described = promptable.read_description(folder)
            named = {"checkpoint": None if described.checkpoint is None else folder / described.checkpoint}
            prompts = settings.prompts or described.prompts
        case BiomedParseSettings():
            tool = biomedparse.read_description(folder)
            named = {"checkpoint": folder / tool.checkpoint, "checkout": tool.checkout, "tokenizer": tool.tokenizer}
    # Resolved: a path may lead through a fold that is not there.
    found = {name: path.resolve() for name, path in named.items() if path is not None and not leads_into(path, folder)}
    return found if prompts is None or prompts.kind == "fixed" else {**found, "prompts.path": prompts.path}


def require_folder(folder: Path) -> None:
    """Raises ModelError where there is no folder of that name."""
    if folder.is_dir():
        return
    if folder.exists():
        raise ModelError(f"{folder}: this is a file; give the folder that it lies in")
    raise ModelError(f"{folder}: there is no such folder; give that of a segmenter, or of a run of `medfm-rl adapt`")


def open_to_learning(segmenter: SegmenterAdapter, settings: Segmenter, seed: int) -> dict[str, Parameter]:
    """The parameters of a segmenter that adaptation may change; the rest is frozen.

    Low-rank parts are added where they are asked for.

    Raises:
        ModelError: The segmenter has no such part.
    """
    if settings.train == "lora":
        parameters = segmenter.trainable(settings.lora.part)
        add_low_rank(segmenter, parameters, settings.lora, torch_generator(seed, "low-rank parts"))
    found = segmenter.trainable(settings.train)
    segmenter.requires_grad_(False)
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def recognise(folder: Path) -> Segmenter:
    """Settings of the kind that a segmenter folder is of, by the files in it; the rest are defaults."""
    if (
        any((place / PLANS).exists() for place in (folder, *folder.glob("*"), *folder.glob("*/*")))
        or (folder / DATASET).exists()
    ):
        return NnUNetSettings(kind="nnunet", folder=folder)
    if (folder / "configs" / METADATA).exists():
        return MonaiBundleSettings(kind="monai-bundle", folder=folder)
    kind = kind_of_folder(folder)
    if kind in PROMPTABLE:
        return PromptableSettings(kind=kind, folder=folder)
    if kind == BiomedParseAdapter.kind:
        return BiomedParseSettings(kind="biomedparse", folder=folder)
    return SegmenterSettings(folder=folder)


def without_prompts(settings: Segmenter) -> Segmenter:
    """Settings to bring images and masks to the grid of a segmenter, and to make no mask: it needs no boxes."""
    if isinstance(settings, PromptableSettings):
        return settings.model_copy(update={"prompts": FixedPrompts(kind="fixed", boxes={})})
    return settings


def exported_settings(settings: Segmenter, folder: Path) -> Segmenter:
    """Settings of what `export` wrote of a segmenter.

    Weights that were read from elsewhere lie in the new folder, under their own name.

    Args:
        settings: Settings that the segmenter was loaded with.
        folder: Where it was written to.
    """
    match settings:
        case NnUNetSettings() | TotalSegmentatorSettings():
            update = {"checkpoint": Path(settings.checkpoint).name}
        case MonaiBundleSettings():
            update = {"weights": exported_weights(settings.folder, settings.weights)}
        case _:
            update = {}
    return settings.model_copy(update={"folder": folder, **update})


def portable_settings(settings: Segmenter) -> str:
    """Settings as JSON for a copy of the segmenter elsewhere.

    Without its folder, and without prompts, which are of the images that it was used on.
    """
    return settings.model_dump_json(exclude={"folder", "prompts"})


def settings_at(text: str, folder: Path, where: Path) -> Segmenter:
    """What `portable_settings` wrote, for the segmenter in a folder.

    Args:
        text: JSON.
        folder: Folder of the segmenter.
        where: The text was read from, for errors.

    Raises:
        ModelError: They are none.
    """
    adapter: TypeAdapter[Segmenter] = TypeAdapter(Segmenter)
    try:
        return adapter.validate_python({**json.loads(text), "folder": folder})
    except (ValueError, TypeError) as error:
        raise ModelError(f"{where}: its settings of the segmenter cannot be read ({error})") from error
