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
    fine_tuning: tuple[int, int],
    collect: tuple[int, int],
    reward: tuple[int, int],
    ppo: tuple[int, int, int],
    changes: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Settings of `adapt`, section by section, from the numbers that decide about time.

    Args:
        fine_tuning: Steps, and source images per step; half as many of the target are beside them.
        collect: Images of the source, and of the target, that actions are collected on.
        reward: Steps of each reward network, and actions per step.
        ppo: Updates, images per update, and updates between checkpoints.
        changes: Further settings.
    """
    steps, images = fine_tuning
    settings = {
        "fine_tuning": {"steps": steps, "batch_size": images, "target_batch_size": max(1, images // 2)},
        "collect": dict(zip(("source_images", "target_images"), collect, strict=True)),
        "reward": dict(zip(("steps", "batch_size"), reward, strict=True)),
        "ppo": dict(zip(("updates", "n_envs", "eval_every"), ppo, strict=True)),
    }
    return merge(settings, changes)


def trial_budget(source_images: int = 8, target_images: int = 8) -> dict[str, dict[str, Any]]:
    """The settings of `--quick`: every stage runs, and nothing is learned."""
    changes: dict[str, dict[str, Any]] = {
        "collect": {"actions_per_image": 2},
        "shape_prior": {"epochs": 1},
        "reward": {"ensemble": 1, "validate_every": 2, "network": {"channels": (8, 16)}},
        "ppo": {"n_epochs": 1},
    }
    return adapt_budget((4, 2), (source_images, target_images), (4, 2), (2, 2, 1), changes)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes, section by section."""
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
