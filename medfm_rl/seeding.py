"""One seed for a run, and from it an independent one for every choice that is made by chance.

A stage draws from a generator of its own, so a run that is resumed at a stage draws what an uninterrupted run draws.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**31) for what the names say, for example `derive_seed(0, "collect", 1)`."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def unforeseen_seed() -> int:
    """A seed in [0, 2**31) that nobody can know beforehand, for draws that must not be prepared for."""
    return secrets.randbelow(2**31)


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator seeded with `derive_seed`."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator seeded with `derive_seed`."""
    return np.random.default_rng(derive_seed(seed, *names))
