"""Checkpoints of `DensePPO`: a folder of weights and optimiser states, and `ppo.json`. Nothing in it is pickled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medfm_rl.adapters.lora import low_rank_parameters
from medfm_rl.data.files import read_versioned_json, replace_folder_on_success, versioned_json
from medfm_rl.errors import ModelError
from medfm_rl.networks import portable_state
from medfm_rl.policies.policy import DenseActorCriticPolicy
from medfm_rl.settings import PPOHyperparameters

ACTOR: Final = "actor.safetensors"
"""The weights of the policy in the folder of a checkpoint, low-rank parts merged."""
_LOW_RANK: Final = "low_rank.safetensors"
_REFERENCE: Final = "reference.safetensors"
_CRITIC: Final = "critic.safetensors"
_ACTOR_OPTIMISER: Final = "actor_optimiser.safetensors"
_CRITIC_OPTIMISER: Final = "critic_optimiser.safetensors"
_STATE: Final = "ppo.json"
_FORMAT: Final = 2
_ADVICE: Final = "give the folder of a PPO checkpoint"
_FIELDS: Final = set(PPOHyperparameters.model_fields)


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint says beside the weights.

    Attributes:
        settings: Hyper-parameters.
        n_steps: Rollout steps per update.
        batch_size: Images per minibatch.
        autocast: Whether the networks compute in bfloat16.
        seed: Seed of the sampled actions.
        num_timesteps: Images shown so far.
        n_updates: Updates made so far.
    """

    settings: PPOHyperparameters
    n_steps: int
    batch_size: int
    autocast: bool
    seed: int | None
    num_timesteps: int
    n_updates: int


def write_checkpoint(folder: Path, state: TrainingState, policy: DenseActorCriticPolicy, reference: nn.Module) -> None:
    """Writes a checkpoint into a new folder.

    Raises:
        DataError: The folder exists and is not empty, or cannot be written.
    """
    settings = state.settings.model_dump(mode="json", include=_FIELDS)
    with replace_folder_on_success(folder) as temporary:
        content = versioned_json(_FORMAT, {**vars(state), "settings": settings})
        (temporary / _STATE).write_text(content, encoding="utf-8")
        save_file(portable_state(policy.segmenter.state_dict()), temporary / ACTOR)
        low_rank = low_rank_parameters(policy.segmenter)
        if low_rank:
            save_file(portable_state(low_rank), temporary / _LOW_RANK)
        save_file(portable_state(reference.state_dict()), temporary / _REFERENCE)
        save_file(_optimiser_tensors(policy.optimizer), temporary / _ACTOR_OPTIMISER)
        if policy.critic is not None and policy.critic_optimizer is not None:
            save_file(portable_state(policy.critic.state_dict()), temporary / _CRITIC)
            save_file(_optimiser_tensors(policy.critic_optimizer), temporary / _CRITIC_OPTIMISER)


def read_state(folder: Path) -> TrainingState:
    """Reads `ppo.json`, also where version 0.1 wrote it.

    Raises:
        ModelError: The file is missing, is not what its name says, or was written by a newer version.
    """
    content = read_versioned_json(folder / _STATE, _FORMAT, _ADVICE, ModelError)
    with _fitting(folder):
        if content.pop("format") == 1:
            content = _of_version_0_1(content)
        return TrainingState(**{**content, "settings": PPOHyperparameters(**content["settings"])})


def load_networks(folder: Path, segmenter: nn.Module, reference: nn.Module, critic: nn.Module | None) -> None:
    """Replaces the weights of networks like those that were saved.

    Args:
        folder: The checkpoint.
        segmenter: The policy. One with low-rank parts has the weights that they were added to: the parts alone are
            replaced.
        reference: The policy that the KL term keeps near.
        critic: The critic, where there is one.

    Raises:
        ModelError: A file is missing or does not fit.
    """
    with _fitting(folder):
        low_rank = low_rank_parameters(segmenter)
        if low_rank:
            _copy_by_name(load_file(folder / _LOW_RANK), low_rank)
        else:
            segmenter.load_state_dict(load_file(folder / ACTOR))
        reference.load_state_dict(load_file(folder / _REFERENCE))
        if critic is not None:
            critic.load_state_dict(load_file(folder / _CRITIC))


def load_optimisers(folder: Path, policy: DenseActorCriticPolicy) -> None:
    """Replaces the states of the optimisers of a policy.

    Raises:
        ModelError: A file is missing or does not fit.
    """
    with _fitting(folder):
        _load_optimiser(policy.optimizer, load_file(folder / _ACTOR_OPTIMISER))
        if policy.critic_optimizer is not None:
            _load_optimiser(policy.critic_optimizer, load_file(folder / _CRITIC_OPTIMISER))


def _of_version_0_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of today: hyper-parameters apart, and a correlation length of 0 by its name."""
    content = {**content, "n_updates": content["_n_updates"]}
    del content["_n_updates"]
    if content["correlation_length"] == 0:
        del content["correlation_length"]
        content["exploration"] = "independent"
    settings = {name: value for name, value in content.items() if name in _FIELDS}
    return {**{name: value for name, value in content.items() if name not in _FIELDS}, "settings": settings}


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """Turns what goes wrong with a file of a checkpoint into an error that names its folder."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder}: not a PPO checkpoint of this segmenter ({error}); {_ADVICE}") from error


@torch.no_grad()
def _copy_by_name(tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    if tensors.keys() != parameters.keys():
        raise KeyError(f"{_LOW_RANK} holds other low-rank parts than the network has")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return portable_state({f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()})


def _load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
