"""Runs that fit into the memory and on the disk: what they need, and which settings are lowered where they do not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from medfm_rl.errors import ConfigError, DataError
from medfm_rl.networks import images_at_once
from medfm_rl.settings import AdaptConfig
from medfm_rl.workflows.adapt.forecast.expectation import (
    COLLECTING,
    FINE_TUNING,
    PPO,
    REWARD,
    SELECTION,
    value_of,
    with_value,
)
from medfm_rl.workflows.adapt.forecast.footprint import Footprint

ORDER: Final = (
    ("collect.shard_images", 2),
    ("recompute", 1),
    ("ppo.n_envs", 2),
    ("fine_tuning.batch_size", 2),
    ("fine_tuning.target_batch_size", 1),
    ("reward.batch_size", 2),
)
"""What is changed, first what costs least, and how far: fewer images in a file of D_R change its draws alone; to
compute activations again takes a third more time in training; smaller batches are other steps."""
_USED: Final = 0.9
"""Share of what is free that a run may count on."""
_FORWARD: Final = 0.4
"""What a forward without a gradient needs next to one that keeps everything."""
_ADAM: Final = 4
"""Weights, gradient and two moments."""
_RATED: Final = 16
"""Images that selection rates together."""


def memory_by_stage(config: AdaptConfig, of: Footprint) -> dict[str, int]:
    """Bytes that each stage needs at most, about: none depends on how many cases there are."""
    image, pixels, classes = 4 * of.channels * of.pixels, of.pixels, of.classes
    logits = 4 * classes * pixels
    graph = of.policy.recomputed if config.recompute else of.policy.kept

    def at_once(count: int) -> int:
        return images_at_once(of.grid, count)

    tuned, ppo = config.fine_tuning, config.ppo
    shown = tuned.batch_size + tuned.target_batch_size
    whole = max(tuned.batch_size, tuned.target_batch_size)
    # Where no batch is cut, the labelled and the target images have one graph.
    fine_tuned = shown if at_once(whole) == whole else at_once(whole)
    weights = of.policy_weights
    one_hot = (8 + 4) * classes * pixels
    shard, rewards = config.collect.shard_images, config.reward.ensemble
    stages = {
        FINE_TUNING: fine_tuned * (graph + 3 * logits) + shown * (4 * image + 3 * pixels) + (_ADAM + 4) * weights,
        COLLECTING: shard * (4 * image + 2 * logits + (config.collect.actions_per_image + 12) * pixels)
        + at_once(_RATED) * (_FORWARD * of.policy.kept + 4 * logits)
        + 2 * weights,
        REWARD: at_once(config.reward.batch_size) * (of.reward.kept + one_hot)
        + config.reward.batch_size * (2 * image + 12 * pixels)
        + _ADAM * of.reward_weights,
        PPO: ppo.n_envs * (3 * image + logits + 20 * pixels)
        + at_once(ppo.n_envs) * max(graph + 5 * logits, rewards * _FORWARD * of.reward.kept + one_hot)
        + (_ADAM + 2) * weights
        + rewards * of.reward_weights,
        SELECTION: _RATED * (3 * image + 16 * pixels)
        + at_once(_RATED) * (_FORWARD * max(of.policy.kept, of.reward.kept) + one_hot + 2 * logits)
        + 2 * weights,
    }
    return {name: of.resident + round(value) for name, value in stages.items()}


def memory_needed(config: AdaptConfig, of: Footprint) -> int:
    """Bytes at most, of the stage that needs most."""
    return max(memory_by_stage(config, of).values())


def disk_needed(config: AdaptConfig, of: Footprint) -> int:
    """Bytes in the folder of the run, about: images while it runs, D_R, checkpoints and what it returns."""
    learning, selecting, source = of.patches
    single, half = of.packed_image
    collect = config.collect
    with_truth = collect.source_images if source else 0
    shown = with_truth or config.ppo.updates * config.ppo.n_envs
    scratch = (learning + selecting + source + shown) * single + (source + learning) * of.packed_mask
    records = with_truth + collect.target_images
    images = config.iterations * with_truth + min(config.iterations * collect.target_images, learning)
    actions = config.iterations * records * (collect.actions_per_image + 2) * of.packed_mask + images * half
    checkpoints = config.iterations * math.ceil(config.ppo.updates / config.ppo.eval_every)
    # The actor, the reference, two moments and the average; besides, the fine-tuned policy and the model.
    weights = (5 * checkpoints + 2) * of.policy_weights
    rewards = (config.iterations + 1) * (config.reward.ensemble + 1) * of.reward_weights
    return scratch + actions + weights + rewards


def fit_memory(config: AdaptConfig, of: Footprint, free: int | None) -> tuple[AdaptConfig, dict[str, tuple[int, int]]]:
    """Settings that fit into the memory, by changing one after the other, each only as far as it has to be.

    Args:
        config: The settings.
        of: What one image needs.
        free: Bytes that the process may take beside those that it has; None where nobody knows: then nothing changes.

    Returns:
        The settings, and what was changed: from what, to what.

    Raises:
        ConfigError: Not even the least of each fits; the message says what that needs.
    """
    changes: dict[str, tuple[int, int]] = {}
    if free is None:
        return config, changes
    limit = of.resident + _USED * free
    for name, last in ORDER:
        if _excess(config, of, limit) == 0:
            break
        before = value_of(config, name)
        after = _nearest(config, name, before, last, of, limit)
        if after != before:
            config, changes[name] = with_value(config, name, after), (before, after)
    needed = memory_by_stage(config, of)
    stage = max(needed, key=lambda name: needed[name])
    if needed[stage] > limit:
        kept = of.policy.recomputed if config.recompute else of.policy.kept
        shape = " x ".join(map(str, of.grid))
        raise ConfigError(
            f"the run does not fit into the memory of this {'GPU' if of.on_gpu else 'machine'}: {stage} needs about "
            f"{needed[stage] / 1e9:.1f} GB even with the least of what may be lowered ({_as_settings(changes)}), and "
            f"{limit / 1e9:.1f} GB are free; the gradient of one patch of {shape} alone keeps {kept / 1e9:.1f} GB. "
            "Take a machine or GPU with more memory, or a segmenter with smaller patches"
        )
    return config, changes


def _nearest(config: AdaptConfig, name: str, before: int, last: int, of: Footprint, limit: float) -> int:
    """The value nearest to what a setting is now with which it has done what it can."""
    steps = range(before, last - 1, -1) if last < before else range(before, last + 1)
    if last < before or name == "recompute":
        best = _excess(with_value(config, name, last), of, limit)
        return next(value for value in steps if _excess(with_value(config, name, value), of, limit) <= best)
    return before


def _excess(config: AdaptConfig, of: Footprint, limit: float) -> float:
    """Bytes by which the stages exceed a limit, together: each setting helps some of them."""
    return sum(max(0.0, needed - limit) for needed in memory_by_stage(config, of).values())


def require_disk(config: AdaptConfig, of: Footprint, free: int) -> int:
    """What the run will write.

    Raises:
        DataError: More than is free.
    """
    needed = disk_needed(config, of)
    if needed > _USED * free:
        raise DataError(
            f"{config.output}: the run will write about {needed / 1e9:.1f} GB there, and {free / 1e9:.1f} GB are free; "
            "make room, choose an output on another disk, or lower collect.source_images, collect.target_images or "
            "ppo.updates"
        )
    return needed


def _as_settings(changes: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name}: {after}" for name, (_, after) in changes.items()) or "nothing is left to lower"
