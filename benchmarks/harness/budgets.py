"""Budgets of `adapt` where the default settings would take too long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """How much a benchmark with a training of its own does.

    Attributes:
        source: Labelled patients that the segmenter learns from.
        target: Unlabelled patients that it is adapted to.
        held_out: Patients of the target on which is measured.
        epochs: Of the training on labels.
        adapt: Settings of `adapt`.
    """

    source: int
    target: int
    held_out: int
    epochs: int
    adapt: Mapping[str, Any]


def adapt_budget(
    *,
    fine_tuning_steps: int,
    batch_size: int,
    source_images: int,
    target_images: int,
    reward_steps: int,
    reward_batch_size: int,
    updates: int,
    n_envs: int,
    eval_every: int,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Settings of `adapt`, section by section, from the numbers that decide about time.

    Args:
        fine_tuning_steps: Training steps of the fine-tuning.
        batch_size: Source images per step; half as many of the target are beside them.
        source_images: Images of the source that actions are collected on.
        target_images: Images of the target likewise.
        reward_steps: Training steps of each reward network.
        reward_batch_size: Actions per step.
        updates: Of PPO.
        n_envs: Images per update.
        eval_every: Updates between checkpoints.
        changes: Further settings.
    """
    settings = {
        "fine_tuning": {
            "steps": fine_tuning_steps,
            "batch_size": batch_size,
            "target_batch_size": max(1, batch_size // 2),
        },
        "collect": {"source_images": source_images, "target_images": target_images},
        "reward": {"steps": reward_steps, "batch_size": reward_batch_size},
        "ppo": {"updates": updates, "n_envs": n_envs, "eval_every": eval_every},
    }
    return merge(settings, changes or {})


def trial_budget(source_images: int = 8, target_images: int = 8) -> dict[str, dict[str, Any]]:
    """The settings of `--quick`: every stage runs, and nothing is learned."""
    return adapt_budget(
        fine_tuning_steps=4,
        batch_size=2,
        source_images=source_images,
        target_images=target_images,
        reward_steps=4,
        reward_batch_size=2,
        updates=2,
        n_envs=2,
        eval_every=1,
        changes={
            "collect": {"actions_per_image": 2},
            "shape_prior": {"epochs": 1},
            "reward": {"ensemble": 1, "validate_every": 2, "network": {"channels": (8, 16)}},
            "ppo": {"n_epochs": 1},
        },
    )


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes, section by section."""
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
