"""What assesses masks: a grid, reward networks, a quality model and a promise, in one folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Final, final

import torch

from medfm_rl.adapters import CaseGrid, ImageGrid, SegmenterAdapter
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.data.files import hash_file, hash_folder, write_versioned_json
from medfm_rl.data.json_models import read_model
from medfm_rl.errors import ConfigError, ModelError
from medfm_rl.networks import choose_device
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.gates import NO_GATES, Gates
from medfm_rl.quality.model import QualityModel
from medfm_rl.quality.promises import Promise
from medfm_rl.quality.reviewed_errors import ReviewedErrors
from medfm_rl.reward.fusion import read_fusion
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.identity import Identity
from medfm_rl.settings import RESEARCH, JudgeSettings, SitePolicy

JUDGE_FILE: Final = "judge.json"
_FORMAT: Final = 1
_ADVICE: Final = "give a folder that `medfm-rl train-judge` wrote"


class Judge(ABC):
    """A folder that masks can be assessed with; a part is loaded and hashed once, on first use.

    Attributes:
        path: The folder.
        folder: Paths in it.
        device: Where the networks run.
    """

    path: Path
    folder: RunFolder
    device: torch.device

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in messages."""

    @property
    @abstractmethod
    def grid(self) -> CaseGrid:
        """What brings images and masks to the grid of the networks; a segmenter among it needs no boxes."""

    @abstractmethod
    def own_segmenter(self) -> SegmenterAdapter:
        """The segmenter that makes masks.

        Raises:
            ModelError: There is none, or it cannot be loaded.
        """

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """The hashes by which records know it."""

    @property
    @abstractmethod
    def anatomy_name(self) -> str:
        """The anatomy profile that it was set up with."""

    @property
    @abstractmethod
    def seed(self) -> int:
        """The seed that it was made with."""

    @abstractmethod
    def elsewhere(self) -> Callable[[str], Judge]:
        """What loads the same folder in another process, on a device that it is given by name."""

    @cached_property
    def reward(self) -> RewardEnsemble:
        """The reward networks that assess.

        Raises:
            ModelError: One is missing or damaged.
        """
        return RewardEnsemble.load(self.folder.final_reward).to(self.device)

    @cached_property
    def assessing(self) -> RewardEnsemble:
        """Those of them that the quality model was calibrated with.

        Raises:
            ModelError: As in `reward` and `quality`.
        """
        names = self.quality.networks
        return self.reward if names is None else self.first_networks(len(names))

    def network_names(self, count: int | None) -> tuple[str, ...]:
        """Names of the first networks of the ensemble; of all where None.

        Raises:
            ConfigError: There are not so many.
        """
        _, names = read_fusion(self.folder.final_reward)
        if count is not None and not 1 <= count <= len(names):
            raise ConfigError(f"--networks {count}: {self.name} has {len(names)} reward networks")
        return tuple(names[:count])

    def first_networks(self, count: int | None) -> RewardEnsemble:
        """The first networks of the ensemble; all where None.

        Raises:
            ConfigError: There are not so many.
            ModelError: As in `reward`.
        """
        names = self.network_names(count)
        return self.reward if count is None else RewardEnsemble.load(self.folder.final_reward, names).to(self.device)

    @cached_property
    def quality(self) -> QualityModel:
        """The quality model.

        Raises:
            ModelError: There is none, or it was calibrated with other networks than there are now.
        """
        model = QualityModel.read(self.folder.quality)
        model.check_networks(self.path, self.identity.model_hash)
        return model

    def replace_quality(self, model: QualityModel) -> None:
        """Writes another quality model, and goes on with it."""
        model.write(self.folder.quality)
        for name in ("quality", "assessing", "identity", "anatomy"):
            vars(self).pop(name, None)

    @cached_property
    def anatomy(self) -> Anatomy:
        """The rules of the quality model, learned limits included, or those it was set up with where there is none."""
        if self.folder.quality.exists():
            return QualityModel.read(self.folder.quality).bound_anatomy()
        return load_anatomy(self.anatomy_name, self.grid.schema)

    @property
    def promise(self) -> Promise | None:
        """The promise of the reviewed patients; None where none was sought.

        Raises:
            ModelError: It is damaged, or of a newer version.
        """
        return Promise.read(self.folder.promise) if self.folder.promise.exists() else None

    def controller(
        self, makes_masks: bool = False, gates: Gates = NO_GATES, policy: SitePolicy = RESEARCH
    ) -> QualityController:
        """The controller that assesses masks.

        Args:
            makes_masks: Whether its own segmenter is to make masks too, and needs its prompts.
            gates: Further networks to be asked.
            policy: As in `QualityController`.

        Raises:
            ModelError: A part is missing, damaged, or does not belong to the others.
        """
        views, biomedclip = gates.load(self.device)
        grid = self.own_segmenter() if makes_masks else self.grid
        quality, reviewed = self.quality, ReviewedErrors.of_run(self.path)
        return QualityController(grid, self.assessing, quality, self.device, views, biomedclip, policy, reviewed)


@final
class TrainedJudge(Judge):
    """A judge that `train-judge` made of masks, their truth, and no segmenter.

    Args:
        path: Its folder.
        device: Where the networks run: auto (cuda, then mps, then cpu), cpu, cuda or mps.

    Raises:
        ModelError: It is none.
        ConfigError: The device is not there.
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        self.path = path
        self.folder = RunFolder(path)
        self.device = choose_device(device)
        self.settings = read_judge_settings(path)

    @property
    def name(self) -> str:
        return str(self.path)

    @cached_property
    def grid(self) -> CaseGrid:
        return ImageGrid.load(self.folder.model)

    def own_segmenter(self) -> SegmenterAdapter:
        raise ModelError(
            f"{self.path}: is a judge of masks without a segmenter; give the masks (--masks), or another segmenter "
            "that makes them (--model)"
        )

    @cached_property
    def identity(self) -> Identity:
        folder = self.folder
        return Identity(
            model_hash=hash_folder(folder.model),
            reward_hash=hash_folder(folder.final_reward),
            quality_hash=hash_file(folder.quality) if folder.quality.exists() else None,
        )

    @property
    def anatomy_name(self) -> str:
        return self.settings.anatomy

    @property
    def seed(self) -> int:
        return self.settings.seed

    def elsewhere(self) -> Callable[[str], TrainedJudge]:
        return partial(TrainedJudge, self.path)


def write_judge_settings(path: Path, settings: JudgeSettings) -> None:
    """Writes with which settings a judge is made."""
    write_versioned_json(path / JUDGE_FILE, _FORMAT, settings.model_dump(mode="json"))


def read_judge_settings(path: Path) -> JudgeSettings:
    """What `write_judge_settings` wrote.

    Raises:
        ModelError: It is missing, damaged, or of a newer version.
    """
    return read_model(path / JUDGE_FILE, JudgeSettings, _FORMAT, "the settings of a judge", _ADVICE)
