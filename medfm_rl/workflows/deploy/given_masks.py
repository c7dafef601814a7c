"""Masks in files, as a user or an earlier call gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from medfm_rl.data.images import hash_image
from medfm_rl.data.labels import hash_labels, read_labels
from medfm_rl.data.mask_labels import labels_in_masks
from medfm_rl.errors import DataError
from medfm_rl.runs.scores import Scores
from medfm_rl.types import Case, LabelMap, LabelSchema


@dataclass(frozen=True)
class GivenMasks:
    """Masks in files, as they are before anything is done with them.

    Attributes:
        paths: By case.
        scores: Scores of these masks; None where nothing was scored. A mask that could not be assessed has none.
        schema: Structures of the segmenter.
        in_files: The meaning of the integers in the masks, where it is not what `schema` says.
        probabilities: Files of the probabilities that their maker gave, by case; None where none are given.
    """

    paths: Mapping[str, Path]
    scores: Scores | None
    schema: LabelSchema
    in_files: LabelSchema | None = None
    probabilities: Mapping[str, Path] | None = None

    @classmethod
    def of_user(cls, paths: Mapping[str, Path], labels: str | None, scores: Scores | None, schema: LabelSchema) -> Self:
        """Masks that a user gives, whatever the integers in them.

        Args:
            paths: By case.
            labels: The integers, as in `labels_in_masks`.
            scores: As in the attributes.
            schema: Likewise.

        Raises:
            UserError: The integers are not known.
        """
        return cls(paths, scores, schema, labels_in_masks(labels, paths, schema))

    def path(self, case_id: str) -> Path:
        """The file.

        Raises:
            DataError: There is none.
        """
        if case_id not in self.paths:
            place = "".join(f" in {path.parent}" for path in list(self.paths.values())[:1])
            raise DataError(f"case {case_id}: there is no mask of that name, or more than one,{place}")
        return self.paths[case_id]

    def hashes(self, case_id: str) -> dict[str, Any]:
        """Hashes of what the mask of a case is made from: its file, and the meaning of the integers in it.

        Raises:
            DataError: There is no mask of that name.
        """
        found: dict[str, Any] = {"mask": hash_image(self.path(case_id))}
        if self.in_files is not None:
            found["labels"] = self.in_files.integers
        return found

    def read(self, case: Case) -> LabelMap:
        """Class indices `(*S)`.

        Raises:
            DataError: There is no such mask, it does not lie on the grid of the image, or is not the one that was
                scored.
        """
        path = self.path(case.case_id)
        labels = read_labels(
            path, self.schema, case.shape, case.geometry, self.in_files, case.frame, frames=case.frames
        )
        scored = None if self.scores is None else self.scores.cases.get(case.case_id)
        if scored is not None and hash_labels(labels) != scored.mask:
            raise DataError(f"{path}: is not the mask that was scored; score it again")
        return labels
