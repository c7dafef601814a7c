"""The files of a model folder that go with adapted weights into a new one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from medfm_rl.adapters.nnunet.cascade import INNER
from medfm_rl.adapters.nnunet.folder import Fold


def copy_model(source: Path, to: Path, folds: Sequence[Fold], checkpoint: str) -> None:
    """Copies a model folder without what was not adapted, so that nothing mixes the two.

    That are other folds, other checkpoints of a fold, the masks of its validation, and an earlier stage.

    Args:
        source: The folder.
        to: A folder, in which nothing lies in the way.
        folds: Those that were adapted.
        checkpoint: File name of their weights.
    """
    kept = {f"fold_{fold}" for fold in folds}

    def left_out(folder: str, names: list[str]) -> set[str]:
        place = Path(folder)
        if place == source:
            return {name for name in names if (name.startswith("fold_") and name not in kept) or name == INNER}
        if place.parent == source and place.name.startswith("fold_"):
            return {name for name in names if name.startswith("checkpoint_") and name != checkpoint}
        if place.name == "validation":
            # nnU-Net's own export of a model to a zip file asks for the summary.
            return set(names) - {"summary.json"}
        return set()

    shutil.copytree(source, to, dirs_exist_ok=True, ignore=left_out)
