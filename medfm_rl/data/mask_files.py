"""Masks in a folder, by the cases that they are of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.layouts.tree import look_below
from medfm_rl.errors import DataError

_LOG = logging.getLogger(__name__)
_MOST_NAMED = 10
"""Masks without an image that are named."""


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
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    named: dict[str, Path] = {}
    twice: set[str] = set()
    tree = look_below(folder)
    for entry in tree.masks or tree.images:
        name, path = entry.name, entry.path
        if name in named and every:
            raise DataError(
                f"{folder}: two masks have the name {name} ({named[name].name}, {path.name}); remove one of them"
            )
        if name in named:
            _LOG.warning(
                "%s: two masks have the name %s (%s, %s), and neither is taken; remove one of them",
                folder,
                name,
                named[name].name,
                path.name,
            )
            twice.add(name)
        named[name] = path
    named = {name: path for name, path in named.items() if name not in twice}
    masks = {file.case_id: named[file.case_id] for file in files if file.case_id in named}
    if not masks:
        raise DataError(
            f"{folder}: no mask has the name of an image ({files[0].case_id} for one); masks and images share names"
        )
    orphans = sorted(named.keys() - masks.keys())
    if orphans:
        more = f" and {len(orphans) - _MOST_NAMED} more" if len(orphans) > _MOST_NAMED else ""
        shown = ", ".join(named[name].name for name in orphans[:_MOST_NAMED])
        if every:
            raise DataError(
                f"{folder}: there is no image for {shown}{more}; masks and images share names: name them alike, give "
                "the images, or take these masks away"
            )
        _LOG.warning("%s: masks that have the name of no image are not looked at: %s%s", folder, shown, more)
    return masks
