"""Rows of equal shape in a file: written once, one after the other, and read by their index."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from medfm_rl.data.files import replace_on_success
from medfm_rl.data.packing import Array, pack, unpack
from medfm_rl.errors import DataError
from medfm_rl.rows import Rows

_ENDING: Final = ".packed"


class StoredRows:
    """Rows `(N, ...)` in a file of their own; what is asked for is read, and nothing else is in memory.

    They are scratch: the file is of no use without this object.

    Args:
        path: Written over.
        row_shape: Shape of a row.
        dtype: Kind of number of the values.
    """

    def __init__(self, path: Path, row_shape: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self._path = path
        self._row_shape = tuple(row_shape)
        self._dtype = dtype
        self._places: list[tuple[int, int]] = []
        self._end = 0
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    @classmethod
    def of(cls, path: Path, rows: Tensor) -> Self:
        """Those of a tensor `(N, ...)`."""
        stored = cls(path, rows.shape[1:], rows.dtype)
        stored.extend(rows)
        return stored

    def extend(self, rows: Tensor) -> None:
        """Adds rows `(M, ...)`.

        Raises:
            DataError: The disk is full, or the file cannot be written.
            ValueError: They have another shape.
        """
        if tuple(rows.shape[1:]) != self._row_shape:
            raise ValueError(f"rows of shape {self._row_shape} are kept, not {tuple(rows.shape[1:])}")
        with _told(self._path), self._path.open("r+b") as file:
            file.seek(self._end)
            for row in rows.detach().to("cpu", self._dtype):
                packed = pack(row.numpy())
                file.write(packed)
                self._places.append((self._end, len(packed)))
                self._end += len(packed)

    @property
    def shape(self) -> tuple[int, ...]:
        """N and the shape of a row."""
        return (len(self._places), *self._row_shape)

    @property
    def ndim(self) -> int:
        """Axes, with that of the rows."""
        return len(self._row_shape) + 1

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Any) -> Tensor:
        if isinstance(rows, int) or (isinstance(rows, Tensor) and rows.ndim == 0):
            return self._read([range(len(self))[int(rows)]])[0]
        if isinstance(rows, slice):
            return self._read(list(range(len(self))[rows]))
        indices = rows.tolist() if isinstance(rows, Tensor | np.ndarray) else list(rows)
        return self._read([range(len(self))[index] for index in indices])

    def _read(self, indices: Sequence[int]) -> Tensor:
        found = torch.empty((len(indices), *self._row_shape), dtype=self._dtype)
        try:
            with self._path.open("rb") as file:
                for row, index in enumerate(indices):
                    start, length = self._places[index]
                    file.seek(start)
                    packed = file.read(length)
                    found[row] = torch.from_numpy(unpack(packed, _NUMPY[self._dtype], self._row_shape))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self._path}: what the run put there cannot be read ({error}); nothing but the run may change its "
                "folder: resume it"
            ) from error
        return found


class RowsFolder:
    """Where rows are put that are many: a folder, or memory.

    Args:
        folder: The folder, of scratch files; None for memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def new(self, name: str) -> CollectedRows:
        """Takes rows one after the other.

        Args:
            name: What they are, in the name of their file.
        """
        return CollectedRows(None if self._folder is None else self._folder / f"{name}-{secrets.token_hex(4)}.rows")


MEMORY: Final = RowsFolder()


class CollectedRows:
    """Rows as they come: each call adds some of equal shape.

    Args:
        path: Their file; None for memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stored: StoredRows | None = None
        self._parts: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Adds rows `(M, ...)`.

        Raises:
            DataError: The disk is full.
        """
        if self._path is None:
            self._parts.append(rows)
            return
        if self._stored is None:
            self._stored = StoredRows(self._path, rows.shape[1:], rows.dtype)
        self._stored.extend(rows)

    def rows(self) -> Rows:
        """All of them, at least one."""
        return torch.cat(self._parts) if self._stored is None else self._stored


class ArrayStore:
    """A folder of arrays, each in a file that is named by its content: an array that comes again is there already.

    Args:
        folder: Made when something is put into it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, array: Array) -> str:
        """Keeps an array, whole or not at all; returns its name: the SHA-256 of its values, shape and kind of number.

        Raises:
            DataError: It cannot be written.
        """
        name = _hash(array)
        path = self._path(name)
        if not path.exists():
            with replace_on_success(path) as temporary:
                temporary.write_bytes(pack(array))
        return name

    def get(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        """The array of that name.

        Raises:
            DataError: It is missing or damaged.
        """
        path = self._path(name)
        try:
            array = unpack(path.read_bytes(), dtype, shape)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
        if _hash(array) != name:
            raise DataError(f"{path}: its content is another than its name says; {_REMEDY}")
        return array

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / f"{name}{_ENDING}"


_REMEDY: Final = "put back what `adapt` wrote there, or delete the folder actions and resume the run"
_NUMPY: Final = {torch.float32: "float32", torch.float16: "float16", torch.uint8: "uint8"}


def _hash(array: Array) -> str:
    digest = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns what the system says of a file into an error of ours."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); make room on the disk and resume the run"
        ) from error
