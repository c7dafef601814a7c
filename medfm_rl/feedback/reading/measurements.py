"""Measurements of reports, as entries."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from medfm_rl.feedback.entries import Measurement
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.reading.csv_tables import Row, each_row, read_table
from medfm_rl.feedback.reading.shown import Batch, Review, ShownCases
from medfm_rl.feedback.units import in_own_unit, known_name
from medfm_rl.progress import Progress, silent

_OF_ONE_STRUCTURE = ("area", "volume")


def read_measurements(
    table: Path,
    review: Review,
    shown: ShownCases | None = None,
    patients: Collection[str] | None = None,
    progress: Progress = silent,
    structures: Sequence[str] = (),
) -> Batch:
    """Reads `patient, name, value, unit`, with `uncertainty` (a standard deviation), `structure` and `case` if given.

    Values are brought to the unit of their quantity (`units.QUANTITIES`).

    Args:
        table: The file.
        review: What the entries have in common; no run made a measurement, so the run's hash is left out.
        shown: The images, for rows that name a case.
        patients: Those that are known; None where nobody knows which there are.
        progress: Told how far it is.
        structures: Those that there are; empty where nobody knows which.

    Raises:
        FeedbackError: The table cannot be used, or rows of it; the message says which, and why.
        DataError: It cannot be read.
    """
    columns, optional = ("patient", "name", "value", "unit"), ("uncertainty", "structure", "case", "comment")
    rows = read_table(table, columns, optional)

    def read(row: Row) -> Measurement:
        patient = row.required("patient")
        if patients is not None and patient not in patients:
            near = get_close_matches(patient, sorted(patients), n=1)
            raise FeedbackError(
                f"{row.where}: there is no image of patient {patient}{f'; is {near[0]} meant?' if near else ''}"
                f"{'' if near else '; correct the name, or give the images (--images, --patient-pattern)'}"
            )
        name, unit = known_name(row.required("name")), row.text("unit")
        value, uncertainty = row.number("value"), row.number("uncertainty")
        if value is None:
            raise FeedbackError(f"{row.where}: value is empty; fill it in, or take the row out")
        kept, own = in_own_unit(name, value, unit)
        fields: dict[str, Any] = {
            "reviewer": review.reviewer,
            "drawn": review.drawn,
            "comment": row.text("comment") or review.comment,
            "patient": patient,
        }
        if row.text("case"):
            fields |= _of_case(row, patient, review, shown)
        return Measurement(
            **fields,
            name=name,
            value=kept,
            unit=own,
            uncertainty=None if uncertainty is None else in_own_unit(name, uncertainty, unit)[0],
            structure=_structure(row, name, structures),
        )

    return Batch(tuple(each_row(rows, read, "reading measurements", "measurements", progress)))


def _structure(row: Row, name: str, structures: Sequence[str]) -> str | None:
    """The structure that was measured; None where the quantity says it, or there is but one.

    Raises:
        FeedbackError: There is none of that name, or nobody says which of several it is.
    """
    found = row.structure()
    if not structures:
        return found
    listed = ", ".join(structures)
    if found is not None and found not in structures:
        near = get_close_matches(found, structures, n=1)
        meant = f"is {near[0]} meant?" if near else "correct the name"
        raise FeedbackError(f"{row.where}: there is no structure {found!r}, but {listed}; {meant}")
    if found is None and name in _OF_ONE_STRUCTURE and len(structures) > 1:
        raise FeedbackError(
            f"{row.where}: does not say which structure the {name} is of; name it in a column structure ({listed})"
        )
    return found


def _of_case(row: Row, patient: str, review: Review, shown: ShownCases | None) -> dict[str, str]:
    """The fields that say which image was measured.

    Raises:
        FeedbackError: No image has that name, or it is of another patient.
    """
    if shown is None:
        raise FeedbackError(f"{row.where}: names a case; give the images (--images)")
    case = shown.look(row.text("case"), row.where)
    if case.file.patient_id != patient:
        raise FeedbackError(
            f"{row.where}: case {case.file.case_id} is of patient {case.file.patient_id}, and not of {patient}; "
            "correct the row, or say how patients are named (--patient-pattern)"
        )
    found = review.of(case)
    return {name: found[name] for name in ("case", "image_sha256")}
