"""Shorter runs, for those who have so many minutes and no more: which settings are lowered, in which order, how far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from medfm_rl.errors import ConfigError
from medfm_rl.progress import spoken_time
from medfm_rl.settings import AdaptConfig
from medfm_rl.workflows.adapt.forecast.expectation import Expectation, value_of, with_value

ORDER: Final = (
    ("iterations", 1),
    ("ppo.updates", 10),
    ("shape_prior.epochs", 10),
    ("collect.source_images", 200),
    ("collect.target_images", 100),
    ("reward.steps", 300),
    ("fine_tuning.steps", 200),
)
"""What is lowered, first what the result depends on least, and the least of each: without labels nearly all of the gain
comes from the fine-tuning."""
_TRIES: Final = 20


def shorten(
    config: AdaptConfig, minutes: float, expected: Callable[[AdaptConfig], Expectation]
) -> tuple[AdaptConfig, dict[str, tuple[int, int]]]:
    """Settings that fit into so many minutes, by lowering one after the other, each only as far as it has to be.

    Args:
        config: The settings.
        minutes: How long the run may take.
        expected: What settings are expected to need.

    Returns:
        The settings, and what was lowered: from what, to what.

    Raises:
        ConfigError: Not even the least of each fits; the message says what that needs.
    """
    limit, changes = 60 * minutes, dict[str, tuple[int, int]]()
    for name, least in ORDER:
        if expected(config).seconds <= limit:
            break
        before = value_of(config, name)
        if before <= least:
            continue
        after = _largest_that_fits(config, name, least, before, limit, expected)
        config, changes[name] = with_value(config, name, after), (before, after)
    needed = expected(config).seconds
    if needed > limit:
        lowered = ", ".join(f"{name}: {least}" for name, least in ORDER)
        raise ConfigError(
            f"--max-minutes {minutes:g}: on this machine the run needs about {spoken_time(needed)} even with the least "
            f"of what may be lowered ({lowered}); give it that much, fewer or smaller images, or a GPU (device: cuda)"
        )
    return config, changes


def _largest_that_fits(
    config: AdaptConfig,
    name: str,
    least: int,
    before: int,
    limit: float,
    expected: Callable[[AdaptConfig], Expectation],
) -> int:
    """The largest value from `least` on with which the run fits; `least` where none does."""
    low, high = least, before
    for _ in range(_TRIES):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        fits = expected(with_value(config, name, middle)).seconds <= limit
        low, high = (middle, high) if fits else (low, middle)
    return low
