"""EchoNet-Dynamic: `FileList.csv`, `VolumeTracings.csv` and a folder `Videos` of one clip a patient."""

from __future__ import annotations

import csv
from pathlib import Path

from medfm_rl.data.clips.reading import find_clip
from medfm_rl.data.clips.tracings import TRACINGS, traced_frames, video_name
from medfm_rl.data.files import cannot_be_read
from medfm_rl.data.images import VIDEO_SUFFIXES
from medfm_rl.data.layouts.cases import CaseFile, Found
from medfm_rl.data.layouts.clips import as_clip
from medfm_rl.data.names import case_name, text_of
from medfm_rl.errors import DataError

FILE_LIST, VIDEOS = "FileList.csv", "Videos"
_TAGS = {"EF": "ef", "EDV": "edv", "ESV": "esv", "Split": "split", "FPS": "fps"}
"""Columns of the list that become tags."""


def looks_like_echonet(root: Path) -> bool:
    """Whether the list of files and the folder of videos are there."""
    return (root / FILE_LIST).is_file() and (root / VIDEOS).is_dir()


def find_echonet(root: Path) -> Found:
    """Finds the videos of the list, with its ejection fraction, volumes and split as tags, and tracings as masks.

    A video that is listed and missing is a case with a problem; one that is there and not listed is skipped.

    Raises:
        DataError: The list is missing or damaged.
    """
    table = root / FILE_LIST
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if "FileName" not in (reader.fieldnames or ()):
                raise DataError(f"{table}: lacks the column FileName; EchoNet's list has it")
            rows = list(reader)
        present = {video_name(path.name): path for path in sorted((root / VIDEOS).iterdir())}
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: cannot be read as text ({error})") from error
    except OSError as error:
        raise cannot_be_read(root, error) from error
    tracings = root / TRACINGS
    cases = []
    for row in rows:
        listed = video_name((row["FileName"] or "").strip())
        path = present.pop(listed, None)
        name = case_name(text_of(listed))
        tags = {tag: row[column].strip() for column, tag in _TAGS.items() if row.get(column)}
        tags = {**tags, **({"split": tags["split"].lower()} if "split" in tags else {})}
        if path is None:
            problem = f"{table}: names {listed}, and {root / VIDEOS} holds no such video"
            cases.append(CaseFile(name, name, (), tags=tags, problem=problem))
            continue
        traced = tracings.is_file() and bool(traced_frames(tracings, listed))
        case = CaseFile(name, name, (path,), tracings if traced else None, tags)
        cases.append(as_clip(case, lambda path=path: find_clip(path)))  # type: ignore[misc]
    left = [path for path in present.values() if path.suffix.lower() in VIDEO_SUFFIXES]
    return Found(cases, {f"not in {FILE_LIST}": left} if left else {}, f"the names in {FILE_LIST}")
