"""Masks in a folder, by the cases that they are of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from medfm_rl.data.images import image_stem, image_suffix
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError

_LOG = logging.getLogger(__name__)
_MOST_NAMED = 10
"""Masks without an image that are named."""


def find_masks(folder: Path, files: Sequence[CaseFile]) -> dict[str, Path]:
    """Masks of a folder by the case whose name they have; a warning lists those of no case.

    Raises:
        DataError: The folder is missing, holds no mask of any case, or two of the same name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    named: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or image_suffix(path) is None:
            continue
        if image_stem(path) in named:
            raise DataError(f"{folder}: two masks have the name {image_stem(path)}; remove one of them")
        named[image_stem(path)] = path
    masks = {file.case_id: named[file.case_id] for file in files if file.case_id in named}
    if not masks:
        raise DataError(
            f"{folder}: no mask has the name of an image ({files[0].case_id} for one); masks and images share names"
        )
    orphans = sorted(named.keys() - masks.keys())
    if orphans:
        more = f" and {len(orphans) - _MOST_NAMED} more" if len(orphans) > _MOST_NAMED else ""
        shown = ", ".join(named[name].name for name in orphans[:_MOST_NAMED])
        _LOG.warning("%s: masks that have the name of no image are not looked at: %s%s", folder, shown, more)
    return masks
