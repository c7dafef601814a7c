"""Data sets whose files have odd names, and folders with strangers among the images."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.robustness.kind import Fault, Kind, UnreadableError
from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import DataError
from medfm_rl.settings import DataSettings

_NAMES = (
    *(b"\xff\xfe.png", b"p1_\xe4.png", "p1_\u00e4.png".encode(), "p1_a\u0308.png".encode(), b"a" * 251 + b".png"),
    *(
        ("\u00e4" * 125).encode() + b".png",
        b" .png",
        b"..png",
        b"-rf.png",
        b"a b.png",
        b"a\nb.png",
        b"a\tb.PNG",
        b"*.png",
    ),
    *(b"a.png.png", b"p1.nii.gz.png", b"%00.png", b"a%s%n.png", b"con.png", b"'\".png", b"\\.png", b"p1_0000.png"),
    *(
        "\u202egnp.png".encode(),
        "\U0001f600.png".encode(),
        b"\xed\xa0\x80.png",
        b"p1\x7f.png",
        b"p1,2.png",
        b"=1+1.png",
    ),
)


def _make(folder: Path) -> Path:
    root = folder / "images"
    root.mkdir()
    for number in range(3):
        _picture(number).save(root / f"p{number}_a.png")
    return root


def _picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (6, 7)).astype(np.uint8))


def _path(root: Path, name: bytes) -> Path:
    return Path(os.fsdecode(os.fsencode(root) + b"/" + name))


def _rename(root: Path, rng: np.random.Generator, name: bytes) -> None:
    files = sorted(root.glob("*.png"))
    if files and not _path(root, name).exists():
        files[rng.integers(len(files))].rename(_path(root, name))


def odd_name(root: Path, rng: np.random.Generator) -> None:
    """A file has a name that is no UTF-8, very long, or full of signs."""
    _rename(root, rng, _NAMES[rng.integers(len(_NAMES))])


def random_name(root: Path, rng: np.random.Generator) -> None:
    """A file has a name of random bytes."""
    name = bytes(byte for byte in rng.bytes(int(rng.integers(1, 240))) if byte not in b"\0/")
    _rename(root, rng, name + b".png")


def two_forms(root: Path, rng: np.random.Generator) -> None:
    """Two names look the same and are written in two ways."""
    name = ["p\u00e4tient_1", "\u00c5ngstr\u00f6m", "\ud55c\uae00"][rng.integers(3)]
    for number, form in enumerate(("NFC", "NFD")):
        path = _path(root, unicodedata.normalize(form, name).encode() + b".png")  # type: ignore[arg-type]
        _picture(7 + number).save(path)


def alike(root: Path, rng: np.random.Generator) -> None:
    """Two long names begin alike, or a name stands for bytes of another."""
    pairs = ((b"a" * 245 + b"1", b"a" * 245 + b"2"), (b"p\xff", b"p%FF"), (b"x/y".replace(b"/", b"_"), b"X_Y"))
    for number, name in enumerate(pairs[rng.integers(len(pairs))]):
        _picture(7 + number).save(_path(root, name + b".png"))


def strangers(root: Path, rng: np.random.Generator) -> None:
    """Files that are no images, links that lead nowhere or back, and empty files lie among the images."""
    match rng.integers(7):
        case 0:
            (root / "dangling.png").symlink_to("nowhere")
        case 1:
            (root / "loop").symlink_to(root, target_is_directory=True)
        case 2:
            (root / "empty.png").touch()
        case 3:
            (root / "folder.png").mkdir()
        case 4:
            (root / "q.mha").write_bytes(b"ObjectType = Image")
        case 5:
            os.mkfifo(root / "pipe.png")
        case _:
            _path(root, b"\xff").mkdir()
            _picture(9).save(_path(root, b"\xff/\xfe.png"))


_FAULTS: tuple[Fault, ...] = (
    odd_name,
    odd_name,
    odd_name,
    random_name,
    random_name,
    two_forms,
    alike,
    strangers,
    strangers,
)


def _read(root: Path) -> Any:
    """Sums of the pixels of all cases that can be used; names have to be text, distinct and short."""
    files = find_cases(DataSettings(path=root))
    names = [file.case_id for file in files]
    if len(set(names)) < len(names) or not all(name == unicodedata.normalize("NFC", name) for name in names):
        return f"names {names}"
    if any(len(name.encode()) > 250 for name in names):
        return "a name too long for a file"
    sums = []
    for file in files:
        try:
            sums.append(int(file.read().image.sum()))
        except DataError:
            continue
    return sorted(sums)


def _oracle(root: Path) -> Any:
    """What Pillow reads of every file that ends as a picture does; of two with one name neither counts."""
    sums: dict[str, list[int]] = {}
    for place, folders, names in os.walk(os.fsencode(root)):
        folders[:] = [name for name in folders if not os.path.islink(os.path.join(place, name))]  # noqa: PTH114, PTH118
        for name in names:
            path = Path(os.fsdecode(os.path.join(place, name)))  # noqa: PTH118
            if path.name.startswith(".") or not path.is_file() or not path.name.lower().endswith(".png"):
                continue
            try:
                with Image.open(path) as image:
                    total = int(np.asarray(image).astype(np.int64).sum())
            except OSError:
                continue
            stem = os.fsencode(path)[len(os.fsencode(root)) + 1 : -4].decode("utf-8", "backslashreplace")
            key = unicodedata.normalize("NFC", stem.replace("%", "\\x").lower() if "%F" in stem else stem)
            sums.setdefault(key, []).append(total)
    found = sorted(total for totals in sums.values() if len(totals) == 1 for total in totals)
    if not found:
        raise UnreadableError("no image")
    return found


def _disagree(found: Any, expected: Any) -> str:
    return "" if found == expected else f"{found}, and {expected} by the oracle"


def kinds() -> list[Kind]:
    """Folders of pictures."""
    return [Kind("names in a data set", _make, _FAULTS, _read, _oracle, _disagree)]
