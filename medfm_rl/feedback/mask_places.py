"""Where the pixels of masks lie: in a folder beside a SQLite file, or in the rows of a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol, final

from sqlalchemy import RowMapping

from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.masks import Mask, geometry_as_text, geometry_from_text, read_mask, write_mask


class MaskPlace(Protocol):
    """Where the pixels of masks lie."""

    def keep(self, mask: Mask) -> bytes | None:
        """Sees to it that a mask will be there, and gives what goes into its row."""

    def load(self, row: RowMapping) -> Mask:
        """The mask of a row, checked by its hash."""


def mask_folder_of(store: Path) -> Path:
    """Where the masks of a store lie that is a file."""
    return store.with_name(f"{store.name}.masks")


@final
class MaskFolder:
    """A folder of NIfTI files, named by hash: `ab/cdef....nii.gz`.

    Args:
        folder: The folder; made with the first mask.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        """The file of a mask."""
        return self.folder / sha256[:2] / f"{sha256[2:]}.nii.gz"

    def keep(self, mask: Mask) -> None:
        """Writes the file, unless it is there; it is on the disk when this returns.

        Raises:
            StoreError: It cannot be written.
            FeedbackError: One that is there is damaged.
        """
        path = self.path(mask.sha256)
        if path.exists():
            read_mask(path, mask.sha256, mask.shape, mask.names, mask.geometry)
            return
        try:
            write_mask(path, mask)
        except FeedbackError as error:
            raise type(error)(f"{error}. Nothing was added to the store; repeat the call then") from error

    def load(self, row: RowMapping) -> Mask:
        """Reads the file of a row.

        Raises:
            FeedbackError: It is missing or damaged.
        """
        sha256 = str(row["sha256"])
        geometry = geometry_from_text(row["geometry"])
        return read_mask(self.path(sha256), sha256, json.loads(row["shape"]), json.loads(row["names"]), geometry)


@final
class MaskRows:
    """The rows themselves: a server may have no disk in common with who asks it."""

    def keep(self, mask: Mask) -> bytes:
        return mask.packed

    def load(self, row: RowMapping) -> Mask:
        """Unpacks the content of a row.

        Raises:
            FeedbackError: It is damaged.
        """
        geometry = geometry_from_text(row["geometry"])
        return Mask.unpack(row["sha256"], json.loads(row["shape"]), json.loads(row["names"]), geometry, row["content"])


def described(mask: Mask) -> dict[str, str]:
    """What a row says of a mask besides its pixels."""
    return {
        "sha256": mask.sha256,
        "labels_sha256": mask.labels_sha256,
        "shape": json.dumps(mask.shape),
        "names": json.dumps(mask.names),
        "geometry": geometry_as_text(mask.geometry),
    }
