"""A store as a folder of plain files, for people and for other stores."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfm_rl.data.files import (
    cannot_be_read,
    read_versioned_json,
    replace_folder_on_success,
    write_text,
    write_versioned_json,
)
from medfm_rl.feedback.entries import Entry, Feedback, masks_of
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.mask_places import described
from medfm_rl.feedback.masks import Mask, geometry_from_text, read_mask, write_mask
from medfm_rl.feedback.standing import Standing, standing, state_hash
from medfm_rl.feedback.store import FeedbackStore
from medfm_rl.feedback.tables import ENTRY_COLUMNS, as_entry, as_row
from medfm_rl.progress import Progress, silent

SUMMARY_FILE, ENTRIES_FILE, MASKS_FILE, MASK_FOLDER = "export.json", "entries.csv", "masks.csv", "masks"
IN_FORCE = "in force"
_FORMAT = 2
_STATE = "state"
_NUMBERS = ("value", "uncertainty")
_ADVICE = "give a folder that `medfm-rl feedback export` wrote"


@dataclass(frozen=True)
class Export:
    """What `export_store` wrote, to be given to `FeedbackStore.merge`.

    Attributes:
        folder: The folder.
        history: All entries.
    """

    folder: Path
    history: tuple[Entry, ...]

    def masks(self) -> Iterator[Mask]:
        """The masks one by one, checked by their hashes.

        Raises:
            FeedbackError: One is missing or damaged.
            DataError: The list of them cannot be read.
        """
        for row in _read_csv(self.folder / MASKS_FILE):
            try:
                place = json.loads(row["shape"]), json.loads(row["names"]), geometry_from_text(row["geometry"])
            except (KeyError, ValueError, TypeError) as error:
                raise FeedbackError(
                    f"{self.folder / MASKS_FILE}: is damaged ({error}); export the store again"
                ) from error
            yield read_mask(_mask_file(self.folder, row["sha256"]), row["sha256"], *place)


def export_store(store: FeedbackStore, folder: Path, progress: Progress = silent) -> str:
    """Writes all that a store holds: `entries.csv`, `masks.csv`, the masks as NIfTI by their hashes, and `export.json`.

    Args:
        store: The store.
        folder: A new folder; it is there whole or not at all.
        progress: Told how far it is.

    Returns:
        `FeedbackStore.state_hash` of what was written.

    Raises:
        DataError: The folder is not empty, or cannot be written.
        FeedbackError: A mask is damaged, or the store does not answer.
    """
    history = store.history()
    found = standing(history)
    names = sorted({name for entry in history for name in masks_of(entry)})
    with replace_folder_on_success(folder) as temporary:
        rows = []
        for done, name in enumerate(names, 1):
            mask = store.mask(name)
            write_mask(_mask_file(temporary, name), mask)
            rows.append({**described(mask), "file": f"{MASK_FOLDER}/{name}.nii.gz"})
            progress("exporting masks", done, len(names))
        columns = ("sha256", "labels_sha256", "shape", "names", "geometry", "file")
        write_text(temporary / MASKS_FILE, _as_csv(columns, rows))
        entries = [{**as_row(entry), _STATE: state_of(entry, found)} for entry in history]
        write_text(temporary / ENTRIES_FILE, _as_csv((*ENTRY_COLUMNS, _STATE), entries))
        digest = state_hash(found.in_force)
        summary = {"entries": len(history), "in_force": len(found.in_force), "masks": len(names), "state_hash": digest}
        write_versioned_json(temporary / SUMMARY_FILE, _FORMAT, summary)
    return digest


def read_export(folder: Path) -> Export:
    """Reads what `export_store` wrote; the masks are read when they are asked for.

    Raises:
        FeedbackError: It is no export, cut off, changed or damaged; the message names the line.
        DataError: It cannot be read.
    """
    summary = read_versioned_json(folder / SUMMARY_FILE, _FORMAT, _ADVICE, FeedbackError)
    path = folder / ENTRIES_FILE
    history, in_force = [], []
    for number, row in enumerate(_read_csv(path), 2):
        try:
            values: dict[str, Any] = {name: row[name] or None for name in ENTRY_COLUMNS}
            values["comment"] = row["comment"]
            values |= {name: float(row[name]) for name in _NUMBERS if row[name]}
            if row["grade"]:
                values["grade"] = int(row["grade"])
            history.append(as_entry(values))
            if row[_STATE] == IN_FORCE:
                in_force.append(history[-1])
        except (KeyError, ValueError, TypeError) as error:
            raise FeedbackError(f"{path}, entry {number - 1}: is damaged ({error}); export the store again") from error
    _require_whole(path, history, [entry for entry in in_force if isinstance(entry, Feedback)], summary)
    return Export(folder, tuple(history))


def _require_whole(
    path: Path, history: Sequence[Entry], in_force: Sequence[Feedback], summary: Mapping[str, Any]
) -> None:
    """Refuses a table that is not the one that `export.json` was written with.

    What was in force is taken from the table, and not found out again: the version that wrote it may have told it by
    other rules.

    Raises:
        FeedbackError: Entries are missing, or say something else.
    """
    if len(history) != summary.get("entries"):
        raise FeedbackError(
            f"{path}: has {len(history)} entries, and {SUMMARY_FILE} says {summary.get('entries')}: it was cut off or "
            "changed; copy the folder again, or export the store again"
        )
    if state_hash(in_force) != summary.get("state_hash"):
        raise FeedbackError(
            f"{path}: does not say what {SUMMARY_FILE} was written with, by the hash of the state: it was changed; "
            "copy the folder again, or export the store again"
        )


def state_of(entry: Entry, found: Standing) -> str:
    """Whether an entry is in force, and what took it out of it."""
    if entry.id in found.removed:
        return f"removed by {found.removed[entry.id].id}"
    if entry.id in found.replaced:
        return f"replaced by {found.replaced[entry.id].id}"
    return IN_FORCE


def _mask_file(folder: Path, sha256: str) -> Path:
    return folder / MASK_FOLDER / f"{sha256}.nii.gz"


def _as_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    except OSError as error:
        raise cannot_be_read(path, error) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FeedbackError(f"{path}: is damaged ({error}); {_ADVICE}") from error
