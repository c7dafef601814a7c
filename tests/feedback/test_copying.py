"""A copy of a store that is in use holds all of one moment, or is not there."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from sqlalchemy import text
from support.commands import run_command
from support.feedback_entries import CORRECTED, SHOWN, correction, ef

from medfm_rl.errors import StorageError
from medfm_rl.feedback import FeedbackError, FeedbackStore
from medfm_rl.feedback.connection import connect
from medfm_rl.feedback.copying import copy_store

MASKS = [SHOWN, CORRECTED]


def test_a_copy_of_a_store_that_is_open_holds_what_was_added_last(tmp_path: Path) -> None:
    path, to = tmp_path / "feedback.sqlite", tmp_path / "copies" / "monday.sqlite"
    FeedbackStore.create(path).close()
    # A desk keeps its connections: what is added stays in the write-ahead log.
    kept = connect(path, keep=True)
    with kept.connect() as reader:
        reader.execute(text("SELECT 1 FROM feedback_entries")).all()
        with FeedbackStore.open(path) as store:
            store.add([correction(), ef()], MASKS)
            state = store.state_hash()
        path.chmod(0o600)
        shutil.copy(path, tmp_path / "by-hand.sqlite")
        assert copy_store(path, to) == len(MASKS)
    kept.dispose()
    assert FeedbackStore.open(tmp_path / "by-hand.sqlite").history() == []
    assert sorted(each.name for each in to.parent.iterdir()) == ["monday.sqlite", "monday.sqlite.masks"]
    assert to.stat().st_mode & 0o777 == 0o600
    path.unlink()
    shutil.rmtree(tmp_path / "feedback.sqlite.masks")
    copied = FeedbackStore.open(to)
    assert copied.state_hash() == state
    assert [copied.mask(mask.sha256).sha256 for mask in MASKS] == [mask.sha256 for mask in MASKS]
    copied.add([ef(60, "p2")])


def test_a_copy_that_was_cut_off_is_not_there_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, to = tmp_path / "feedback.sqlite", tmp_path / "copy.sqlite"
    with FeedbackStore.create(path) as store:
        store.add([correction()], MASKS)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("medfm_rl.data.files._sync", full)
        with pytest.raises(StorageError, match="No space left on device"):
            copy_store(path, to)
    assert not to.exists()
    assert copy_store(path, to) == len(MASKS)
    with pytest.raises(FeedbackError, match="is there already"):
        copy_store(path, to)


def test_a_damaged_mask_is_told_when_it_can_still_be_mended(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    with FeedbackStore.create(path) as store:
        store.add([correction()], MASKS)
    next((tmp_path / "feedback.sqlite.masks").rglob("*.nii.gz")).write_bytes(b"")
    with pytest.raises(FeedbackError, match="put the masks of the store back from a copy"):
        copy_store(path, tmp_path / "copy.sqlite")
    assert not (tmp_path / "copy.sqlite").exists()


def test_the_command_says_what_it_copied_and_what_it_cannot(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    with FeedbackStore.create(path) as store:
        store.add([correction()], MASKS)
    done = run_command("feedback", "copy", path, "--to", tmp_path / "copy.sqlite", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 entries and 2 masks" in done.stdout
    none = run_command("feedback", "copy", tmp_path / "none.sqlite", "--to", tmp_path / "other.sqlite", folder=tmp_path)
    server = run_command("feedback", "copy", "postgresql://u@h/d", "--to", tmp_path / "other.sqlite", folder=tmp_path)
    assert (none.returncode, server.returncode) == (2, 2)
    assert "there is no store" in none.stderr
    assert "pg_dump" in server.stderr
