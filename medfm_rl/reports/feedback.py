"""What a feedback store holds, as tables for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from medfm_rl.feedback.agreement import PairAgreement
from medfm_rl.feedback.entries import Entry, Feedback
from medfm_rl.feedback.exporting import state_of
from medfm_rl.feedback.standing import Standing, describe
from medfm_rl.feedback.tables import as_row

SHORT = 8
"""Digits of an id that are shown."""


def entries_table(entries: Sequence[Entry], found: Standing, full_ids: bool, title: str) -> Table:
    """Entries, one a row.

    Args:
        entries: Those to show.
        found: What is in force, and what took the rest out of it.
        full_ids: Whether to show ids in full.
        title: Above the table.
    """
    columns = ("id", "time (UTC)", "reviewer", "patient", "case", "says", "drawn", "state")
    table = Table(title=escape(title))
    for name in columns:
        table.add_column(name, overflow="fold")
    for entry in entries:
        patient, case, drawn = (
            (entry.patient, entry.case or "", entry.drawn) if isinstance(entry, Feedback) else ("", "", "")
        )
        said = describe(entry) + (f" ({entry.comment})" if entry.comment else "")
        values = (
            entry.id if full_ids else entry.id[:SHORT],
            f"{entry.time:%Y-%m-%d %H:%M}",
            entry.reviewer,
            patient,
            case,
            said,
            drawn,
            _short(state_of(entry, found)),
        )
        table.add_row(*map(escape, values))
    return table


def entry_as_json(entry: Entry, found: Standing) -> dict[str, Any]:
    """An entry as JSON values: its columns that are not empty, and its state."""
    kept = {name: value for name, value in as_row(entry).items() if value is not None}
    return {**kept, "state": state_of(entry, found)}


def agreement_table(pairs: Sequence[PairAgreement]) -> Table:
    """Mean Dice of each two reviewers by structure, over the images that both have said something of."""
    structures = list(dict.fromkeys(name for pair in pairs for name in pair.dice))
    table = Table(title="Agreement of reviewers: mean Dice over the images that both have a mask of")
    for name in ("reviewers", "images", *structures):
        table.add_column(escape(name))
    for names in dict.fromkeys(pair.reviewers for pair in pairs):
        of_two = [pair for pair in pairs if pair.reviewers == names]
        means = [f"{np.mean([pair.dice[name] for pair in of_two if name in pair.dice]):.3f}" for name in structures]
        table.add_row(escape(" and ".join(names)), str(len(of_two)), *means)
    return table


def _short(state: str) -> str:
    """A state with an id cut short."""
    words = state.split(" by ")
    return state if len(words) < 2 else f"{words[0]} by {words[1][:SHORT]}"
