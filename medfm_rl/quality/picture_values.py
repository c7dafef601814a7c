"""Images as networks see them that learned from pictures: the values of a byte, in three colours."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from medfm_rl.types import FloatArray

LARGEST: Final = 255.0


def in_bytes(image: FloatArray) -> Tensor:
    """Values from 0 to 255 as they are, others brought there from their smallest to their largest, `(C, *S)`."""
    values = torch.from_numpy(np.array(image, dtype=np.float32))
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > LARGEST or high <= 1:
        values = (values - low) / max(high - low, 1e-6) * LARGEST
    return values


def in_colours(values: Tensor) -> Tensor:
    """The first three channels `(3, *S)`; the first alone, three times, where there are fewer."""
    return values[:3] if len(values) >= 3 else values[:1].expand(3, *values.shape[1:])
