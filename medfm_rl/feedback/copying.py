"""A copy of a store that may be in use: what to keep against the day on which a disk breaks."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import select

from medfm_rl.data.files import replace_on_success
from medfm_rl.feedback.connection import answering, connect, is_url
from medfm_rl.feedback.errors import FeedbackError, StoreError
from medfm_rl.feedback.mask_places import MaskFolder, mask_folder_of
from medfm_rl.feedback.store import FeedbackStore
from medfm_rl.feedback.tables import MASKS
from medfm_rl.progress import Progress, silent


def copy_store(where: Path | str, to: Path, progress: Progress = silent) -> int:
    """Copies a store as it is at one moment, whoever writes to it meanwhile, with the tables of a desk and the masks.

    To copy the file is not enough while a process has it open: what was added last lies beside it, in the write-ahead
    log. The copy is a store like any other. It is there when it is whole: its masks come first, each checked by its
    hash, and a call that was interrupted is repeated.

    Args:
        where: The store, a SQLite file.
        to: File of the copy; its masks lie beside it.
        progress: Told how many masks there are.

    Returns:
        How many masks there are.

    Raises:
        FeedbackError: There is no store, it is on a server, one of its masks is damaged, or a file is there already.
        StoreError: It cannot be read, or the copy cannot be written.
        DiskError: The same of the copy's own file.
    """
    if is_url(where):
        raise FeedbackError("a store in PostgreSQL is copied by the server's own means (`pg_dump`), masks included")
    if to.exists():
        raise FeedbackError(f"{to}: is there already; give the copy a name of its own, such as one with the date")
    source, folder = Path(where), MaskFolder(mask_folder_of(to))
    with FeedbackStore.open(source) as store, replace_on_success(to) as temporary:
        _copy_tables(source, temporary)
        with answering(str(to), writes=False), connect(temporary).connect() as connection:
            named = connection.execute(select(MASKS.c.sha256)).scalars().all()
        # A mask is there before an entry names it, and never changes: those that the copy names are all there by now.
        for number, sha256 in enumerate(named, 1):
            folder.keep(store.mask(sha256))
            progress("copying masks", number, len(named))
    return len(named)


def _copy_tables(source: Path, to: Path) -> None:
    try:
        with answering(str(source), writes=False), connect(source).connect() as original:
            raw: Any = original.connection.driver_connection
            with closing(sqlite3.connect(to)) as copy:
                raw.backup(copy)
        # Who may not read the store may not read its copy.
        shutil.copymode(source, to)
    except sqlite3.Error as error:
        raise StoreError(f"{source}: cannot be copied ({error}); see whether a disk is full or read-only") from error
