"""A case that does not fit into the memory is one that cannot be handled, and ends no command that handles others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medfm_rl.errors import DataError

_OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory|ALLOC_FAILED", re.IGNORECASE)
"""Words of PyTorch in a plain RuntimeError where the memory of the processor, of Apple's GPUs or of cuBLAS is full."""


@contextmanager
def must_fit(what: str, device: torch.device) -> Iterator[None]:
    """Says of a case that it is too large where the memory of the device does not do.

    Args:
        what: Names the case, as a message begins.
        device: Where the networks run.

    Raises:
        DataError: It does not fit.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        advice = "" if device.type == "cpu" else "; leave it to the processor by --device cpu"
        raise DataError(f"{what}: too large for the memory of {device}{advice}") from error
