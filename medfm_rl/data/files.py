"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from medfm_rl.errors import DataError

_TEMPORARY_NAME = re.compile(r"\.unfinished-(\d+)-.+")


@contextmanager
def replace_on_success(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to, and renames it when the block ends without an exception.

    The temporary name ends as `path` does, so that writers which go by the suffix work.

    Raises:
        DataError: The disk is full or the folder cannot be written; what was at `path` is intact.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); what was there is unchanged"
        ) from error
    finally:
        _remove_file(temporary)


@contextmanager
def replace_folder_on_success(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `folder` to fill, and renames it when the block ends without an exception.

    All of it is on the disk before it gets its name, for a folder that is there says that a stage is finished.

    Raises:
        DataError: `folder` exists and is not empty, or cannot be written; what was there is intact.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: already exists and is not empty; give a new folder")
    # Resolved: "." has no name, and a link to another disk stays a link.
    target = folder.resolve()
    temporary = _temporary(target)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _sync_folder(temporary)
        temporary.replace(target)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); nothing was left behind") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Removes what processes that were killed had begun to write below a folder, and could not remove themselves.

    What a process of this machine is still writing stays.

    Raises:
        DataError: It cannot be removed.
    """
    # All of them first: one can lie in another, and is gone with it.
    for path in list(folder.rglob(".unfinished-*")):
        writer = _TEMPORARY_NAME.fullmatch(path.name)
        if writer is None or _is_running(int(writer[1])):
            continue
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{path}: left by a killed run, cannot be removed ({error.strerror or error})") from error


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all."""
    with replace_on_success(path) as temporary:
        # A path may hold bytes that are no UTF-8, and a report of it is text all the same.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_versioned_json(path: Path, newest: int, what: str) -> dict[str, Any]:
    """The content of a JSON file of ours.

    Args:
        path: The file.
        newest: Newest `format` that this version reads; a file without one is of version 0.1.
        what: What the file should hold, for errors, such as "scores of `medfm-rl score`".

    Raises:
        DataError: It is missing or something else, or a newer version of this package wrote it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a file with {what} ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a file with {what}")
    found = content.get("format", 0)
    if not isinstance(found, int) or found > newest:
        raise DataError(
            f"{path}: has format {found!r}, and this version reads {what} up to format {newest}: a newer version of "
            "medfm-rl wrote it; update medfm-rl"
        )
    return content


def append_lines(path: Path, lines: Sequence[Any]) -> None:
    """Adds JSON values to a log, one a line, and waits until they are on the disk.

    Raises:
        DataError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def hash_path(path: Path) -> str:
    """SHA-256 of a file, or of a folder such as a DICOM series.

    Raises:
        DataError: There is neither, or it cannot be read.
    """
    return hash_folder(path) if is_folder(path) else hash_file(path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        DataError: There is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise cannot_be_read(path, error) from error


def is_folder(path: Path) -> bool:
    """Whether a folder is there.

    Raises:
        DataError: The folder that it would lie in may not be looked into.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise cannot_be_read(path, error) from error


def leads_into(path: Path, folder: Path) -> bool:
    """Whether a path leads into a folder. A link in there does, wherever it points: it is read and copied as a file."""
    inner, outer = (Path(os.path.normpath(place.absolute())) for place in (path, folder))
    return outer in inner.parents


def cannot_be_read(path: Path, error: OSError) -> DataError:
    """What to raise where the operating system does not give a file out: it says whose business that is."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: there is no such file")
    if isinstance(error, PermissionError):
        return DataError(f"{path}: you have no permission to read it; ask who owns the file, or change its mode")
    return DataError(f"{path}: cannot be read ({error.strerror or error}); is the disk in order, and connected?")


def hash_folder(folder: Path) -> str:
    """SHA-256 over the relative names and contents of all files below a folder, in the order of their names.

    Hidden files and Python's caches, which file managers and interpreters leave, do not count.

    Raises:
        DataError: One of them cannot be read.
    """
    return hash_listing({path.relative_to(folder).as_posix(): hash_file(path) for path in files_below(folder)})


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; not what Python and file managers leave there."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
    )


def hash_listing(hashes: Mapping[str, str]) -> str:
    """SHA-256 over files whose own are known, as `hash_folder` gives it for a folder that holds these and no others.

    Args:
        hashes: SHA-256 of each file by its name, with `/` between the folders in it.
    """
    lines = (f"{name}:{hashes[name]}\n" for name in sorted(hashes, key=PurePosixPath))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _temporary(path: Path) -> Path:
    """Where to write what is to be at `path`; the name says which process writes it, and is short in any case."""
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".unfinished-{os.getpid()}-{name}-{path.name[-16:]}")


def _is_running(process: int) -> bool:
    # Elsewhere the call ends the process that it asks about.
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Waits until the files and names below a folder are on the disk; what a link points to is not part of it."""
    for place, _, names in os.walk(folder):
        for path in (Path(place) / name for name in names):
            if not path.is_symlink():
                _sync(path)
        _sync(Path(place))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_file(path: Path) -> None:
    # A writer may have made nothing, or the folder may not exist at all.
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
