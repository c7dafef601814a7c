"""EchoNet-Dynamic: `FileList.csv`, `VolumeTracings.csv` and a folder `Videos` of one clip a patient."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

from medfm_rl.data.clips.reading import find_clip
from medfm_rl.data.clips.tracings import TRACINGS, traced_frames, traced_videos, video_name
from medfm_rl.data.files import cannot_be_read
from medfm_rl.data.images import VIDEO_SUFFIXES
from medfm_rl.data.layouts.cases import CaseFile, Found
from medfm_rl.data.layouts.clips import as_clip
from medfm_rl.data.names import case_name, text_of
from medfm_rl.errors import DataError

FILE_LIST, VIDEOS = "FileList.csv", "Videos"
_TAGS = {"EF": "ef", "EDV": "edv", "ESV": "esv", "Split": "split", "FPS": "fps"}
"""Columns of the list that become tags."""
_SHOWN = 3
"""Tracings of no frame that are named."""


def looks_like_echonet(root: Path) -> bool:
    """Whether the list of files and the folder of videos are there."""
    return (root / FILE_LIST).is_file() and (root / VIDEOS).is_dir()


def find_echonet(root: Path) -> Found:
    """Finds the videos of the list, with its ejection fraction, volumes and split as tags, and tracings as masks.

    A video that is listed and missing, or listed twice, is a case with a problem; one that is there and not listed is
    skipped. Tracings of no frame of a listed video are noted.

    Raises:
        DataError: The list or the folder of videos is missing, or the list or the tracings are damaged.
    """
    table = root / FILE_LIST
    rows = _rows(table)
    if not (root / VIDEOS).is_dir():
        raise DataError(f"{root / VIDEOS}: there is no such folder; EchoNet's videos lie there, beside {FILE_LIST}")
    try:
        present = {video_name(path.name): path for path in sorted((root / VIDEOS).iterdir())}
    except OSError as error:
        raise cannot_be_read(root, error) from error
    tracings = root / TRACINGS
    cases, notes = [], []
    for listed, lines in rows.items():
        if not listed:
            notes.append(f"{FILE_LIST}: a row without a FileName is not looked at (line {min(lines)})")
            continue
        row, name, path = next(iter(lines.values())), case_name(text_of(listed)), present.pop(listed, None)
        tags = {tag: row[column].strip() for column, tag in _TAGS.items() if row.get(column)}
        tags = {**tags, **({"split": tags["split"].lower()} if "split" in tags else {})}
        problem = None
        if len(lines) > 1:
            numbers = " and ".join(map(str, lines))
            problem = f"{table}: names {listed} in lines {numbers}; remove all but one of them"
        elif path is None:
            problem = f"{table}: names {listed}, and {root / VIDEOS} holds no such video"
        if problem is not None or path is None:
            cases.append(CaseFile(name, name, () if path is None else (path,), tags=tags, problem=problem))
            continue
        traced = tracings.is_file() and bool(traced_frames(tracings, listed))
        case = CaseFile(name, name, (path,), tracings if traced else None, tags)
        cases.append(as_clip(case, lambda path=path: find_clip(path)))  # type: ignore[misc]
    if tracings.is_file():
        notes += _stray_tracings(tracings, {name for name in rows if name}, cases)
    left = [path for path in present.values() if path.suffix.lower() in VIDEO_SUFFIXES]
    return Found(cases, {f"not in {FILE_LIST}": left} if left else {}, f"the names in {FILE_LIST}", notes)


def _rows(table: Path) -> dict[str, dict[int, dict[str, str]]]:
    """The rows of the list by the name of the video and the line that they end in; "" has those that name none.

    Rows of blanks are left out.

    Raises:
        DataError: It is missing or damaged.
    """
    found: dict[str, dict[int, dict[str, str]]] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if "FileName" not in (reader.fieldnames or ()):
                raise DataError(f"{table}: lacks the column FileName; EchoNet's list has it")
            for row in reader:
                if any(isinstance(value, str) and value.strip() for value in row.values()):
                    found.setdefault(video_name((row["FileName"] or "").strip()), {})[reader.line_num] = row
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: cannot be read as text ({error})") from error
    except OSError as error:
        raise cannot_be_read(table, error) from error
    return found


def _stray_tracings(path: Path, listed: Collection[str], cases: Sequence[CaseFile]) -> list[str]:
    """What is to be known of tracings that are of no frame: of a video that is not listed, or of a frame it has not."""
    notes = []
    unlisted = [f"{video}" for video in traced_videos(path) if video not in listed]
    if unlisted:
        notes.append(
            f"{TRACINGS}: traces videos that {FILE_LIST} does not name, and that are not used: {_some(unlisted)}"
        )
    beyond = [
        f"frame {frame} of {case.image_paths[0].name}, which has the frames 0 to {case.clip.count - 1}"
        for case in cases
        if case.clip is not None and case.label_path is not None
        for frame in traced_frames(path, video_name(case.image_paths[0].name))
        if not 0 <= frame < case.clip.count
    ]
    if beyond:
        notes.append(f"{TRACINGS}: traces frames that there are not, counted from 0: {_some(beyond)}")
    return notes


def _some(found: Sequence[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{'; '.join(found[:_SHOWN])}{more}"
