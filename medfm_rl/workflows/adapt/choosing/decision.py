"""The choice of a run in words and as a table, for its log and its report."""

from __future__ import annotations

import logging

from medfm_rl.reports.adaptation import ChoiceRow
from medfm_rl.runs.folder import SOURCE
from medfm_rl.workflows.adapt.choosing.cross_fit import LEAST_GAIN
from medfm_rl.workflows.adapt.choosing.selection import Selection

_LOG = logging.getLogger(__name__)
_SURE = 0.95


def decision_in_words(selection: Selection) -> str:
    """What was returned, and by whose word."""
    chosen, incumbent, others = selection.chosen, selection.incumbent, len(selection.candidates) - 1
    gain = selection.patients_gain
    of_patients = f"A typical patient with a corrected mask gains {100 * (gain or 0):+.1f} points of Dice by adapting"
    if gain is not None and chosen == SOURCE:
        return (
            f"{of_patients}, each rated by a policy that did not learn from him, and {100 * LEAST_GAIN:.1f} would be "
            "worth it: the source model was returned unchanged."
        )
    shown = "" if gain is None else f" {of_patients} (p = {selection.patients_p_value:.3f})."
    if chosen == SOURCE == incumbent:
        return f"Two signals agreed on none of the {others} candidates: the source model was returned unchanged."
    better, worse = selection.of(chosen).sure(_SURE, selection.heard)
    against = f", against {' and '.join(worse)}" if worse else ""
    if chosen == SOURCE:
        return (
            f"{_listed(better)} prefer the source model to {_spoken(incumbent)}{against}: the source model was "
            "returned unchanged."
        )
    if chosen == incumbent:
        return (
            f"Without labels, {_spoken(chosen)} was returned: no two signals agreed on another of the {others} "
            f"candidates.{shown}"
        )
    return f"{_listed(better)} prefer {_spoken(chosen)} to {_spoken(incumbent)}{against}: it was returned.{shown}"


def table_of(selection: Selection) -> tuple[ChoiceRow, ...]:
    """What each signal says of each candidate, for the report."""
    return tuple(
        ChoiceRow(
            candidate.name,
            candidate.name == selection.chosen,
            {
                name: (opinion.score, opinion.better >= _SURE, opinion.worse >= _SURE)
                for name, opinion in candidate.opinions.items()
            },
        )
        for candidate in selection.candidates
    )


def _listed(signals: list[str]) -> str:
    words = " and ".join(signals)
    return words[:1].upper() + words[1:]


def _spoken(candidate: str) -> str:
    """A candidate in words, for a reader who does not know the folders of a run."""
    if "/" not in candidate:
        return f"the {candidate} model" if candidate == SOURCE else f"the policy after the {candidate}"
    iteration, _, update = candidate.split("/")
    return (
        f"the average of the weights up to update {int(update)} of PPO in iteration {int(iteration.split('-')[1]) + 1} "
        f"({candidate})"
    )


def tell_selection(selection: Selection) -> None:
    """Logs what each signal thinks of each candidate."""
    if selection.patients_gain is not None:
        _LOG.info(
            "selection: a typical patient with a corrected mask gains %+.2f points of Dice by adapting (p = %.3f)",
            100 * selection.patients_gain,
            selection.patients_p_value,
        )
    for item in selection.candidates:
        scores = ", ".join(
            f"{name} {opinion.score:.4f} ({opinion.gain:+.4f})" for name, opinion in item.opinions.items()
        )
        beaten = " (to be beaten)" if item.name == selection.incumbent else ""
        _LOG.info("selection: %s%s: %s", item.name, beaten, scores)
    worth = ", ".join(f"{name} {value:.2f}" for name, value in selection.worth.items() if value is not None)
    if worth:
        _LOG.info("selection: rank correlation of the signals with Dice on source images in other looks: %s", worth)
    _LOG.info("selection: %s is taken", selection.chosen)
