"""Who may write where: locks of the operating system, which end with the process that holds them, however it ends."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from medfm_rl.errors import DataError, DiskError

LOCK = ".medfm-rl.lock"
"""The file in a folder that is locked by who works there. A killed process leaves it, but no lock on it."""
_HOLDER = ".medfm-rl.holder.json"
"""Who has locked it. A file of its own: on network drives a process that opens a locked file and closes it again loses
the lock."""
_LONGEST_WAIT = 120
"""Seconds in which even a slow network drive takes a few lines, or a data base is made."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps others out of a folder while this process writes to it, on every machine that shares the folder.

    Within the block it can be asked for again. A folder that was not there and that the block leaves empty is removed.

    Raises:
        DataError: Another process is at work there, or the folder cannot be made.
    """
    is_new = not folder.exists()
    try:
        with _held(folder, folder / LOCK, folder / _HOLDER):
            yield
    finally:
        if is_new and folder.exists() and is_unused(folder):
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def alone_making(folder: Path) -> Iterator[None]:
    """The same for a folder that gets its name only when it is complete: the lock lies beside it.

    Raises:
        DataError: Another process makes it, or nothing can be written beside it.
    """
    target = folder.resolve()
    lock, holder = (target.with_name(f".{target.name}{name}") for name in (LOCK, _HOLDER))
    with _held(folder, lock, holder):
        yield


def is_unused(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but a lock."""
    return not folder.exists() or {path.name for path in folder.iterdir()} <= {LOCK, _HOLDER}


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Lets one process at a time work on a file, by a lock beside it; the others wait.

    Raises:
        DataError: Another process has kept the file for minutes, or nothing can be written beside it.
    """
    beside = path.with_name(f".{path.name}.lock")
    lock = FileLock(beside, timeout=_LONGEST_WAIT)
    try:
        lock.acquire()
    except Timeout as error:
        raise DataError(f"{path}: another process has kept it for {_LONGEST_WAIT} s; end that one first") from error
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        _release(lock, beside)


@contextmanager
def _held(folder: Path, path: Path, holder: Path) -> Iterator[None]:
    """Holds a lock that another process is not waited for."""
    lock = FileLock(path, blocking=False, is_singleton=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise DataError(
            f"{folder}: another process is at work here ({_describe(holder)}); wait until it ends, or give another "
            "folder"
        ) from error
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        with suppress(OSError):
            # Only for the message: a full disk is met where something is written that counts.
            holder.write_text(json.dumps(_this_process()), encoding="utf-8")
        yield
    finally:
        _release(lock, holder, path)


def _release(lock: BaseFileLock, *files: Path) -> None:
    """Lets go of a lock; the last one who does so within a process removes its files first.

    Who waits for a lock whose file is gone by then makes a new one. Where a system does not remove what is open it
    stays, and does no harm.
    """
    if lock.lock_counter == 1:
        for path in files:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    lock.release()


def _this_process() -> dict[str, object]:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _describe(holder: Path) -> str:
    """Who holds a lock, in words."""
    try:
        found = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not yet said which"
