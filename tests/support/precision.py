"""Single precision on any processor, for what is compared to the last digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def single_precision() -> Iterator[None]:
    """Networks train as on a processor without bfloat16, whose sums differ by thousands of times as much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
        yield
