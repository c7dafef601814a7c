"""A segmenter from its settings, settings from a folder, and the settings that travel with a model to another place."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter
from torch.nn import Parameter

from medfm_rl.adapters.base import SegmenterAdapter
from medfm_rl.adapters.description import DESCRIPTION, kind_of_folder
from medfm_rl.adapters.grid import CaseGrid
from medfm_rl.adapters.image_grid import GRID_FILE, ImageGrid
from medfm_rl.adapters.kinds import KINDS, all_kinds, kind_named, kind_of
from medfm_rl.adapters.lora import add_low_rank
from medfm_rl.data.files import leads_into
from medfm_rl.data.json_text import parse_json
from medfm_rl.errors import ModelError
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import AdaptConfig, Segmenter
from medfm_rl.settings.files import load_config
from medfm_rl.settings.kinds import UNNAMED


def load_segmenter(settings: Segmenter) -> SegmenterAdapter:
    """Loads the segmenter of a config.

    Raises:
        MissingExtraError: Its kind needs a package that is not installed.
        ModelError: The folder cannot be used.
        ConfigError: Another package brings its kind, and cannot be used.
    """
    kind = kind_of(settings)
    require_folder(settings.folder, kind.remedy(settings))
    adapter: SegmenterAdapter = kind.load(settings)
    return adapter


def load_grid(config: Path, model: Path) -> CaseGrid:
    """What brings images and masks to the grid of a run's networks: its segmenter, or a judge's grid alone.

    Args:
        config: As in `adapted_settings`.
        model: The folder `model` of the run or judge.

    Raises:
        UserError: As in `load_segmenter`.
    """
    if (model / GRID_FILE).exists():
        return ImageGrid.load(model)
    return load_segmenter(without_prompts(adapted_settings(config, model)))


def read_beside(settings: Segmenter) -> dict[str, Path]:
    """What a segmenter is read from besides its folder, by the setting or field of `segmenter.json` that names it.

    These are prompts, weights that lie elsewhere, and a checkout with its tokenizer. Nothing is loaded: what the code
    of a factory imports and what the configuration of a bundle names are not known.

    Raises:
        ModelError: The folder has no description that can be read.
    """
    named = kind_of(settings).read_beside(settings)
    # Resolved: a path may lead through a folder that is not there.
    return {
        name: path.resolve()
        for name, path in named.items()
        if path is not None and not leads_into(path, settings.folder)
    }


def require_folder(folder: Path, remedy: str | None = None) -> None:
    """Raises ModelError where there is no folder of that name.

    Args:
        folder: The folder.
        remedy: What to do then; None: what is said of every folder.
    """
    if folder.is_dir():
        return
    if folder.exists():
        raise ModelError(f"{folder}: this is a file; give the folder that it lies in")
    usual = "give that of a segmenter, or of a run of `medfm-rl adapt`"
    raise ModelError(f"{folder}: there is no such folder; {remedy or usual}")


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
    """Settings of the kind that a segmenter folder is of; the rest are defaults.

    The kind is the one that `segmenter.json` names, or else the first that knows its own files in the folder.

    Raises:
        ModelError: `segmenter.json` names a kind that is not known.
        ConfigError: A package that brings a kind cannot be used.
    """
    described = kind_of_folder(folder)
    if isinstance(described, str):
        kind = kind_named(described, str(folder / DESCRIPTION))
    else:
        # Where none knows the folder, loading a torch segmenter says what is missing in it.
        kind = next((kind for kind in all_kinds() if kind.recognises(folder)), KINDS[UNNAMED])
    settings: Segmenter = kind.at(folder)
    return settings


def without_prompts(settings: Segmenter) -> Segmenter:
    """Settings to bring images and masks to the grid of a segmenter, and to make no mask: it needs no boxes."""
    changed: Segmenter = kind_of(settings).without_prompts(settings)
    return changed


def exported_settings(settings: Segmenter, folder: Path) -> Segmenter:
    """Settings of what `export` wrote of a segmenter.

    Weights that were read from elsewhere lie in the new folder, under their own name.

    Args:
        settings: Settings that the segmenter was loaded with.
        folder: Where it was written to.
    """
    changes = dict(kind_of(settings).exported(settings))
    return settings.model_copy(update={**changes, "folder": folder})


def adapted_settings(config: Path, model: Path) -> Segmenter:
    """Settings of the segmenter that a run of `adapt` wrote: those of its source, with the folder of the result.

    Args:
        config: The settings file of the run. Where it is missing, the folder tells the kind, and the rest are defaults.
        model: The folder that the segmenter was written to.

    Raises:
        ConfigError: The settings file cannot be read.
    """
    return exported_settings(load_config(config, AdaptConfig).segmenter, model) if config.exists() else recognise(model)


def portable_settings(settings: Segmenter) -> str:
    """Settings as JSON for a copy of the segmenter elsewhere.

    Without its folder, without prompts and masks, which are of the images that it was used on, and without the place of
    the stage before it in a cascade.
    """
    return settings.model_dump_json(
        exclude={"folder": True, "prompts": True, "previous_stage": {"folder": True, "masks": True}}
    )


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
        return adapter.validate_python({**parse_json(text), "folder": folder})
    except (ValueError, TypeError) as error:
        raise ModelError(f"{where}: its settings of the segmenter cannot be read ({error})") from error
