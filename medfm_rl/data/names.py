"""Names of cases, made from the names of files: always text, the same for equal letters, and short enough for a file.

A file name is a row of bytes that need not be text, and text that looks the same can be spelled in several ways: macOS
writes the u of a name with two dots as two characters, and everybody else as one.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path

LONGEST = 240
"""Bytes of a case name: with the suffix of a mask, a record or a picture it stays below the 255 of file systems."""
_NO_TEXT = re.compile("[\ud800-\udfff]")
"""What no text holds: how Python keeps a byte of a file name that is no UTF-8, and halves of characters in JSON."""
_NO_NAME = re.compile("[/\0]")


def case_name(text: str) -> str:
    """A case name of some text: in Unicode's normal form C, without what no file name may hold.

    One of more than `LONGEST` bytes is cut, and ends with a hash of all of it, so that two that begin alike stay two.
    """
    name = unicodedata.normalize("NFC", _NO_NAME.sub("_", _NO_TEXT.sub(_in_hexadecimal, text)))
    content = name.encode()
    if len(content) <= LONGEST:
        return name
    mark = f"~{hashlib.sha256(content).hexdigest()[:12]}"
    return content[: LONGEST - len(mark)].decode(errors="ignore") + mark


def text_of(name: str) -> str:
    """The text that a file name stands for, whatever the locale; a byte that is no UTF-8 becomes `%` and its number.

    Args:
        name: As the operating system gives it.
    """
    return _NO_TEXT.sub(_in_hexadecimal, os.fsencode(name).decode("utf-8", "surrogateescape"))


def is_text(path: Path) -> bool:
    """Whether a path is UTF-8, whatever the locale."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def file_of_case(folder: Path, case_id: str, suffix: str) -> Path:
    """Where a file that belongs to a case lies in a folder; its name is UTF-8, whatever the locale."""
    return folder / os.fsdecode(f"{case_id}{suffix}".encode())


def _in_hexadecimal(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"%{number - 0xDC00:02X}" if 0xDC80 <= number <= 0xDCFF else f"%{number:04X}"
