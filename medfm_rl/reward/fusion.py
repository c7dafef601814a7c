"""`fusion.json` in the reward folder of a run: which networks are fused, and how."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from medfm_rl.data.files import read_versioned_json, write_versioned_json
from medfm_rl.errors import ModelError
from medfm_rl.settings import RewardSettings

_FILE: Final = "fusion.json"
_FORMAT: Final = 2
_ADVICE: Final = "give the folder of a run"


def write_fusion(folder: Path, members: Sequence[str], settings: RewardSettings) -> None:
    """Writes how the networks of a reward folder are fused.

    Args:
        folder: The reward folder.
        members: Names of the networks, each a folder in it.
        settings: How they are fused.
    """
    content = {"members": list(members), "fusion": settings.fusion, "pessimism": settings.pessimism}
    write_versioned_json(folder / _FILE, _FORMAT, content)


def read_fusion(folder: Path) -> tuple[RewardSettings, list[str]]:
    """How the networks of a reward folder are fused, and their names; also where version 0.1 wrote them.

    Raises:
        ModelError: The file is missing, is not what its name says, names no network, or was written by a newer version.
    """
    path = folder / _FILE
    content = read_versioned_json(path, _FORMAT, _ADVICE, ModelError)
    try:
        settings = RewardSettings(fusion=content["fusion"], pessimism=content["pessimism"])
        members = list(content["members"])
        if not all(isinstance(member, str) for member in members) or len(set(members)) < len(members):
            raise ValueError(f"members are {members}, and must be names, each once")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: does not say how reward networks are fused ({error}); {_ADVICE}") from error
    if not members:
        raise ModelError(f"{path}: the ensemble has no members; {_ADVICE}")
    return settings, members
