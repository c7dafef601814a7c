"""The images that PPO shows the policy, read from the disk as they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from medfm_rl.reward.actions import Records
from medfm_rl.rows import Rows
from medfm_rl.types import IGNORED, FloatArray, LabelMap


@final
class Mirrored:
    """Records of D_R with ground truth, each with its reference mirrored along each axis with a probability of a half.

    Args:
        records: The records.
        axes: Axes of S to mirror along; none leaves everything, the generator too, as it is.
        generator: A CPU generator.
    """

    def __init__(self, records: Records, axes: Sequence[int], generator: torch.Generator) -> None:
        self.records = records
        self._flipped = {axis: (torch.rand(len(records), generator=generator) < 0.5).tolist() for axis in axes}

    def __len__(self) -> int:
        return len(self.records)

    @property
    def references(self) -> MirroredReferences:
        """Class indices `(M, *S)`."""
        return MirroredReferences(self)

    def images(self, rows: Sequence[int]) -> Tensor:
        """Images `(B, C, *S)`."""
        return self._turned(self.records.images_of(rows), rows, 2)

    def masks(self, rows: Sequence[int]) -> Tensor:
        """References `(B, *S)`; `IGNORED` where the truth says nothing."""
        unsaid = self.records.certainty_of(rows) == 0
        return self._turned(self.records.references_of(rows).masked_fill(unsaid, IGNORED), rows, 1)

    def _turned(self, values: Tensor, rows: Sequence[int], first: int) -> Tensor:
        for axis, flipped in self._flipped.items():
            chosen = [place for place, row in enumerate(rows) if flipped[row]]
            values[chosen] = values[chosen].flip(axis + first)
        return values


@final
class MirroredReferences:
    """The references of mirrored records, by their row."""

    def __init__(self, mirrored: Mirrored) -> None:
        self._mirrored = mirrored

    def __len__(self) -> int:
        return len(self._mirrored)

    def __getitem__(self, rows: Any) -> LabelMap:
        return self._mirrored.masks([int(row) for row in rows]).numpy()


@final
class ShownImages:
    """Images with ground truth, and after them those of the target, `(N, C, *S)`.

    Args:
        known: Those with ground truth.
        target: What the others are rows of.
        rows: Which rows.
    """

    def __init__(self, known: Mirrored, target: Rows, rows: Sequence[int]) -> None:
        self._known, self._target, self._rows = known, target, list(rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, C, *S)`."""
        return (len(self), *self._target.shape[1:])

    def __len__(self) -> int:
        return len(self._known) + len(self._rows)

    def __getitem__(self, rows: Any) -> FloatArray:
        wanted = [int(row) for row in rows]
        found = torch.empty((len(wanted), *self.shape[1:]))
        first = len(self._known)
        for places, images in (
            ([place for place, row in enumerate(wanted) if row < first], self._known.images),
            ([place for place, row in enumerate(wanted) if row >= first], self._views),
        ):
            if places:
                found[places] = images([wanted[place] for place in places])
        return found.numpy()

    def min(self) -> float:
        """Below every value: nobody asks the space of the observations for more, and the images need not be read."""
        return float(np.finfo(np.float32).min)

    def max(self) -> float:
        """Above every value."""
        return float(np.finfo(np.float32).max)

    def _views(self, rows: Sequence[int]) -> Tensor:
        return self._target[[self._rows[row - len(self._known)] for row in rows]]
