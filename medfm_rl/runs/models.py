"""Models as the commands take them: something to segment with, in memory or in a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import final

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.kinds import kind_of
from medfm_rl.adapters.loading import load_segmenter, recognise, without_prompts
from medfm_rl.data.files import hash_folder
from medfm_rl.errors import ConfigError
from medfm_rl.networks import choose_device
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.runs.identity import Identity
from medfm_rl.settings import Segmenter


class Model(ABC):
    """A segmenter to segment with, and what is known of it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in tables."""

    @property
    @abstractmethod
    def segmenter(self) -> SegmenterAdapter:
        """The segmenter.

        Raises:
            UserError: It cannot be loaded.
        """

    @property
    @abstractmethod
    def reward(self) -> RewardEnsemble | None:
        """The reward networks that go with it; None where it has none."""

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """The hashes by which records know it."""

    @property
    def anatomy_name(self) -> str:
        """The anatomy profile that it was set up with."""
        return "generic"

    @abstractmethod
    def elsewhere(self) -> Callable[[str], Model]:
        """What loads the same model in another process, on a device that it is given by name.

        Raises:
            ConfigError: It lies in no folder.
        """


@final
class ModelInMemory(Model):
    """A segmenter that was made in Python and lies in no folder; records name it by its weights alone.

    Args:
        segmenter: The segmenter.
        reward: Reward networks that go with it.
    """

    def __init__(self, segmenter: SegmenterAdapter, reward: RewardEnsemble | None = None) -> None:
        self._segmenter, self._reward = segmenter, reward

    @property
    def name(self) -> str:
        return type(self._segmenter).__name__

    @property
    def segmenter(self) -> SegmenterAdapter:
        return self._segmenter

    @property
    def reward(self) -> RewardEnsemble | None:
        return self._reward

    @property
    def identity(self) -> Identity:
        return Identity()

    def elsewhere(self) -> Callable[[str], Model]:
        raise ConfigError(
            f"{self.name}: lies in the memory of this process alone, where no worker finds it; export it to a folder, "
            "and give that, or leave out the workers"
        )


class StoredModel(Model):
    """A segmenter in a folder. Nothing is loaded or hashed before it is asked for.

    Args:
        path: The folder.
        device: Where the networks run: auto (cuda, then mps, then cpu), cpu, cuda or mps.
        prompts: For a promptable segmenter: a file of boxes, or a folder of masks whose boxes are taken; None: those
            that the segmenter was set up with.

    Raises:
        ConfigError: The device is not there.
    """

    def __init__(self, path: Path, device: str = "auto", prompts: Path | None = None) -> None:
        self.path = path
        self.device = choose_device(device)
        self.prompts = prompts

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    @abstractmethod
    def settings(self) -> Segmenter:
        """Settings of the segmenter."""

    @cached_property
    def segmenter(self) -> SegmenterAdapter:
        """The segmenter.

        Raises:
            UserError: Its folder cannot be used, or prompts are given and it takes none.
        """
        return load_segmenter(_prompted(self.settings, self.prompts)).to(self.device)

    @cached_property
    def preprocessing(self) -> SegmenterAdapter:
        """The segmenter to bring images and masks to its grid, and to make no mask: it needs no boxes.

        Raises:
            ModelError: Its folder cannot be used.
        """
        if "segmenter" in vars(self) or kind_of(self.settings).with_boxes is None:
            return self.segmenter
        return load_segmenter(without_prompts(self.settings)).to(self.device)


@final
class SegmenterFolder(StoredModel):
    """A segmenter that is no run of `adapt`.

    Args:
        path: As in `StoredModel`.
        device: As in `StoredModel`.
        prompts: As in `StoredModel`.
        settings: How it is loaded; None: as the files in the folder say, with defaults for the rest.
    """

    def __init__(
        self, path: Path, device: str = "auto", prompts: Path | None = None, settings: Segmenter | None = None
    ) -> None:
        super().__init__(path, device, prompts)
        self._settings = settings

    @cached_property
    def settings(self) -> Segmenter:
        return recognise(self.path) if self._settings is None else self._settings

    @cached_property
    def identity(self) -> Identity:
        return Identity(model_hash=hash_folder(self.path))

    @property
    def reward(self) -> None:
        return None

    def elsewhere(self) -> Callable[[str], SegmenterFolder]:
        return partial(SegmenterFolder, self.path, prompts=self.prompts, settings=self._settings)


def _prompted(settings: Segmenter, prompts: Path | None) -> Segmenter:
    if prompts is None:
        return settings
    with_boxes = kind_of(settings).with_boxes
    if with_boxes is None:
        raise ConfigError(f"{settings.folder}: a segmenter of kind {settings.kind} takes no boxes; leave out --prompts")
    prompted: Segmenter = with_boxes(settings, prompts)
    return prompted
