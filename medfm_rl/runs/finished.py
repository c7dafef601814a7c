"""A finished run of `adapt` in memory: each part of it is loaded and hashed once, on first use."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import final

from medfm_rl.adapters.loading import adapted_settings, require_folder
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.correction import CaseCorrector, Verifier
from medfm_rl.correction.methods import make_corrector
from medfm_rl.data.files import hash_file, hash_folder
from medfm_rl.errors import ModelError
from medfm_rl.quality import QualityController, QualityModel
from medfm_rl.quality.gates import NO_GATES, Gates
from medfm_rl.quality.promises import Promise
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.identity import Identity
from medfm_rl.runs.models import SegmenterFolder, StoredModel
from medfm_rl.settings import (
    RESEARCH,
    AdaptConfig,
    CorrectionSettings,
    Segmenter,
    SitePolicy,
)
from medfm_rl.settings.files import load_config
from medfm_rl.tracking import read_run_id


@final
class FinishedRun(StoredModel):
    """A finished run of `adapt`: segmenter, reward networks, quality model and corrector, each loaded and hashed once.

    Attributes:
        folder: Paths of the run.
    """

    def __init__(self, path: Path, device: str = "auto", prompts: Path | None = None) -> None:
        super().__init__(path, device, prompts)
        self.folder = RunFolder(path)
        self.folder.require_model()

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

    @cached_property
    def reward(self) -> RewardEnsemble:
        """The ensemble that the policy followed.

        Raises:
            ModelError: It is missing or damaged.
        """
        return RewardEnsemble.load(self.folder.final_reward).to(self.device)

    @cached_property
    def held_out_reward(self) -> RewardNet:
        """The reward network that no policy learned from.

        Raises:
            ModelError: It is missing or damaged.
        """
        return RewardNet.load(self.folder.held_out_reward).to(self.device)

    @cached_property
    def quality(self) -> QualityModel:
        """The quality model.

        Raises:
            ModelError: There is none, or it was calibrated with other networks than the run has now.
        """
        model = QualityModel.read(self.folder.quality)
        model.check_networks(self.path, self.identity.model_hash)
        return model

    @property
    def promise(self) -> Promise | None:
        """The promise of the reviewed patients; None where none was sought.

        Raises:
            ModelError: It is damaged, or of a newer version.
        """
        return Promise.read(self.folder.promise) if self.folder.promise.exists() else None

    def replace_quality(self, model: QualityModel) -> None:
        """Writes another quality model, and goes on with it."""
        model.write(self.folder.quality)
        for name in ("quality", "identity", "anatomy"):
            vars(self).pop(name, None)

    @cached_property
    def anatomy(self) -> Anatomy:
        """The rules of the quality model, learned limits included, or those of the run where there is none."""
        if self.folder.quality.exists():
            return QualityModel.read(self.folder.quality).bound_anatomy()
        return load_anatomy(self.anatomy_name, self.preprocessing.schema)

    def controller(
        self, makes_masks: bool = False, gates: Gates = NO_GATES, policy: SitePolicy = RESEARCH
    ) -> QualityController:
        """The controller that assesses masks with the networks of the run.

        Args:
            makes_masks: Whether the segmenter of the run is to make masks too, and needs its prompts.
            gates: Further networks to be asked.
            policy: As in `QualityController`.

        Raises:
            ModelError: A part is missing, damaged, or does not belong to the others.
        """
        views, biomedclip = gates.load(self.device)
        segmenter = self.segmenter if makes_masks else self.preprocessing
        quality = self.quality
        return QualityController(segmenter, self.reward, quality, self.device, views, biomedclip, policy)

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
