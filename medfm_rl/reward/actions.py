"""Records of D_R, the reward data set: images, actions on them, the references they are judged by, and their origin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from medfm_rl.reward.origins import ActionOrigin


@dataclass(frozen=True, eq=False)
class ActionBatch:
    """One action on each of some images.

    Attributes:
        images: `(B, C, *S)` float32.
        actions: `(B, *S)` uint8.
        references: `(B, *S)` uint8.
        certainty: `(B, *S)` float32.
    """

    images: Tensor
    actions: Tensor
    references: Tensor
    certainty: Tensor

    def split(self, size: int) -> list[ActionBatch]:
        """Parts of so many images."""
        tensors = (self.images, self.actions, self.references, self.certainty)
        return [ActionBatch(*parts) for parts in zip(*(values.split(size) for values in tensors), strict=True)]


class Records(ABC):
    """Images with the actions tried on them, in memory (`ActionRecords`) or on the disk (`StoredRecords`).

    Attributes:
        origins: One per image.
    """

    origins: tuple[ActionOrigin, ...]

    def __len__(self) -> int:
        return len(self.origins)

    @property
    @abstractmethod
    def actions_per_image(self) -> int:
        """A."""

    @property
    @abstractmethod
    def spatial_dims(self) -> int:
        """2 or 3."""

    @abstractmethod
    def images_of(self, rows: Sequence[int]) -> Tensor:
        """Images `(B, C, *S)` float32."""

    @abstractmethod
    def actions_of(self, rows: Sequence[int], choice: Sequence[int]) -> Tensor:
        """One action of each image `(B, *S)` uint8; `choice` says which."""

    @abstractmethod
    def references_of(self, rows: Sequence[int]) -> Tensor:
        """References `(B, *S)` uint8."""

    @abstractmethod
    def certainty_of(self, rows: Sequence[int]) -> Tensor:
        """Certainties `(B, *S)` float32."""

    @abstractmethod
    def highest_labels(self) -> list[int]:
        """By image, the highest class index in its actions and its reference."""

    @abstractmethod
    def highest_certainties(self) -> list[float]:
        """By image, how sure its reference is of the pixel that it is surest of."""

    @abstractmethod
    def where(self, rows: Sequence[int]) -> Self:
        """The records of these rows, in this order."""

    def batch(self, rows: Tensor, choice: Tensor) -> ActionBatch:
        """One action on each of some images, in memory.

        Args:
            rows: Which images, `(B,)`.
            choice: Which action of each, `(B,)`.
        """
        listed = rows.tolist()
        return ActionBatch(
            self.images_of(listed),
            self.actions_of(listed, choice.tolist()),
            self.references_of(listed),
            self.certainty_of(listed),
        )

    def of_patients(self, patients: Iterable[str]) -> Self:
        """The records of these patients only."""
        wanted = set(patients)
        return self.where([row for row, origin in enumerate(self.origins) if origin.patient_id in wanted])

    def with_ground_truth(self) -> Self:
        """The records whose actions are judged by ground truth only."""
        return self.where([row for row, origin in enumerate(self.origins) if origin.reference.is_ground_truth])


@dataclass(frozen=True, eq=False)
class ActionRecords(Records):
    """Records in memory.

    Attributes:
        images: `(M, C, *S)`, preprocessed.
        actions: `(M, A, *S)` uint8, A actions for each image.
        references: `(M, *S)` uint8, what the actions should have been.
        certainty: `(M, *S)` in [0, 1]: how sure the reference is of each pixel; 0 teaches nothing.
        origins: One per image.
    """

    images: Tensor
    actions: Tensor
    references: Tensor
    certainty: Tensor
    origins: tuple[ActionOrigin, ...]

    def __post_init__(self) -> None:
        count, grid = len(self.origins), self.references.shape[1:]
        consistent = (
            self.images.shape[0]
            == self.actions.shape[0]
            == self.references.shape[0]
            == self.certainty.shape[0]
            == count
            and self.images.shape[2:] == self.actions.shape[2:] == self.certainty.shape[1:] == grid
            and all(len(origin.actions) == self.actions.shape[1] for origin in self.origins)
        )
        if not consistent:
            raise ValueError(
                f"records do not fit together: images {tuple(self.images.shape)}, actions {tuple(self.actions.shape)}, "
                f"references {tuple(self.references.shape)}, certainty {tuple(self.certainty.shape)}, {count} origins"
            )

    @property
    def actions_per_image(self) -> int:
        """A."""
        return self.actions.shape[1]

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.images.ndim - 2

    def images_of(self, rows: Sequence[int]) -> Tensor:
        """Images `(B, C, *S)`."""
        return self.images[list(rows)]

    def actions_of(self, rows: Sequence[int], choice: Sequence[int]) -> Tensor:
        """One action of each image `(B, *S)`."""
        return self.actions[list(rows), list(choice)]

    def references_of(self, rows: Sequence[int]) -> Tensor:
        """References `(B, *S)`."""
        return self.references[list(rows)]

    def certainty_of(self, rows: Sequence[int]) -> Tensor:
        """Certainties `(B, *S)`."""
        return self.certainty[list(rows)]

    def highest_labels(self) -> list[int]:
        """By image, the highest class index."""
        return [
            max(int(actions.max()), int(reference.max()))
            for actions, reference in zip(self.actions, self.references, strict=True)
        ]

    def highest_certainties(self) -> list[float]:
        """By image, the highest certainty."""
        return [float(certainty.max()) for certainty in self.certainty]

    def where(self, rows: Sequence[int]) -> ActionRecords:
        """The records of these rows, in this order."""
        chosen = list(rows)
        return ActionRecords(
            self.images[chosen],
            self.actions[chosen],
            self.references[chosen],
            self.certainty[chosen],
            tuple(self.origins[row] for row in chosen),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[ActionRecords]) -> ActionRecords:
        """Joins records with the same number of actions per image, in order."""
        return cls(
            torch.cat([part.images for part in parts]),
            torch.cat([part.actions for part in parts]),
            torch.cat([part.references for part in parts]),
            torch.cat([part.certainty for part in parts]),
            tuple(origin for part in parts for origin in part.origins),
        )
