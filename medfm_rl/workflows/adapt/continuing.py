"""Going on from an adapted run when more is known of the target: D_R, rewards and what it returned are taken over."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from medfm_rl.data.files import hash_folder, replace_folder_on_success, write_versioned_json
from medfm_rl.data.json_models import read_model
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.policies import ACTOR
from medfm_rl.reward.dataset import ActionDataset
from medfm_rl.runs.finished import load_run
from medfm_rl.runs.folder import PREVIOUS, SOURCE, RunFolder
from medfm_rl.runs.learned_feedback import LearnedFeedback
from medfm_rl.settings import AdaptConfig
from medfm_rl.workflows.adapt.choosing.selection import Selection

_LOG = logging.getLogger(__name__)
_FORMAT: Final = 1
_ADVICE: Final = "put back what `adapt` wrote there, or start a new run in another folder"


@dataclass(frozen=True)
class Continuation:
    """What a run took over from another.

    Attributes:
        run: Folder of the other run, absolute.
        iterations: Its iterations, those that it took over among them; the new run goes on with the next.
        model_hash: SHA-256 of the segmenter that it returned.
        reward_hash: SHA-256 of its reward networks.
        actions_hash: SHA-256 of its D_R.
        mlflow_run_id: Its number in MLflow; None where it was not recorded.
    """

    run: str
    iterations: int
    model_hash: str | None
    reward_hash: str | None
    actions_hash: str
    mlflow_run_id: str | None

    def as_record(self) -> dict[str, Any]:
        """What is recorded of it."""
        return {f"continues_{name}": value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `take_over` wrote.

        Raises:
            DataError: The file is no such record, or was written by a newer version.
        """
        return read_model(path, cls, _FORMAT, "a record of a run that was gone on from", _ADVICE, DataError)


def first_iteration(run: RunFolder) -> int:
    """The first iteration that a run makes itself."""
    return Continuation.read(run.continued).iterations if run.continued.exists() else 0


def require_same_segmenter(config: AdaptConfig) -> None:
    """Raises ConfigError where `config.continues` is a run of another segmenter or anatomy, or cannot be taken over."""
    if config.continues is None:
        return
    other = load_run(config.continues, "cpu")
    started = other.require_config()
    where = f"continues {config.continues}"
    if hash_folder(started.segmenter.folder) != hash_folder(config.segmenter.folder):
        raise ConfigError(f"{where}: that run adapted another segmenter; give the same segmenter.folder")
    if started.reward.network != config.reward.network or started.reward.ensemble != config.reward.ensemble:
        raise ConfigError(f"{where}: its reward networks are others than reward.network and reward.ensemble say")
    if not ActionDataset(other.folder.actions).shards():
        raise ConfigError(f"{where}: its folder actions is gone, and with it what its reward networks learned from")


def take_over(config: AdaptConfig, run: RunFolder) -> None:
    """Copies what a run goes on from into its folder; the record, which says that all is there, comes last."""
    if config.continues is None or run.continued.exists():
        return
    other = load_run(config.continues, "cpu")
    folder, identity = other.folder, other.identity
    _copy(folder.actions, run.actions)
    if folder.shape_prior.exists():
        _copy(folder.shape_prior, run.shape_prior)
    for iteration in folder.iterations:
        rewards = folder.rewards(iteration)
        _copy(rewards, run.rewards(iteration))
    chosen = Selection.read(folder.last_selection).chosen
    if chosen != SOURCE:
        destination = run.candidate_weights(PREVIOUS)
        if not destination.exists():
            with replace_folder_on_success(destination) as temporary:
                shutil.copy(folder.candidate_weights(chosen) / ACTOR, temporary / ACTOR)
    record = Continuation(
        str(config.continues.resolve()),
        max(folder.iterations) + 1,
        identity.model_hash,
        identity.reward_hash,
        ActionDataset(run.actions).content_hash(),
        identity.mlflow_run_id,
    )
    write_versioned_json(run.continued, _FORMAT, asdict(record))
    _LOG.info("goes on from %s after its %d iterations", config.continues, record.iterations)


def learned_before(config: AdaptConfig) -> LearnedFeedback | None:
    """What the run that this one goes on from learned from a store; None where it goes on from none, or from nothing.

    Raises:
        DataError: The record cannot be read.
    """
    if config.continues is None or not RunFolder(config.continues).feedback.exists():
        return None
    return LearnedFeedback.read(RunFolder(config.continues).feedback)


def _copy(source: Path, destination: Path) -> None:
    if not destination.exists():
        with replace_folder_on_success(destination) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
