"""Masks in a folder, by the cases that they are of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfm_rl.data.clips.reading import ClipFile, ClipKind
from medfm_rl.data.images import image_stem
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.layouts.tree import Entry, look_below
from medfm_rl.data.names import text_of
from medfm_rl.errors import DataError

_LOG = logging.getLogger(__name__)
_MOST_NAMED = 10
"""Masks without an image that are named."""


@dataclass(frozen=True)
class MatchedMasks:
    """Masks of a folder.

    Attributes:
        masks: By the case whose name they have.
        alone: Masks that have the name of no case, by name.
        twice: Masks that share a name, of which none is taken, by name.
    """

    masks: Mapping[str, Path]
    alone: Mapping[str, Path]
    twice: Mapping[str, Sequence[Path]]


def find_masks(folder: Path, files: Sequence[CaseFile], every: bool = False) -> dict[str, Path]:
    """Masks of a folder, and of those in it, by the case whose name they have; a warning lists those of no case.

    Of two masks of the same name neither is taken, and a warning names them.

    Args:
        folder: The folder.
        files: The cases.
        every: Refuse what would be warned of: every mask of the folder has to be taken.

    Raises:
        DataError: The folder is missing, or holds no mask of any case.
    """
    found = match_masks(folder, files)
    _tell_of_twice(folder, found.twice, refuse=every)
    if found.alone:
        more = f" and {len(found.alone) - _MOST_NAMED} more" if len(found.alone) > _MOST_NAMED else ""
        shown = ", ".join(path.name for path in list(found.alone.values())[:_MOST_NAMED])
        if every:
            raise DataError(
                f"{folder}: there is no image for {shown}{more}; masks and images share names: name them alike, give "
                "the images, or take these masks away"
            )
        _LOG.warning("%s: masks that have the name of no image are not looked at: %s%s", folder, shown, more)
    return dict(found.masks)


def match_masks(folder: Path, files: Sequence[CaseFile]) -> MatchedMasks:
    """The same, with those that are not taken; nothing is logged.

    Raises:
        DataError: As in `find_masks`.
    """
    single, twice = _by_name(folder, files)
    names = {file.case_id: _name_of_mask(file, single) for file in files}
    masks = {case: single[name] for case, name in names.items() if name is not None}
    if not masks:
        raise DataError(
            f"{folder}: no mask has the name of an image ({files[0].case_id} for one); masks and images share names"
        )
    alone = {name: single[name] for name in sorted(single.keys() - set(names.values()))}
    return MatchedMasks(masks, alone, twice)


def masks_by_name(folder: Path) -> dict[str, Path]:
    """The masks of a folder, and of those in it, by the name of the case that each is of, whatever cases there are.

    Raises:
        DataError: There is no such folder, or two masks have one name.
    """
    single, twice = _by_name(folder, ())
    _tell_of_twice(folder, twice, refuse=True)
    return single


def _by_name(folder: Path, files: Sequence[CaseFile]) -> tuple[dict[str, Path], dict[str, Sequence[Path]]]:
    """The masks of a folder that have a name of their own, and those that share one."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of masks")
    tree = look_below(folder)
    entries = tree.masks or tree.images
    beside = _beside_pictures(entries, files)
    named: dict[str, list[Path]] = {}
    for entry in entries:
        named.setdefault(beside.get(entry.path, entry.name), []).append(entry.path)
    single = {name: paths[0] for name, paths in named.items() if len(paths) == 1}
    return single, {name: paths for name, paths in named.items() if len(paths) > 1}


def _tell_of_twice(folder: Path, twice: Mapping[str, Sequence[Path]], refuse: bool = False) -> None:
    for name, paths in twice.items():
        both = f"two masks have the name {name} ({', '.join(path.name for path in paths)})"
        if refuse:
            raise DataError(f"{folder}: {both}; remove one of them")
        _LOG.warning("%s: %s, and neither is taken; remove one of them", folder, both)


def _beside_pictures(entries: Sequence[Entry], files: Sequence[CaseFile]) -> dict[Path, str]:
    """The cases of masks that lie in a folder, and have a name, as the picture of a frame does.

    Numbers of pictures may begin with 1, and those of frames do with 0: by its name alone a mask could be that of
    another frame.
    """
    clips: dict[ClipFile, dict[int, str]] = {}
    for file in files:
        if file.clip is not None and file.frame is not None and file.clip.kind is ClipKind.FOLDER:
            clips.setdefault(file.clip, {})[file.frame] = file.case_id
    places: dict[tuple[str, ...], list[ClipFile]] = {}
    for clip in clips:
        folders = tuple(map(text_of, clip.path.absolute().parts))
        for begin in range(len(folders)):
            places.setdefault(folders[begin:], []).append(clip)
    cases = {
        clip: {text_of(image_stem(path)): of_frame.get(index) for index, path in enumerate(clip.pictures())}
        for clip, of_frame in clips.items()
    }
    found = {}
    for entry in entries:
        near = places.get(entry.parts[:-1], [])
        case = cases[near[0]].get(entry.parts[-1]) if len(near) == 1 else None
        if case is not None:
            found[entry.path] = case
    return found


def _name_of_mask(file: CaseFile, single: Mapping[str, Path]) -> str | None:
    """The name that the mask of a case has: its own, or that of its clip, in whose mask every frame has a place."""
    return next((name for name in (file.case_id, file.clip_id) if name is not None and name in single), None)
