"""Rows of equal shape, images or masks, in memory or on the disk: what whoever goes through many of them asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

Asked = TypeVar("Asked")
Found = TypeVar("Found")


@runtime_checkable
class Rows(Protocol):
    """Rows `(N, ...)`; a tensor is some, and so are `medfm_rl.data.stored_rows.StoredRows`.

    An index gives one row, a slice, a list of indices or a tensor of them gives those, as a tensor in memory.
    """

    @property
    def shape(self) -> Any:
        """N and the shape of a row."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Tensor: ...


def batches_of(rows: Rows, size: int) -> Iterator[Tensor]:
    """Rows in their order, so many at a time; the next ones are read while the caller is busy with some."""
    count = len(rows)
    yield from read_ahead(
        (slice(start, min(start + size, count)) for start in range(0, count, size)), lambda part: rows[part]
    )


def read_ahead(asked: Iterable[Asked], read: Callable[[Asked], Found]) -> Iterator[Found]:
    """What `read` gives for each thing that is asked for, in order, with one read ahead of its use.

    Reading from the disk and unpacking leave the interpreter to the networks.
    """
    pending = iter(asked)
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        coming = [thread.submit(read, item) for item in islice(pending, 1)]
        while coming:
            current = coming.pop()
            coming = [thread.submit(read, item) for item in islice(pending, 1)]
            yield current.result()
