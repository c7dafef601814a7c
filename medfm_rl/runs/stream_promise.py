"""The promise of a run, held against a stream."""

from __future__ import annotations

from medfm_rl.quality.in_stream import StreamStanding
from medfm_rl.quality.promise_state import StreamFacts, promise_state
from medfm_rl.quality.promises import Promise
from medfm_rl.runs.stream_history import UNKNOWN, StreamHistory, Study


def losses_under(history: StreamHistory, promise: Promise | None) -> list[float]:
    """The loss of each patient with reviewed masks that the promise speaks of, in the order of their first reviews.

    The masks of one patient are no independent evidence, so that he counts once, as in the proof: by the share of his
    bad masks, or by the worst, in the call that first reviewed such masks of his. Masks from before the stream began
    anew do not count.
    """
    if promise is None:
        return []
    latest, losses = history.reviews, []
    for first in history.first_reviews(lambda case: promise.accepts(case.predicted, not case.broken_rules)):
        bad = [float(latest[review.key].dice < promise.target.dice) for review in first.reviews]
        losses.append(max(bad) if promise.target.unit == "worst" else sum(bad) / len(bad))
    return losses


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
