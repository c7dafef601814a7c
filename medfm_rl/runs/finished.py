"""A finished run of `adapt` in memory: each part of it is loaded and hashed once, on first use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import final

from medfm_rl.adapters import CaseGrid, SegmenterAdapter
from medfm_rl.adapters.loading import adapted_settings, require_folder
from medfm_rl.correction import CaseCorrector, Verifier
from medfm_rl.correction.methods import make_corrector
from medfm_rl.data.files import hash_file, hash_folder
from medfm_rl.errors import ModelError
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.identity import Identity
from medfm_rl.runs.judging import JUDGE_FILE, Judge, TrainedJudge
from medfm_rl.runs.models import SegmenterFolder, StoredModel
from medfm_rl.settings import AdaptConfig, CorrectionSettings, Segmenter
from medfm_rl.settings.files import load_config
from medfm_rl.tracking import read_run_id


@final
class FinishedRun(StoredModel, Judge):
    """A finished run of `adapt`: segmenter, reward networks, quality model and corrector, each loaded and hashed once.

    Attributes:
        folder: Paths of the run.
    """

    def __init__(self, path: Path, device: str = "auto", prompts: Path | None = None) -> None:
        super().__init__(path, device, prompts)
        self.folder = RunFolder(path)
        self.folder.require_model()
        if (path / JUDGE_FILE).exists():
            raise ModelError(
                f"{path}: is a judge without a segmenter, which assesses masks (`medfm-rl score`) and neither makes "
                "nor corrects any; give a run of `medfm-rl adapt`"
            )

    @property
    def grid(self) -> CaseGrid:
        return self.preprocessing

    def own_segmenter(self) -> SegmenterAdapter:
        return self.segmenter

    def elsewhere(self) -> Callable[[str], FinishedRun]:
        return partial(FinishedRun, self.path, prompts=self.prompts)

    @property
    def seed(self) -> int:
        return self.require_config().seed

    @cached_property
    def config(self) -> AdaptConfig | None:
        """The settings of the run; None where there are none, as in the copy of a run that was handed on.

        Raises:
            ConfigError: They cannot be read.
        """
        file = self.folder.config_file
        return load_config(file, AdaptConfig) if file.exists() else None

    def require_config(self) -> AdaptConfig:
        """The settings of the run.

        Raises:
            ModelError: They are missing.
            ConfigError: They cannot be read.
        """
        if self.config is None:
            raise ModelError(f"{self.folder.config_file}: is missing, and says how the run was made; put it back")
        return self.config

    @cached_property
    def settings(self) -> Segmenter:
        """Settings of the segmenter that the run wrote: those of the source, with the folder of the result."""
        return adapted_settings(self.folder.config_file, self.folder.model)

    @cached_property
    def identity(self) -> Identity:
        folder = self.folder
        return Identity(
            model_hash=hash_folder(folder.model),
            reward_hash=hash_folder(folder.final_reward),
            quality_hash=hash_file(folder.quality) if folder.quality.exists() else None,
            mlflow_run_id=read_run_id(self.path),
        )

    @property
    def anatomy_name(self) -> str:
        return "generic" if self.config is None else self.config.anatomy

    # Any other stored model has none.
    reward = Judge.reward

    @cached_property
    def held_out_reward(self) -> RewardNet:
        """The reward network that no policy learned from.

        Raises:
            ModelError: It is missing or damaged.
        """
        return RewardNet.load(self.folder.held_out_reward).to(self.device)

    def corrector(self, settings: CorrectionSettings) -> CaseCorrector:
        """The way of correction that the settings name, with the held-out reward and the rules of the run.

        Raises:
            ModelError: The way cannot be used with this segmenter, or a part of the run is missing.
        """
        segmenter, prior = self.segmenter, self.folder.shape_prior
        verifier = Verifier(self.held_out_reward, self.anatomy, settings)
        return make_corrector(segmenter, self.reward, verifier, lambda: ShapePrior.load(prior))

    def hash_correction(self) -> dict[str, str]:
        """SHA-256 of what makes and verifies corrections: segmenter, all reward networks, and rules."""
        identity, rules = self.identity, self.anatomy.profile.model_dump_json()
        assert identity.model_hash is not None
        assert identity.reward_hash is not None
        return {
            "segmenter": identity.model_hash,
            "reward": identity.reward_hash,
            "rules": hashlib.sha256(rules.encode()).hexdigest(),
        }


def load_model(path: Path, device: str = "auto", prompts: Path | None = None) -> StoredModel:
    """A run folder of `adapt`, or a segmenter folder.

    Args:
        path: The folder.
        device: As in `StoredModel`.
        prompts: As in `StoredModel`.

    Raises:
        ModelError: It is neither, or the run is not finished.
        ConfigError: The device is not there.
    """
    require_folder(path)
    run = RunFolder(path)
    run.refuse_unfinished()
    return FinishedRun(path, device, prompts) if run.model.is_dir() else SegmenterFolder(path, device, prompts)


def load_run(path: Path, device: str = "auto", prompts: Path | None = None) -> FinishedRun:
    """A finished run of `adapt`.

    Args:
        path: Its folder.
        device: As in `StoredModel`.
        prompts: As in `StoredModel`.

    Raises:
        ModelError: It is no finished run.
        ConfigError: The device is not there.
    """
    return FinishedRun(path, device, prompts)


def load_judge(path: Path, device: str = "auto", prompts: Path | None = None) -> Judge:
    """A finished run of `adapt`, or a judge that `train-judge` made.

    Args:
        path: Its folder.
        device: As in `StoredModel`.
        prompts: As in `StoredModel`.

    Raises:
        ModelError: It is neither, or a judge is to make masks with prompts.
        ConfigError: The device is not there.
    """
    if not (path / JUDGE_FILE).exists():
        return load_run(path, device, prompts)
    if prompts is not None:
        raise ModelError(f"{path}: is a judge without a segmenter and makes no masks; leave out --prompts")
    return TrainedJudge(path, device)
