"""Clips among the cases of a data set: recognised by their files, and taken apart into frames.

A clip is found as one case, so that names, masks and patients are those of clips; its frames become cases at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from medfm_rl.data.clips.reading import ClipFile, find_clip, find_numbered, picture_without_number
from medfm_rl.data.clips.tracings import TRACINGS, traced_frames, video_name
from medfm_rl.data.dicom import DICOM_SUFFIX, modality_and_frames
from medfm_rl.data.images import image_stem, image_suffix
from medfm_rl.data.layouts.cases import CaseFile, Found
from medfm_rl.data.layouts.folder import FoundImage, find_folder, patient_of_entry
from medfm_rl.data.layouts.tree import Entry
from medfm_rl.data.names import case_name, text_of
from medfm_rl.data.segmentations.pictures import is_picture
from medfm_rl.errors import DamagedClipError, DataError, MissingExtraError
from medfm_rl.types import frame_id

STILL = "no clip, and layout clips takes clips alone"
"""Why an image or volume is skipped there."""
_SHOWN = 3
"""Gaps in the numbers of a clip that are named."""


def find_images_and_clips(root: Path) -> Found:
    """Finds images and clips as `find_folder` does; a folder of DICOM clips has a case for each file.

    Raises:
        DataError: As in `find_folder`.
    """
    return find_folder(root, lambda entries: [known for entry in entries for known in _recognise(entry, False)])


def find_clips(root: Path) -> Found:
    """Finds clips alone: files of three axes are planes over time, and folders of numbered pictures are clips.

    Raises:
        DataError: As in `find_folder`.
    """
    found = find_folder(root, _recognise_all)
    cases = [case for case in found.cases if case.clip is not None or case.problem is not None]
    stills = [path for case in found.cases if case.clip is None and case.problem is None for path in case.image_paths]
    skipped = {name: list(paths) for name, paths in found.skipped.items()}
    reasons = {folder: _why_no_clip(folder) for folder in {path.parent for path in stills}}
    for path in stills:
        reason = reasons[path.parent] if is_picture(path) else STILL
        skipped.setdefault(reason, []).append(path)
    gaps = [gap for case in cases if (gap := _gap_of(case)) is not None]
    return replace(found, cases=cases, skipped=skipped, notes=[*found.notes, *gaps])


def expand_clips(cases: Sequence[CaseFile]) -> list[CaseFile]:
    """The cases with the frames of each clip in its place; each has patient, tags and mask of the clip."""
    expanded: list[CaseFile] = []
    for case in cases:
        if case.clip is None or case.problem is not None:
            expanded.append(case)
            continue
        traced = _traced(case)
        for index in range(case.clip.count):
            shared = case.label_path if traced is None or index in traced else None
            label = case.frame_masks.get(index, shared)
            name = case_name(frame_id(case.case_id, index))
            expanded.append(replace(case, case_id=name, frame=index, label_path=label))
    return expanded


def as_clip(case: CaseFile, find: Callable[[], ClipFile | None]) -> CaseFile:
    """A case with the clip that its file holds; a clip that cannot be read is a case with a problem."""
    clip, problem = _look(case.image_paths[0], find, alone=True)
    return replace(case, clip=clip, clip_id=None if clip is None else case.case_id, problem=problem)


def _look(path: Path, find: Callable[[], ClipFile | None], alone: bool) -> tuple[ClipFile | None, str | None]:
    """A clip, or why there is none where one is wanted.

    Args:
        path: Where it lies.
        find: Finds it.
        alone: Whether clips alone are wanted. Else reading a damaged file as an image says what is wrong with it,
            unless it is a clip for certain.
    """
    try:
        return find(), None
    except MissingExtraError as error:
        return None, f"{path}: {error}"
    except DamagedClipError as error:
        return None, str(error)
    except DataError as error:
        return None, str(error) if alone else None


def _traced(case: CaseFile) -> set[int] | None:
    """The frames with a tracing; None where the mask is another file, in which every frame has a place."""
    if case.label_path is None or case.label_path.name != TRACINGS:
        return None
    return set(traced_frames(case.label_path, video_name(case.image_paths[0].name)))


def _why_no_clip(folder: Path) -> str:
    """Why the pictures of a folder are no clip."""
    unnumbered = picture_without_number(folder)
    return STILL if unnumbered is None else f"no clip, since {unnumbered.name} of the same folder has no number"


def _gap_of(case: CaseFile) -> str | None:
    """What is to be known of a clip in whose numbers some are missing; None where there are none."""
    gaps = [] if case.clip is None or case.problem is not None else case.clip.missing_numbers()
    if not gaps:
        return None
    shown = [str(gap[0]) if len(gap) == 1 else f"{gap[0]} to {gap[-1]}" for gap in gaps[:_SHOWN]]
    more = f" and {len(gaps) - _SHOWN} more gaps" if len(gaps) > _SHOWN else ""
    return (
        f"clip {case.case_id}: no frame has the number {', '.join(shown)}{more}; the frames on either side are taken "
        "for neighbours in time"
    )


def _recognise(entry: Entry, alone: bool) -> list[FoundImage]:
    """The image or clip of an entry, or the clips of a folder; where clips are wanted `alone`, planes are times."""
    path, still = entry.path, FoundImage.of(entry)
    if not path.is_dir():
        clip, problem = _look(path, lambda: find_clip(path, planes_over_time=alone), alone)
        return [replace(still, clip=clip, problem=problem)]
    files = _clips_of_folder(path)
    found = []
    for file in files:
        full = case_name("_".join((*entry.parts, text_of(image_stem(file)))))
        clip, problem = _look(file, lambda file=file: find_clip(file), alone)  # type: ignore[misc]
        name = still.name if len(files) == 1 else full
        found.append(replace(still, path=file, name=name, full_name=full, clip=clip, problem=problem))
    return found or [still]


def _clips_of_folder(folder: Path) -> list[Path]:
    """The DICOM files of a folder where one of them has several frames; nothing where it is a series of slices."""
    files: list[Path] = []
    several = False
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        modality, frames = modality_and_frames(path)
        if not frames:
            # What else lies there is not looked at, but a damaged file is one of the clips.
            files += [path] if image_suffix(path) == DICOM_SUFFIX else []
            continue
        files.append(path)
        several |= frames > 1
        # A series has hundreds of files of one frame, and the first of them tells.
        if not several and modality != "US":
            return []
    return files if several else []


def _recognise_all(entries: Sequence[Entry]) -> list[FoundImage]:
    """Images and clips, those pictures put together that lie numbered in a folder of their own."""
    folders: dict[Path, list[Entry]] = {}
    for entry in entries:
        if is_picture(entry.path):
            folders.setdefault(entry.path.parent, []).append(entry)
    clips = [clip for folder, members in folders.items() if (clip := _folder_as_clip(folder, members)) is not None]
    taken = {clip.path for clip in clips}
    others = [entry for entry in entries if entry.path.parent not in taken or not is_picture(entry.path)]
    return [*(known for entry in others for known in _recognise(entry, True)), *clips]


def _folder_as_clip(folder: Path, members: Sequence[Entry]) -> FoundImage | None:
    """A folder of numbered pictures; None where it is no clip."""
    clip, problem = _look(folder, lambda: find_numbered(folder), alone=True)
    if clip is None and problem is None:
        return None
    # "." has no name.
    name = text_of(folder.name if folder.name not in ("", "..") else folder.resolve().name)
    full = "_".join(members[0].parts[:-1]) or name
    # Also of a clip that cannot be read: its masks are no masks without an image.
    shown = sorted(entry.path for entry in members) if clip is None else clip.pictures()
    places = {path: index for index, path in enumerate(shown)}
    pictures = {entry.parts: places[entry.path] for entry in members if entry.path in places}
    return FoundImage(folder, case_name(name), case_name(full), patient_of_entry(members[0]), clip, problem, pictures)
