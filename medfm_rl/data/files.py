"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from textwrap import indent
from typing import Any, BinaryIO

from medfm_rl.data.json_text import parse_json
from medfm_rl.data.locks import LOCK, alone_in, in_turn
from medfm_rl.errors import DataError, DiskError, UserError

_TEMPORARY_NAME = re.compile(r"\.unfinished-[0-9a-f]+-.+")
_LONGEST_ENDING = 50
_BLOCK = 1 << 16


@contextmanager
def replace_on_success(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to, and renames it when the block ends without an exception.

    The temporary name ends as `path` does, so that writers which go by the suffix work.

    Raises:
        DiskError: The disk is full or the folder cannot be written; what was at `path` is intact.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise DiskError(
            f"{path}: cannot be written ({error.strerror or error}); what was there is unchanged"
        ) from error
    finally:
        _remove_file(temporary)


@contextmanager
def replace_folder_on_success(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `folder` to fill, and renames it when the block ends without an exception.

    All of it is on the disk before it gets its name, for a folder that is there says that a stage is finished.

    Raises:
        DataError: `folder` exists and is not empty.
        DiskError: It cannot be written; nothing was left behind.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: already exists and is not empty; give a new folder")
    # Resolved: "." has no name, and a link to another disk stays a link.
    target = folder.resolve()
    temporary = _temporary(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _sync_folder(temporary)
        temporary.replace(target)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written ({error.strerror or error}); nothing was left behind") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch_folder(folder: Path, name: str) -> Iterator[Path]:
    """Gives a new folder within `folder` for what is needed as long as the block runs.

    That of a killed process is what `remove_abandoned` removes.

    Args:
        folder: Is there.
        name: What the folder is for.

    Raises:
        DiskError: It cannot be made.
    """
    temporary = _temporary(folder / name)
    try:
        temporary.mkdir()
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Removes what killed processes had begun to write below a folder, and could not remove themselves.

    The caller keeps others out by `alone_in`, so that nobody is still writing; folders within that have a lock of their
    own are left to who holds that.

    Raises:
        DataError: It cannot be removed.
    """
    for place, folders, names in os.walk(folder):
        if Path(place) != folder and LOCK in names:
            folders.clear()
            continue
        begun = [Path(place, name) for name in (*folders, *names) if _TEMPORARY_NAME.fullmatch(name)]
        folders[:] = [name for name in folders if not _TEMPORARY_NAME.fullmatch(name)]
        for path in begun:
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            except OSError as error:
                raise DataError(
                    f"{path}: left by a killed run, cannot be removed ({error.strerror or error})"
                ) from error


@contextmanager
def alone_writing(folder: Path) -> Iterator[None]:
    """Keeps others out of a folder, as `alone_in` does, and removes what killed processes had begun there.

    Not within another block for the same folder: what that is writing would be taken for abandoned.

    Raises:
        DataError: Another process is at work there, or the folder cannot be written.
    """
    with alone_in(folder):
        remove_abandoned(folder)
        yield


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    with replace_on_success(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all."""
    with replace_on_success(path) as temporary:
        # A path may hold bytes that are no UTF-8, and a report of it is text all the same.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """Writes a UTF-8 text file of parts that need not be in memory at once, whole or not at all."""
    with (
        replace_on_success(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(parts)


def json_with_list(content: Mapping[str, Any], name: str, items: Iterable[Any]) -> Iterator[str]:
    """A JSON object as `write_json` writes it, in parts, with a long list whose items need not be in memory at once.

    Args:
        content: JSON values by name; that of the list is empty.
        name: Of the list.
        items: What is in it, JSON values.
    """
    begin, mark, end = _as_text(content).partition(f"\n  {json.dumps(name)}: []")
    yield begin + mark.removesuffix("]")
    separator = "\n"
    for item in items:
        yield separator + indent(json.dumps(item, indent=2), "    ")
        separator = ",\n"
    yield "]" + end if separator == "\n" else "\n  ]" + end


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, _as_text(content))


def write_versioned_json(path: Path, number: int, content: Mapping[str, Any]) -> None:
    """Writes a JSON object with the number of its format, whole or not at all.

    Args:
        path: The file.
        number: Counted from 2: format 1 is that of version 0.1, which wrote none.
        content: JSON values by name.
    """
    write_text(path, versioned_json(number, content))


def versioned_json(number: int, content: Mapping[str, Any]) -> str:
    """What `write_versioned_json` writes, for a file in a folder that is there whole or not at all."""
    return _as_text({"format": number, **content})


def _as_text(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


def read_versioned_json(path: Path, newest: int, advice: str, error: type[UserError] = DataError) -> dict[str, Any]:
    """Reads a JSON object that says the number of its format, also one of version 0.1, which does not.

    Args:
        path: The file.
        newest: The newest format that the caller knows.
        advice: What to do where the file cannot be used, for the message.
        error: What to raise.

    Returns:
        The object, with its number under "format"; 1 where it has none.

    Raises:
        UserError: The file cannot be read, is no JSON object, or was written by a newer version; of the type `error`.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise error(f"{cannot_be_read(path, problem)}; {advice}") from problem
    except ValueError as problem:
        raise error(f"{path}: not a JSON file ({problem}); {advice}") from problem
    if not isinstance(content, dict):
        raise error(f"{path}: not a JSON object; {advice}")
    return {**content, "format": require_known_format(path, content, newest, error)}


def require_known_format(
    path: Path, content: Mapping[str, Any], newest: int, error: type[UserError] = DataError
) -> int:
    """The number of the format of a JSON object; 1, that of version 0.1, where it has none.

    Raises:
        UserError: It is beyond `newest`, or no number; of the type `error`.
    """
    number = content.get("format", 1)
    if not isinstance(number, int) or number < 1:
        raise error(f'{path}: "format" is {number!r} and must be a number from 1 on')
    if number > newest:
        raise error(f"{path}: format {number} was written by a newer version of medfm-rl; update")
    return number


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Adds JSON objects to a log, one a line, and waits until they are on the disk.

    Any number of processes may do so at once. What a killed one left of a line is removed: a line is there whole or not
    at all.

    Raises:
        DiskError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_turn(path), path.open("ab+") as file:
            _end_last_line(file)
            file.writelines(f"{json.dumps(line)}\n".encode() for line in lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_lines(path: Path, advice: str) -> tuple[list[Mapping[str, Any]], int | None]:
    """Reads a log that `append_lines` wrote.

    Args:
        path: The log.
        advice: What to do where a line is damaged.

    Returns:
        Its JSON objects, and the number of a last line that is not whole, which a killed process or a full disk leaves
        and the next call of `append_lines` removes; None where there is none such.

    Raises:
        DataError: It cannot be read, or a line is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise cannot_be_read(path, error) from error
    ended = lines[-1] == b""
    lines = lines[:-1] if ended else lines
    contents: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            content = parse_json(line.decode("utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it is no JSON object")
        except ValueError as error:
            if number < len(lines) or ended:
                raise DataError(f"{path}: line {number} is damaged ({error}); {advice}") from error
            return contents, number
        contents.append(content)
    return contents, None


def _end_last_line(file: BinaryIO) -> None:
    """Cuts off a last line that is not whole, and ends one that only lacks its end."""
    begin = size = file.seek(0, os.SEEK_END)
    tail = b""
    while begin > 0 and b"\n" not in tail:
        begin = max(0, begin - _BLOCK)
        file.seek(begin)
        tail = file.read(size - begin)
    torn = tail[tail.rfind(b"\n") + 1 :]
    if not torn:
        return
    try:
        whole = isinstance(json.loads(torn), dict)
    except ValueError:
        whole = False
    if whole:
        file.write(b"\n")
    else:
        file.truncate(size - len(torn))


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
    """Where to write what is to be at `path`: a name that no other process has, in whatever container.

    Of a long name the end is kept, for all of it and more would be longer than file systems take.
    """
    return path.with_name(f".unfinished-{secrets.token_hex(8)}-{path.name[-_LONGEST_ENDING:]}")


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
