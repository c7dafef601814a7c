"""Rows in a file, and arrays by their content."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medfm_rl.data.packing import pack, unpack
from medfm_rl.data.stored_rows import ArrayStore, RowsFolder, StoredRows
from medfm_rl.errors import DataError
from medfm_rl.rows import Rows, batches_of, read_ahead


@settings(deadline=None, max_examples=40)
@given(
    array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=9)),
    dtype=st.sampled_from(["uint8", "float16", "float32"]),
)
def test_an_array_comes_back_as_it_was_packed(array: np.ndarray, dtype: str) -> None:
    values = array.astype(dtype)
    packed = pack(values)
    assert pack(values.copy()) == packed
    assert np.array_equal(unpack(packed, dtype, values.shape), values)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", pack(np.zeros(7, np.uint8))])
def test_what_was_not_packed_or_has_another_size_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="packed values"):
        unpack(content, "uint8", (3, 3))


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 100))
def test_rows_on_the_disk_are_indexed_as_a_tensor_is(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(size, 2, 3, generator=generator) for size in sizes]
    whole = torch.cat(parts)
    with tempfile.TemporaryDirectory() as folder:
        rows = StoredRows(Path(folder) / "images.rows", (2, 3))
        for part in parts:
            rows.extend(part)
        assert isinstance(rows, Rows)
        assert (len(rows), rows.shape, rows.ndim) == (len(whole), tuple(whole.shape), 3)
        drawn = torch.randint(len(whole), (5,), generator=generator)
        for index in (0, -1, slice(None), slice(1, 3), [0, 0], drawn, drawn.numpy(), drawn[0], slice(None, None, 2)):
            assert torch.equal(rows[index], whole[index])
        assert torch.equal(torch.cat(list(batches_of(rows, 2))), whole)
        with pytest.raises(IndexError):
            rows[len(whole)]


def test_rows_in_a_folder_are_those_in_memory(tmp_path: Path) -> None:
    for place in (RowsFolder(), RowsFolder(tmp_path)):
        collected = [place.new("masks") for _ in range(2)]
        for number, rows in enumerate(collected):
            rows.add(torch.full((2, 3), number, dtype=torch.uint8))
            rows.add(torch.full((1, 3), number + 1, dtype=torch.uint8))
        assert collected[1].rows()[:].tolist() == [[1] * 3, [1] * 3, [2] * 3]
        assert collected[0].rows()[[2, 0]].tolist() == [[1] * 3, [0] * 3]
    assert len(list(tmp_path.iterdir())) == 2


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows of shape \(2,\) are kept, not \(3,\)"):
        StoredRows(tmp_path / "rows", (2,)).extend(torch.zeros(1, 3))


def test_a_full_disk_is_said(tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]) -> None:
    rows = StoredRows(tmp_path / "images.rows", (64, 64))
    with full_disk(), pytest.raises(DataError, match=r"images\.rows: cannot be written .* make room on the disk"):
        rows.extend(torch.randn(64, 64, 64))


def test_rows_that_somebody_cut_off_are_named(tmp_path: Path) -> None:
    rows = StoredRows.of(tmp_path / "images.rows", torch.randn(3, 8, 8))
    (tmp_path / "images.rows").write_bytes(b"")
    with pytest.raises(DataError, match=r"images\.rows: what the run put there cannot be read"):
        rows[1]


def test_an_array_is_kept_once_under_its_content(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path / "images")
    array = np.arange(6, dtype=np.float32)
    names = {store.put(array), store.put(array.copy()), ArrayStore(tmp_path / "images").put(array)}
    assert len(names) == 1
    # Another shape or kind of number of the same bytes is another array.
    names |= {store.put(array.reshape(2, 3)), store.put(array.view(np.uint8))}
    assert len(names) == len(list((tmp_path / "images").rglob("*.packed"))) == 3


def test_one_thing_is_read_ahead_and_no_more() -> None:
    read: list[int] = []
    ready = threading.Event()

    def slowly(item: int) -> int:
        read.append(item)
        if item == 1:
            ready.set()
        return 10 * item

    found = read_ahead(iter(range(5)), slowly)
    assert next(found) == 0
    assert ready.wait(5)
    assert read == [0, 1]
    assert list(found) == [10, 20, 30, 40]
    assert list(read_ahead([], slowly)) == []


def test_what_goes_wrong_while_reading_ahead_is_raised_where_it_is_used() -> None:
    found = read_ahead([1, 0], lambda item: 1 // item)
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)
