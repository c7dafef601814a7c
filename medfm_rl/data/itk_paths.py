"""Paths as ITK takes them: UTF-8, whatever the locale; it ends the whole process on a name that is none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from medfm_rl.data.names import file_of_case, is_text, text_of


@contextmanager
def itk_path(path: Path, beside: Sequence[Path] = ()) -> Iterator[str]:
    """Gives the name by which ITK reads or writes a file, or reads a folder of DICOM slices.

    Where the path, or the name of a file in such a folder, is no UTF-8, it is a link that is there as long as the block
    runs; likewise where the ending is not in lower case, which some formats are known by.

    Args:
        path: The file or folder.
        beside: Files that it names and that ITK looks for beside it, such as the pixels of a .mhd.
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
        for file in beside:
            (folder / file.name).symlink_to(file.absolute())
        yield _as_utf8(_link(folder, f"image{text_of(path.name)[-64:].lower()}", path))


def _link(folder: Path, name: str, target: Path) -> Path:
    link = file_of_case(folder, name, "")
    link.symlink_to(target.absolute())
    return link


def _as_utf8(path: Path) -> str:
    return os.fsencode(path).decode("utf-8")
