"""Models as the commands take them: runs of `adapt` and segmenter folders, loaded, exported and inspected."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.base import ModelSummary
from medfm_rl.adapters.delta import apply_delta, read_delta, write_delta
from medfm_rl.adapters.loading import (
    exported_settings,
    load_segmenter,
    portable_settings,
    recognise,
    require_folder,
    settings_at,
    without_prompts,
)
from medfm_rl.adapters.nnunet import summarise
from medfm_rl.adapters.obstacles import find_obstacles
from medfm_rl.data.files import replace_folder_on_success
from medfm_rl.errors import ConfigError
from medfm_rl.settings.files import load_config
from medfm_rl.progress import Progress
from medfm_rl.runs.folder import RunFolder
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.settings import (
    AdaptConfig,
    FilePrompts,
    MaskPrompts,
    NnUNetSettings,
    PromptableSettings,
    Segmenter,
    TotalSegmentatorSettings,
)
from medfm_rl.types import LabelSchema


@dataclass(frozen=True, eq=False)
class Model:
    """A segmenter, and the reward networks that judge it where there are any."""

    segmenter: SegmenterAdapter
    reward: RewardEnsemble | None

    def to(self, device: torch.device) -> Model:
        """Moves the networks there, and returns itself."""
        self.segmenter.to(device)
        if self.reward is not None:
            self.reward.to(device)
        return self


def load_model(path: Path, prompts: Path | None = None) -> Model:
    """Loads a run folder of `adapt` (segmenter and reward) or a segmenter folder (no reward), on the CPU.

    Args:
        path: The folder.
        prompts: For a promptable segmenter: a file of boxes, or a folder of masks whose boxes are taken; None: those
            that the segmenter was set up with.

    Raises:
        ModelError: It is neither.
        ConfigError: Prompts are given and the segmenter takes none.
    """
    require_folder(path)
    run = RunFolder(path)
    if run.model.is_dir():
        return Model(load_adapted(run, prompts), RewardEnsemble.load(run.final_reward))
    run.refuse_unfinished()
    return Model(load_segmenter(_prompted(recognise(path), prompts)), None)


def load_compared(path: Path, against: Path, prompts: Path | None) -> tuple[Model, Model]:
    """Loads two models that are to be compared, on the CPU.

    Args:
        path: As in `load_model`.
        against: The other one.
        prompts: Boxes as in `load_model`, for whichever of the two takes boxes; None: each has those that it was set
            up with.

    Raises:
        UserError: As in `load_model`.
        ConfigError: The same masks would give the two the boxes of other structures.
    """
    paths = (path, against)
    asked = [prompts is not None and isinstance(settings_of(each), PromptableSettings) for each in paths]
    if not any(asked):
        # Where prompts are given, neither takes them, and loading says so.
        return load_model(path, prompts), load_model(against, prompts)
    first, second = (load_model(each, prompts if takes else None) for each, takes in zip(paths, asked, strict=True))
    if all(asked) and prompts is not None and prompts.is_dir():
        _refuse_other_integers(prompts, first.segmenter.schema, second.segmenter.schema)
    return first, second


def _refuse_other_integers(prompts: Path, first: LabelSchema, second: LabelSchema) -> None:
    known, others = first.integers, second.integers
    for name in known.keys() & others.keys():
        if known[name] != others[name]:
            raise ConfigError(
                f"{prompts}: cannot be shared by both models: {name} is {known[name]} in the masks of one and "
                f"{others[name]} in those of the other; give the boxes as a CSV or JSON file"
            )


def settings_of(path: Path) -> Segmenter:
    """Settings of the segmenter of a run or in a folder."""
    require_folder(path)
    run = RunFolder(path)
    run.refuse_unfinished()
    return adapted_settings(run) if run.model.is_dir() else recognise(path)


def load_adapted(run: RunFolder, prompts: Path | None = None) -> SegmenterAdapter:
    """The segmenter of a finished run.

    Args:
        run: The run.
        prompts: As in `load_model`.

    Raises:
        UserError: As in `load_model`.
    """
    return load_segmenter(_prompted(adapted_settings(run), prompts))


def load_preprocessing(run: RunFolder) -> SegmenterAdapter:
    """The segmenter of a finished run to bring images and masks to its grid, and to make no mask: it needs no boxes."""
    return load_segmenter(without_prompts(adapted_settings(run)))


def _prompted(settings: Segmenter, prompts: Path | None) -> Segmenter:
    if prompts is None:
        return settings
    if not isinstance(settings, PromptableSettings):
        raise ConfigError(f"{settings.folder}: a segmenter of kind {settings.kind} takes no boxes; leave out --prompts")
    source = (
        MaskPrompts(kind="from_masks", path=prompts)
        if prompts.is_dir()
        else FilePrompts(kind="from_file", path=prompts)
    )
    return settings.model_copy(update={"prompts": source})


def adapted_settings(run: RunFolder) -> Segmenter:
    """Settings of the segmenter that a finished run wrote: those of the source, with the folder of the result."""
    if not run.config_file.exists():
        return recognise(run.model)
    return exported_settings(load_config(run.config_file, AdaptConfig).segmenter, run.model)


def own_anatomy(path: Path) -> str:
    """The anatomy profile that a run was set up with; generic for a segmenter folder.

    Raises:
        ConfigError: The settings of the run cannot be read.
    """
    file = RunFolder(path).config_file
    return load_config(file, AdaptConfig).anatomy if file.exists() else "generic"










