"""The settings of `adapt` that the ablation changes, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medfm_rl.runs.folder import HELD_OUT_REWARD, RunFolder

Stage = Literal["nothing", "fine-tuning", "collect", "reward"]
DEFAULT, GRADIENT = "default", "reward-gradient"


@dataclass(frozen=True)
class Variant:
    """A change to the default settings.

    Attributes:
        changes: To the settings of `adapt`, section by section.
        after: The last stage that the change does not reach; the default run's result of it is gone on from.
    """

    changes: Mapping[str, Mapping[str, Any]]
    after: Stage


VARIANTS: dict[str, Variant] = {
    DEFAULT: Variant({}, "nothing"),
    "no fine-tuning": Variant({"fine_tuning": {"steps": 0}}, "nothing"),
    "fine-tuning without target images": Variant({"fine_tuning": {"target_weight": 0.0}}, "nothing"),
    "fine-tuning without random shapes": Variant({"fine_tuning": {"shape_strength": 1.0, "elastic": 0.0}}, "nothing"),
    "independent exploration": Variant({"ppo": {"exploration": "independent"}}, "reward"),
    "critic as baseline": Variant({"ppo": {"baseline": "critic"}}, "reward"),
    "KL weight 0.05": Variant({"ppo": {"kl_coef": 0.05}}, "reward"),
    "target images as they are": Variant({"ppo": {"appearance_strength": 0.0}}, "reward"),
    "mean of the reward networks": Variant({"reward": {"fusion": "mean"}}, "reward"),
}


def stages_up_to(run: RunFolder, last: Stage) -> list[Path]:
    """Folders of a run with one iteration that hold its results up to a stage."""
    stages: dict[Stage, list[Path]] = {
        "fine-tuning": [run.shape_prior, run.fine_tuned],
        "collect": [run.actions],
        "reward": [run.reward(0, HELD_OUT_REWARD).parent],
    }
    found: list[Path] = []
    for stage, folders in stages.items():
        if last == "nothing":
            break
        found += folders
        if stage == last:
            break
    return found
