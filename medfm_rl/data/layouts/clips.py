"""Clips among the cases of a data set: recognised by their files, and taken apart into frames.

A clip is found as one case, so that names, masks and patients are those of clips; its frames become cases at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from medfm_rl.data.clips.reading import PICTURES, ClipFile, find_clip, find_numbered
from medfm_rl.data.clips.tracings import TRACINGS, traced_frames, video_name
from medfm_rl.data.dicom import modality_and_frames
from medfm_rl.data.images import image_stem
from medfm_rl.data.layouts.cases import CaseFile, Found
from medfm_rl.data.layouts.folder import find_folder
from medfm_rl.data.names import case_name, text_of
from medfm_rl.errors import DataError, MissingExtraError
from medfm_rl.types import frame_id

STILL = "no clip, and layout clips takes clips alone"
"""Why an image or volume is skipped there."""


def recognise_clips(found: Found, planes_over_time: bool = False) -> Found:
    """What was found, with clips known as such; a folder of DICOM clips becomes a case for each file.

    Args:
        found: As a layout found it.
        planes_over_time: Whether the planes of files of three axes are times.
    """
    cases = [known for case in found.cases for known in _recognise(case, planes_over_time)]
    return replace(found, cases=cases)


def find_clips(root: Path) -> Found:
    """Finds clips alone: files of three axes are planes over time, and folders of numbered pictures are clips.

    Raises:
        DataError: As in `find_folder`.
    """
    found = recognise_clips(_with_folders(find_folder(root)), planes_over_time=True)
    stills = [case for case in found.cases if case.clip is None and case.problem is None]
    skipped = {name: list(paths) for name, paths in found.skipped.items()}
    if stills:
        skipped[STILL] = [path for case in stills for path in case.image_paths]
    return replace(found, cases=[case for case in found.cases if case not in stills], skipped=skipped)


def expand_clips(cases: Sequence[CaseFile]) -> list[CaseFile]:
    """The cases with the frames of each clip in its place; each has patient, tags and mask of the clip."""
    expanded: list[CaseFile] = []
    for case in cases:
        if case.clip is None or case.problem is not None:
            expanded.append(case)
            continue
        traced = _traced(case)
        for index in range(case.clip.count):
            label = case.label_path if traced is None or index in traced else None
            name = case_name(frame_id(case.case_id, index))
            expanded.append(replace(case, case_id=name, frame=index, label_path=label))
    return expanded


def as_clip(case: CaseFile, find: Callable[[], ClipFile | None]) -> CaseFile:
    """A case with the clip that its file holds; a clip that cannot be read is a case with a problem."""
    try:
        clip = find()
    except MissingExtraError as error:
        return replace(case, problem=f"{case.image_paths[0]}: {error}")
    except DataError:
        return case  # Reading it says why.
    return case if clip is None else replace(case, clip=clip, clip_id=case.case_id)


def _traced(case: CaseFile) -> set[int] | None:
    """The frames with a tracing; None where the mask is another file, in which every frame has a place."""
    if case.label_path is None or case.label_path.name != TRACINGS:
        return None
    return set(traced_frames(case.label_path, video_name(case.image_paths[0].name)))


def _recognise(case: CaseFile, planes_over_time: bool) -> list[CaseFile]:
    if case.problem is not None or len(case.image_paths) != 1 or case.clip is not None:
        return [case]
    path = case.image_paths[0]
    if not path.is_dir():
        return [as_clip(case, lambda: find_clip(path, planes_over_time))]
    files = _clips_of_folder(path)
    if not files:
        return [case]
    cases = [
        case if len(files) == 1 else replace(case, case_id=case_name(f"{case.case_id}_{text_of(image_stem(file))}"))
        for file in files
    ]
    return [
        as_clip(replace(of_file, image_paths=(file,)), lambda file=file: find_clip(file))  # type: ignore[misc]
        for file, of_file in zip(files, cases, strict=True)
    ]


def _clips_of_folder(folder: Path) -> list[Path]:
    """The DICOM files of a folder where one of them has several frames; nothing where it is a series of slices."""
    files: list[Path] = []
    several = False
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        modality, frames = modality_and_frames(path)
        if not frames:
            continue
        files.append(path)
        several |= frames > 1
        # A series has hundreds of files of one frame, and the first of them tells.
        if not several and modality != "US":
            return []
    return files if several else []


def _with_folders(found: Found) -> Found:
    """Cases with those pictures put together that lie numbered in a folder of their own."""
    folders: dict[Path, list[CaseFile]] = {}
    for case in found.cases:
        for path in case.image_paths:
            if path.suffix.lower() in PICTURES:
                folders.setdefault(path.parent, []).append(case)
    cases = list(found.cases)
    for folder, members in folders.items():
        try:
            clip = find_numbered(folder)
        except DataError as error:
            problem: str | None = str(error)
            clip = None
        else:
            problem = None
        if clip is None and problem is None:
            continue
        name = case_name(text_of(folder.name))
        whole = CaseFile(name, members[0].patient_id, (folder,), problem=problem, clip=clip, clip_id=name)
        cases = [case for case in cases if case not in members] + [whole]
    return replace(found, cases=cases)
