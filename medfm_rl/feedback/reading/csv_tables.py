"""Tables of reviewers and reports: CSV of any spreadsheet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from medfm_rl.data.files import cannot_be_read
from medfm_rl.errors import UserError
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.reading.shown import require_no_problems
from medfm_rl.progress import Progress

T = TypeVar("T")
_DELIMITERS = (",", ";", "\t")
ALL = "all"
"""What stands for every structure in a table."""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        where: File and line, for messages.
        values: Text by column, in lower case and without blanks around it.
        decimal: What separates decimals there.
    """

    where: str
    values: Mapping[str, str]
    decimal: str = "."

    def text(self, column: str) -> str:
        """The text of a column; empty where the table does not have it."""
        return self.values.get(column, "")

    def required(self, column: str) -> str:
        """The same, where it has to be there.

        Raises:
            FeedbackError: It is not.
        """
        found = self.text(column)
        if not found:
            raise FeedbackError(f"{self.where}: {column} is empty; fill it in, or take the row out")
        return found

    def number(self, column: str) -> float | None:
        """A finite number; None where the column is empty.

        Raises:
            FeedbackError: It is none.
        """
        found = self.text(column)
        if not found:
            return None
        try:
            value = float(found.replace(",", ".") if self.decimal == "," else found)
        except ValueError:
            value = math.nan
        # Python reads 1_0 as 10; a table has no such numbers, and something else was meant.
        if "_" in found or not math.isfinite(value):
            raise FeedbackError(f"{self.where}: {column} is {found!r}, and must be a number, such as 55{self.decimal}5")
        return value

    def structure(self) -> str | None:
        """The structure that is meant; None for all."""
        found = self.text("structure")
        return None if found.casefold() in ("", ALL) else found


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """Reads a table with a line of names at the top, separated by comma, semicolon or tab.

    With a semicolon or tab, a comma separates decimals.

    Args:
        path: The file, in UTF-8.
        columns: Columns that have to be there.
        optional: Columns that may be there.

    Raises:
        FeedbackError: It is no such table, has no row, lacks a column, or has one that is not known.
        DataError: It cannot be read.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise cannot_be_read(path, error) from error
    except UnicodeDecodeError as error:
        raise FeedbackError(f"{path}: is no text in UTF-8; save the table as CSV in UTF-8") from error
    first = content.splitlines()[0] if content.strip() else ""
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise FeedbackError(f"{path}, line {reader.line_num}: is no CSV ({error}); save the table again") from error
    names = [name.strip().casefold() for name in lines[0][1]] if lines else []
    _require_columns(path, names, columns, optional)
    rows = []
    for number, line in lines[1:]:
        if not any(value.strip() for value in line):
            continue
        if len(line) != len(names):
            raise FeedbackError(
                f"{path}, line {number}: has {len(line)} values, and the first line names {len(names)} columns; put "
                "text that holds the separator into quotes"
            )
        values = {name: value.strip() for name, value in zip(names, line, strict=True)}
        rows.append(Row(f"{path}, line {number}", values, "." if delimiter == "," else ","))
    if not rows:
        raise FeedbackError(f"{path}: has no row below the names of the columns; fill it in")
    return rows


def each_row(rows: Sequence[Row], read: Callable[[Row], T], stage: str, what: str, progress: Progress) -> list[T]:
    """Reads rows one by one, and says of all that cannot be used why not.

    Raises:
        FeedbackError: Some cannot be used.
    """
    found: list[T] = []
    problems: dict[str, str] = {}
    for done, row in enumerate(rows, 1):
        try:
            found.append(read(row))
        except UserError as error:
            problems[row.where] = str(error) if str(error).startswith(row.where) else f"{row.where}: {error}"
        progress(stage, done, len(rows))
    require_no_problems(problems, len(rows), what)
    return found


def _require_columns(path: Path, names: Sequence[str], columns: Sequence[str], optional: Sequence[str]) -> None:
    known = f"needed are {', '.join(columns)}" + (f", and there can be {', '.join(optional)}" if optional else "")
    missing = [column for column in columns if column not in names]
    if missing:
        raise FeedbackError(f"{path}: the first line names no column {missing[0]}; {known}")
    strange = [name for name in names if name not in (*columns, *optional)]
    if strange:
        raise FeedbackError(f"{path}: column {strange[0]!r} is not known; {known}. Take it out, or rename it")
    if len(set(names)) < len(names):
        raise FeedbackError(f"{path}: a column is there twice; {known}")
