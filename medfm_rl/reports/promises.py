"""A promise and a month's figures, in words for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from medfm_rl.quality.month import Estimate
from medfm_rl.quality.promises import Promise

_NAMES = {"mean_dice": "mean Dice", "failure_rate": "share of bad masks"}


def promise_lines(promise: Promise, month: Mapping[str, Estimate], no_month: str | None) -> list[str]:
    """One line for the promise, and one for each figure."""
    if promise.threshold is None:
        lines = [f"Not promised: {promise.target.words}: {promise.reason}"]
    else:
        lines = [
            f"Promised: {promise.target.words}, for masks of predicted mean Dice {promise.threshold:.3f} or above that "
            f"meet every rule: {promise.reason}"
        ]
    for name, found in month.items():
        lines.append(
            f"All that was scored, {_NAMES[name]}: {found.value:.3f}, 95 % interval {found.low:.3f} to "
            f"{found.high:.3f} ({found.reviewed} patients reviewed, {found.unreviewed} predicted; from the reviewed "
            f"alone {found.labelled_low:.3f} to {found.labelled_high:.3f})"
        )
    if no_month is not None:
        lines.append(f"Nothing is inferred of all that was scored: {no_month}")
    return lines
