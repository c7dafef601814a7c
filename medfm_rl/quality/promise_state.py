"""Does a promise still stand for a stream?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from medfm_rl.quality.promises import Promise
from medfm_rl.quality.streams import FEWEST_BEFORE, DriftTest

Standing = Literal["in force", "expected", "withdrawn", "none"]
_BETS: Final = (0.2, 0.5, 0.8)
_WITHDRAWN_FROM: Final = 20.0
"""A promise that is true is withdrawn because of its audit with a probability of at most 1 in 20, ever."""


@dataclass(frozen=True)
class PromiseState:
    """What a promise is worth to a stream now.

    Attributes:
        standing: in force; expected (proven, but the stream is too short to tell whether it is like the reviewed
            patients); withdrawn; or none, where nothing was proven.
        reason: Why, in words.
    """

    standing: Standing
    reason: str


def contradiction(losses: Sequence[float], alpha: float) -> float:
    """Evidence that the mean loss is above `alpha`, however long one goes on reviewing.

    The product of `1 + bet (loss - alpha)` with bets of .2, .5 and .8 over `alpha`, mixed: where the mean loss is at
    most `alpha`, it ever reaches c with a probability of at most 1 / c (Ville; Waudby-Smith and Ramdas, JRSS-B 86(1),
    2024). The largest value on the way counts.

    Args:
        losses: Of reviewed masks under the promise, in their order, in [0, 1].
        alpha: What is promised.
    """
    if not losses:
        return 1.0
    bets = np.array(_BETS) / alpha
    capital = np.cumprod(1 + bets[None] * (np.array(losses)[:, None] - alpha), axis=0)
    return float(capital.mean(axis=1).max())


def promise_state(promise: Promise | None, quality: str, drift: DriftTest, losses: Sequence[float]) -> PromiseState:
    """What a promise is worth to a stream now.

    Args:
        promise: The promise; None where there is none.
        quality: SHA-256 of the `quality.json` that assesses the stream.
        drift: The test of the stream.
        losses: Whether each mask of the stream that was accepted under the promise and reviewed is bad, in the order
            of the reviews.
    """
    if promise is None:
        return PromiseState("none", "no promise was given (--run)")
    if promise.threshold is None:
        return PromiseState("none", promise.reason)
    if promise.evidence is not None and promise.evidence.quality_hash != quality:
        return PromiseState("withdrawn", "it was proven for another quality model; prove it again for this one")
    if drift.alarm is not None:
        return PromiseState("withdrawn", f"the stream has changed: {drift.alarm.words}")
    if contradiction(losses, promise.target.alpha) >= _WITHDRAWN_FROM:
        bad = sum(loss > 0 for loss in losses)
        return PromiseState("withdrawn", f"the audit contradicts it: {bad} of {len(losses)} accepted masks are bad")
    if not drift.knows_itself:
        return PromiseState(
            "expected",
            f"the stream has {drift.studies} studies, and {FEWEST_BEFORE} are needed to notice a change soon",
        )
    return PromiseState("in force", promise.reason)
