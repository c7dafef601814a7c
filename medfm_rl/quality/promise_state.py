"""Does a promise still stand for a stream?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from medfm_rl.quality.drift import FEWEST_BEFORE, DriftTest
from medfm_rl.quality.promises import Promise

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
        contradicted: Whether reviews of this stream say that it is not true.
    """

    standing: Standing
    reason: str
    contradicted: bool = False


@dataclass(frozen=True)
class StreamFacts:
    """What a stream says of a promise.

    Attributes:
        quality: SHA-256 of the `quality.json` that assesses the stream.
        drift: The test of the stream.
        losses: Of each patient with masks that were accepted under the promise and reviewed since the stream began
            anew the last time: the share of bad ones, or whether there is one, as the promise counts; in their order.
        masks: Keys of the masks of the stream since then (`drift.mask_key`).
        former: Keys of its masks from before.
        scanner_known: Whether anybody has said which scanner it is of.
    """

    quality: str
    drift: DriftTest
    losses: Sequence[float]
    masks: Collection[str]
    former: Collection[str] = ()
    scanner_known: bool = True


def contradiction(losses: Sequence[float], alpha: float) -> float:
    """Evidence that the mean loss is above `alpha`, however long one goes on reviewing.

    The product of `1 + bet (loss - alpha)` with bets of .2, .5 and .8 over `alpha`, mixed: where the mean loss is at
    most `alpha`, it ever reaches c with a probability of at most 1 / c (Ville; Waudby-Smith and Ramdas, JRSS-B 86(1),
    2024). The largest value on the way counts.

    Args:
        losses: Of patients with reviewed masks under the promise, in their order, in [0, 1].
        alpha: What is promised.
    """
    if not losses:
        return 1.0
    bets = np.array(_BETS) / alpha
    capital = np.cumprod(1 + bets[None] * (np.array(losses)[:, None] - alpha), axis=0)
    return float(capital.mean(axis=1).max())


def promise_state(promise: Promise | None, stream: StreamFacts) -> PromiseState:
    """What a promise is worth to a stream now.

    It is in force where all of these hold: the reviewed masks that it rests on are of this stream, as it has been since
    it began anew the last time; the stream has not changed, and is long enough to tell; and its reviews do not
    contradict it.

    Args:
        promise: The promise; None where there is none.
        stream: What the stream says of it.
    """
    if promise is None:
        return PromiseState("none", "there is no promise: `medfm-rl calibrate RUN --feedback STORE` proves one")
    if promise.threshold is None:
        return PromiseState("none", promise.reason)
    if promise.evidence is not None and promise.evidence.quality_hash != stream.quality:
        return PromiseState("withdrawn", "it was proven for another quality model; prove it again for this one")
    if stream.drift.alarm is not None:
        return PromiseState("withdrawn", f"the stream has changed: {stream.drift.alarm.words}")
    if contradiction(stream.losses, promise.target.alpha) >= _WITHDRAWN_FROM:
        bad = sum(loss > 0 for loss in stream.losses)
        words = f"the audit contradicts it: {bad} of {len(stream.losses)} patients have accepted masks that are bad"
        return PromiseState("withdrawn", words, contradicted=True)
    rests_on = () if promise.evidence is None else promise.evidence.masks
    if any(key in stream.former for key in rests_on):
        return PromiseState("withdrawn", "it rests on masks from before the stream began anew; review later ones")
    doubt = _doubt(rests_on, stream)
    return PromiseState("in force", promise.reason) if doubt is None else PromiseState("expected", doubt)


def _doubt(rests_on: Sequence[str], stream: StreamFacts) -> str | None:
    """Why a promise that nothing speaks against is not proven for a stream; None where it is."""
    if not rests_on:
        return "promise.json does not say which masks it rests on; prove it again with this version"
    strangers = sum(key not in stream.masks for key in rests_on)
    if strangers:
        return (
            f"{strangers} of the {len(rests_on)} reviewed masks that it rests on are not of this stream; prove it from "
            "reviewed masks of this stream alone"
        )
    if not stream.scanner_known:
        return "nobody has said which scanner the stream is of (--scanner)"
    if not stream.drift.knows_itself:
        return f"the stream has {stream.drift.studies} studies, and {FEWEST_BEFORE} are needed to notice a change soon"
    return None
