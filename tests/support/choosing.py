"""A choice between candidates for runs that are too short for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medfm_rl.workflows.adapt.choosing.selection import Candidate, Comparison, Selection


def keep_the_incumbent(
    comparisons: Mapping[str, Comparison],
    patients: Sequence[str],
    confidence: float,
    margin: float,
    incumbent: str,
    worth: Mapping[str, float] | None = None,
) -> Selection:
    """Stands for `select` where reward networks and signals learnt nothing in a few steps."""
    del patients, confidence, margin, worth
    return Selection(incumbent, incumbent, tuple(Candidate(name, {}) for name in comparisons))
