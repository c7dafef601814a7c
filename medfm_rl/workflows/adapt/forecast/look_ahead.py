"""Before a run starts: what it will need, and its settings where they have to fit into memory, disk or time."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.errors import ConfigError
from medfm_rl.progress import Progress
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import AdaptConfig
from medfm_rl.workflows.adapt.forecast.expectation import Expectation, expect, with_changes
from medfm_rl.workflows.adapt.forecast.fitting import disk_needed, fit_memory, memory_needed, require_disk
from medfm_rl.workflows.adapt.forecast.footprint import available_memory, free_disk, measure_footprint
from medfm_rl.workflows.adapt.forecast.measuring import measure
from medfm_rl.workflows.adapt.forecast.shortening import shorten

_WORTH_MEASURING: Final = 500
"""Steps of a run from which on the few that are measured are below two in a hundred."""
_STEPS_OF_AN_UPDATE: Final = 10


def look_ahead(
    config: AdaptConfig,
    segmenter: SegmenterAdapter,
    max_minutes: float | None,
    progress: Progress,
    processes: int = 1,
) -> tuple[AdaptConfig, Expectation]:
    """The settings of a new run, lowered where it has to be, and what is expected of it.

    First those that have to fit into the memory (`fitting.ORDER`), for the steps that are measured have to fit too.

    Args:
        config: Settings and data that have been checked.
        segmenter: As in `measure_footprint`.
        max_minutes: How long it may take, or None.
        progress: Told how far the measuring is.
        processes: How many share the run: on a CPU, its memory too. The time is that of one.

    Returns:
        The settings, and an expectation of no time where the run is hardly longer than the measuring.

    Raises:
        ConfigError: `max_minutes` is no length of time, or too short; or the run does not fit into the memory.
        DataError: It does not fit on the disk.
    """
    if max_minutes is not None and not 0 < max_minutes < float("inf"):
        raise ConfigError(f"--max-minutes {max_minutes:g}: must be a number of minutes above 0")
    footprint = measure_footprint(config, segmenter, progress)
    device = segmenter.device
    free = available_memory(device)
    if free is not None and device.type != "cuda":
        free //= processes
    config, fitted = fit_memory(config, footprint, free)
    known = Expectation(
        memory=memory_needed(config, footprint),
        on_gpu=footprint.on_gpu,
        fitted=fitted,
        disk=require_disk(config, footprint, free_disk(config.output)),
    )
    if max_minutes is None and _steps(config) < _WORTH_MEASURING:
        return config, known
    costs, amounts = measure(config, progress)
    shortened: dict[str, tuple[int, int]] = {}
    if max_minutes is not None:
        config, shortened = shorten(config, max_minutes, lambda tried: expect(tried, costs, amounts))
    expected = expect(config, costs, amounts)
    return config, replace(
        known,
        stages=expected.stages,
        memory=max(known.memory or 0, expected.memory or 0),
        max_minutes=max_minutes,
        shortened=shortened,
        disk=disk_needed(config, footprint),
    )


def resumed(config: AdaptConfig, max_minutes: float | None) -> tuple[AdaptConfig, Expectation]:
    """The settings of the run in `config.output` that is gone on with, and what was expected of it.

    Raises:
        ConfigError: It may take another time than it was started with.
    """
    expected = Expectation.read(RunFolder(config.output).expected)
    if max_minutes is not None and max_minutes != expected.max_minutes:
        before = "without it" if expected.max_minutes is None else f"with {expected.max_minutes:g}"
        raise ConfigError(
            f"--max-minutes {max_minutes:g}: the run in {config.output} was started {before}, and its settings stay; "
            "leave the option out, or start a new run in another folder"
        )
    return _with_all(config, expected), expected


def settings_of_run(config: AdaptConfig) -> AdaptConfig:
    """The settings of the run in `config.output`: those that the user wrote, with what was lowered when it started."""
    return _with_all(config, Expectation.read(RunFolder(config.output).expected))


def _with_all(config: AdaptConfig, expected: Expectation) -> AdaptConfig:
    return with_changes(with_changes(config, expected.fitted), expected.shortened)


def _steps(config: AdaptConfig) -> int:
    """About how many steps of optimisers a run has; one of PPO weighs more."""
    rewards = (config.reward.ensemble + 1) * config.reward.steps
    return config.fine_tuning.steps + config.iterations * (rewards + _STEPS_OF_AN_UPDATE * config.ppo.updates)
