"""Paths as ITK takes them: UTF-8, whatever the locale; it ends the whole process on a name that is none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfm_rl.data.names import file_of_case, is_text, text_of
from medfm_rl.data.text_headers import pixel_files


@contextmanager
def itk_path(path: Path) -> Iterator[str]:
    """Gives the name by which ITK reads or writes a file, or reads a folder of DICOM slices.

    Where the path, or the name of a file in such a folder, is no UTF-8, it is a link that is there as long as the block
    runs; likewise where the ending is not in lower case, which some formats are known by.

    Raises:
        DataError: The file names others, such as the pixels of a .mhd, and cannot be read.
    """
    files = sorted(path.iterdir()) if path.is_dir() else []
    ending = "" if files else "".join(path.suffixes[-2:])
    if all(map(is_text, (path, *files))) and ending == ending.lower():
        yield _as_utf8(path)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, file in enumerate(files):
            _link(folder, f"{number:06d}-{text_of(file.name)[-64:]}", file)
        if files:
            yield name
            return
        if is_text(Path(path.name)) and ending == ending.lower():
            yield _as_utf8(_link(folder, "folder", path.parent) / path.name)
            return
        for file in pixel_files(path) if path.is_file() else ():
            (folder / file.name).symlink_to(file.absolute())
        yield _as_utf8(_link(folder, f"image{text_of(path.name)[-64:].lower()}", path))


def _link(folder: Path, name: str, target: Path) -> Path:
    link = file_of_case(folder, name, "")
    link.symlink_to(target.absolute())
    return link


def _as_utf8(path: Path) -> str:
    return os.fsencode(path).decode("utf-8")
