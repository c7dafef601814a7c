"""Verdicts, grades and preferences of a table, as entries."""

from __future__ import annotations

from pathlib import Path

from medfm_rl.data.mask_files import masks_by_name
from medfm_rl.data.mask_labels import labels_in_masks
from medfm_rl.errors import DataError
from medfm_rl.feedback.entries import BEST_GRADE, DECISIONS, WORST_GRADE, Feedback, Grade, Preference, Verdict
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.masks import Mask
from medfm_rl.feedback.reading.csv_tables import Row, each_row, read_table
from medfm_rl.feedback.reading.shown import Batch, Review, ShownCase, ShownCases
from medfm_rl.progress import Progress, silent


def read_verdicts(shown: ShownCases, table: Path, review: Review, progress: Progress = silent) -> Batch:
    """Reads `case, structure, verdict`: accept, reject, or a grade from 0 to 4; a structure, or all.

    Raises:
        FeedbackError: The table cannot be used, or rows of it; the message says which, and why.
        DataError: It cannot be read.
    """
    rows = read_table(table, ("case", "verdict"), ("structure", "comment"))

    def read(row: Row) -> Batch:
        case, mask = shown.look_at_mask(row.required("case"), row.where)
        structure = _structure(row, mask)
        common = {**review.of(case, row.text("comment")), "mask_sha256": mask.sha256, "structure": structure}
        said = row.required("verdict").casefold()
        entry: Feedback
        if said in DECISIONS:
            entry = Verdict(**common, decision=said)
        elif said.isascii() and said.isdigit() and WORST_GRADE <= int(said) <= BEST_GRADE:
            entry = Grade(**common, grade=int(said))
        else:
            raise FeedbackError(
                f"{row.where}: the verdict on case {case.file.case_id} is {said!r}; it must be accept "
                f"or reject, or a grade from {WORST_GRADE} (useless) to {BEST_GRADE} (nothing to be changed)"
            )
        return Batch((entry,), (mask,))

    return sum(each_row(rows, read, "reading verdicts", "verdicts", progress), Batch())


def read_preferences(
    shown: ShownCases, table: Path, review: Review, labels: str | None = None, progress: Progress = silent
) -> Batch:
    """Reads `case, better, worse`: a mask each, or a folder in which the mask of that case is; a structure, or all.

    Args:
        shown: The images.
        table: The file; paths in it are relative to the folder that it lies in.
        review: What the entries have in common.
        labels: The integers in the masks, as in `data.mask_labels.labels_in_masks`.
        progress: Told how far it is.

    Raises:
        FeedbackError: The table cannot be used, or rows of it; the message says which, and why.
        DataError: It cannot be read.
    """
    rows = read_table(table, ("case", "better", "worse"), ("structure", "comment"))

    folders: dict[Path, dict[str, Path]] = {}

    def mask_at(place: Path, case: ShownCase) -> Mask:
        if place.is_dir() and place not in folders:
            folders[place] = masks_by_name(place)
        path = folders[place].get(case.file.case_id) if place in folders else place
        if path is None:
            raise DataError(f"{place}: there is no mask of case {case.file.case_id} in this folder")
        return case.read_mask(path, shown.schema, labels_in_masks(labels, {case.file.case_id: path}, shown.schema))

    def read(row: Row) -> Batch:
        case = shown.look(row.required("case"), row.where)
        better, worse = (mask_at(table.parent / row.required(name), case) for name in ("better", "worse"))
        entry = Preference(
            **review.of(case, row.text("comment")),
            better_sha256=better.sha256,
            worse_sha256=worse.sha256,
            structure=_structure(row, better),
        )
        return Batch((entry,), (better, worse))

    return sum(each_row(rows, read, "reading preferences", "preferences", progress), Batch())


def _structure(row: Row, mask: Mask) -> str | None:
    """The structure that a row names; None for all.

    Raises:
        FeedbackError: The mask has none of that name.
    """
    found = row.structure()
    if found is not None and found not in mask.schema.structures:
        raise FeedbackError(
            f"{row.where}: there is no structure {found!r}, but {', '.join(mask.schema.structures)}; correct the name, "
            "or write all"
        )
    return found
