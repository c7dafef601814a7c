"""Arrays as few bytes, without loss: integer maps of 128 x 128 x 128 become some tens of kilobytes."""

from __future__ import annotations

from typing import Any, Final

import blosc2
import numpy as np
import numpy.typing as npt

from medfm_rl.errors import DataError

Array = npt.NDArray[Any]

_LEVELS: Final = {1: 5}
"""Effort by bytes of a number, 1 for the others: labels become a third smaller by it, and grey values hardly."""
_WORTH_THREADS: Final = 1 << 22
"""Bytes from which on several threads unpack an array."""
_MOST_BYTES: Final = 2**31 - 1 - 32
"""What a buffer of Blosc holds."""


def pack(array: Array) -> bytes:
    """The values of an array; shape and kind of number are for the caller to keep. The same values, the same bytes.

    Raises:
        DataError: They are more than 2 GB.
    """
    plain = np.ascontiguousarray(array)
    if plain.nbytes > _MOST_BYTES:
        raise DataError(
            f"an array of shape {plain.shape} has {plain.nbytes / 1e9:.1f} GB, and 2 GB can be packed; take smaller "
            "patches"
        )
    # Bytes of equal significance side by side; integers of one byte have nothing to shuffle.
    filters = [blosc2.Filter.SHUFFLE] if plain.itemsize > 1 else [blosc2.Filter.NOFILTER]
    found = blosc2.compress2(
        plain.reshape(-1).view(np.uint8),
        codec=blosc2.Codec.ZSTD,
        clevel=_LEVELS.get(plain.itemsize, 1),
        typesize=plain.itemsize,
        filters=filters,
        filters_meta=[0],
        # One thread: the bytes must not depend on the machine.
        nthreads=1,
    )
    return bytes(found)


def unpack(packed: bytes, dtype: str, shape: tuple[int, ...]) -> Array:
    """The array that `pack` was given.

    Args:
        packed: What it gave.
        dtype: Kind of number, as NumPy names it.
        shape: Its shape.

    Raises:
        ValueError: The bytes are damaged, or of another array.
    """
    array = np.empty(shape, dtype=dtype)
    if array.nbytes == 0:
        return array
    try:
        # What is read does not depend on how many read it; for little, to start them takes longer.
        threads = blosc2.nthreads if array.nbytes > _WORTH_THREADS else 1
        content = blosc2.decompress2(packed, nthreads=threads)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"packed values cannot be read ({error})") from error
    if len(content) != array.nbytes:
        raise ValueError(f"packed values have {len(content)} bytes, and {array.nbytes} are needed")
    return np.frombuffer(bytearray(content), dtype=dtype).reshape(shape)
