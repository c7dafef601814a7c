"""The promise of a run, held against a stream."""

from __future__ import annotations

from medfm_rl.quality.in_stream import StreamStanding
from medfm_rl.quality.promise_state import StreamFacts, promise_state
from medfm_rl.quality.promises import Promise
from medfm_rl.runs.stream_history import UNKNOWN, StreamHistory, Study


def losses_under(history: StreamHistory, promise: Promise | None) -> list[float]:
    """Whether each reviewed mask that the promise speaks of is bad, in the order of the first reviews.

    Masks from before the stream began anew do not count.
    """
    if promise is None:
        return []
    cases = {case.key: case for event in history.since_restart if isinstance(event, Study) for case in event.cases}
    return [
        float(review.dice < promise.target.dice)
        for key, review in history.reviews.items()
        if key in cases and promise.accepts(cases[key].predicted, not cases[key].broken_rules)
    ]


def standing_of(history: StreamHistory, promise: Promise | None) -> StreamStanding:
    """How a stream stands, and what the promise is worth to it."""
    drift = history.drift()
    own = {case.key for event in history.since_restart if isinstance(event, Study) for case in event.cases}
    facts = StreamFacts(
        history.identity.quality,
        drift,
        losses_under(history, promise),
        own,
        history.cases.keys() - own,
        history.identity.scanner != UNKNOWN,
    )
    return StreamStanding(history.name, drift, promise, promise_state(promise, facts))
