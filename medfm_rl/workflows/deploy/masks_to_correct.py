"""Which masks are to be corrected: what scoring said of them, and the files that they came as."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfm_rl.data.files import hash_file
from medfm_rl.data.images import hash_image, hash_labels, read_labels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError
from medfm_rl.quality import State
from medfm_rl.types import Case, LabelMap, LabelSchema


@dataclass(frozen=True)
class Scores:
    """What scoring said, as in `scores.json`.

    Attributes:
        path: The file.
        state: State of the batch.
        verdicts: By case; one that could not be assessed was referred.
        quality: SHA-256 of the `quality.json` that assessed, which names the reward networks.
        segmenter: Hash of the one that made the masks; None where they came as files.
        masks: By case, hash of the mask that was assessed.
    """

    path: Path
    state: State
    verdicts: Mapping[str, str]
    quality: str
    segmenter: str | None
    masks: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Reads `scores.json`.

        Raises:
            DataError: It is no such file.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            cases = content["cases"]
            verdicts = {str(case["case_id"]): str(case["verdict"]) for case in cases}
            return cls(
                path,
                content["batch_state"],
                {**verdicts, **dict.fromkeys(content["problems"], "refer")},
                str(content["quality"]),
                content["segmenter"],
                {str(case["case_id"]): str(case["mask"]) for case in cases},
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: not a scores.json of `medfm-rl score` ({error}); score the images with this version"
            ) from error

    def marked(self, files: Sequence[CaseFile]) -> list[CaseFile]:
        """Those with the verdict `correct`.

        Raises:
            DataError: One of them has no verdict.
        """
        missing = [file.case_id for file in files if file.case_id not in self.verdicts]
        if missing:
            raise DataError(
                f"{self.path}: has no score of {len(missing)} images, {missing[0]} for one; score these images, or "
                "take every case by --all"
            )
        return [file for file in files if self.verdicts[file.case_id] == "correct"]

    def require_quality(self, quality: Path) -> None:
        """Refuses what another quality model said than that of a run.

        Args:
            quality: `quality.json` of the run.

        Raises:
            DataError: Another one assessed, or this one was changed since.
        """
        if not quality.exists() or hash_file(quality) != self.quality:
            raise DataError(
                f"{self.path}: was not made with {quality} as it is now: another run made it, or it was calibrated "
                f"again; score the images by `medfm-rl score {quality.parent}`, or leave out --scores to have it done"
            )

    def require_segmenter(self, made_by: str, run: Path) -> None:
        """Refuses scores of masks that the segmenter of a run, with that hash, has not made.

        Raises:
            DataError: They are of such masks.
        """
        if self.segmenter != made_by:
            maker = "came as files" if self.segmenter is None else "another segmenter made"
            raise DataError(
                f"{self.path}: is of masks that {maker}, and not the segmenter of {run}; give the masks that were "
                "scored by --masks, so that it is they that are corrected"
            )


@dataclass(frozen=True)
class Marked:
    """The cases that are to be corrected.

    Attributes:
        files: The cases.
        problems: By case: why it could not be scored.
        scores: What marked them; None where every case is taken.
    """

    files: Sequence[CaseFile]
    problems: Mapping[str, str]
    scores: Scores | None


@dataclass(frozen=True)
class GivenMasks:
    """Masks as they were before any correction, in files.

    Attributes:
        paths: By case.
        scores: Scores of these masks; None where nothing was scored. A mask that could not be assessed has none.
        schema: Structures of the segmenter.
        in_files: What the integers in the masks mean, where it is not what `schema` says.
    """

    paths: Mapping[str, Path]
    scores: Scores | None
    schema: LabelSchema
    in_files: LabelSchema | None = None

    def path(self, case_id: str) -> Path:
        """The file.

        Raises:
            DataError: There is none.
        """
        if case_id not in self.paths:
            raise DataError(f"case {case_id}: there is no mask of that name")
        return self.paths[case_id]

    def hashes(self, case_id: str) -> dict[str, Any]:
        """What the mask of a case is made from: its file, and what the integers in it mean.

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
        labels = read_labels(path, self.schema, case.shape, case.geometry, self.in_files)
        scored = None if self.scores is None else self.scores.masks.get(case.case_id)
        if scored is not None and hash_labels(labels) != scored:
            raise DataError(f"{path}: is not the mask that was scored; score it again")
        return labels
