"""Proposed patients as a page with pictures, and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from medfm_rl.reports.figures import structure_colours
from medfm_rl.reports.pages import embed, render_page
from medfm_rl.types import LabelSchema

_PICTURES = 12
"""Pictures of one patient on the page."""


@dataclass(frozen=True)
class PagePatient:
    """A patient on the page.

    Attributes:
        patient_id: Name of the patient.
        why: In words.
        pictures: Name and PNG file of each of his cases.
    """

    patient_id: str
    why: str
    pictures: Sequence[tuple[str, Path]]


@dataclass(frozen=True)
class PageList:
    """One of the two lists.

    Attributes:
        heading: What it is for.
        note: How it came about.
        drawn: The word for `feedback add --drawn`.
        patients: In the order of review.
    """

    heading: str
    note: str
    drawn: str
    patients: Sequence[PagePatient]


def write_proposals_page(
    path: Path,
    lists: Sequence[PageList],
    notes: Sequence[str],
    problems: Mapping[str, str],
    schema: LabelSchema,
    simulated: bool,
) -> None:
    """Writes the page; it loads nothing from anywhere else.

    Args:
        path: File of the page.
        lists: Audit and informative patients.
        notes: What else is to be known, in words.
        problems: By case: why it could not be used.
        schema: Structures.
        simulated: Whether the images are simulated; the page says so.
    """
    shown = [
        (each, [(patient, _encoded(patient), len(patient.pictures)) for patient in each.patients]) for each in lists
    ]
    render_page(
        path,
        "proposals.html",
        lists=shown,
        notes=notes,
        problems=problems,
        colours=structure_colours(schema),
        simulated=simulated,
    )


def proposals_table(title: str, patients: Sequence[PagePatient]) -> Table:
    """One of the lists for the terminal, one patient a row."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("", justify="right")
    table.add_column("patient", overflow="fold")
    table.add_column("images", justify="right")
    table.add_column("why", overflow="fold")
    for place, patient in enumerate(patients, 1):
        table.add_row(str(place), escape(patient.patient_id), str(len(patient.pictures)), escape(patient.why))
    return table


def _encoded(patient: PagePatient) -> list[tuple[str, str]]:
    return [(name, embed(path.read_bytes())) for name, path in patient.pictures[:_PICTURES]]
