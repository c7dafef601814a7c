"""What reviewers were shown: images, and masks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, final

from medfm_rl.choices import Drawn
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.names import case_name
from medfm_rl.feedback.entries import Feedback, require_reviewer
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.masks import Mask
from medfm_rl.types import Geometry, LabelSchema


@dataclass(frozen=True)
class Batch:
    """Entries, and the masks that they name.

    Attributes:
        entries: New entries.
        masks: Their masks.
    """

    entries: tuple[Feedback, ...] = ()
    masks: tuple[Mask, ...] = ()

    def __add__(self, other: Batch) -> Batch:
        return Batch(self.entries + other.entries, self.masks + other.masks)


@dataclass(frozen=True)
class Review:
    """What all entries of a call have in common.

    Attributes:
        reviewer: Opaque id of the reviewer, or of the source of reports.
        drawn: How the cases came to be reviewed.
        model_hash: SHA-256 of the folder `model` of the run that made the masks; None where no run did.
        comment: Goes with every entry that has none of its own.
    """

    reviewer: str
    drawn: Drawn = "other"
    model_hash: str | None = None
    comment: str = ""

    def __post_init__(self) -> None:
        require_reviewer(self.reviewer)

    def of(self, case: ShownCase, comment: str = "") -> dict[str, Any]:
        """The fields of an entry on a case."""
        return {
            "reviewer": self.reviewer,
            "drawn": self.drawn,
            "model_hash": self.model_hash,
            "comment": comment or self.comment,
            "patient": case.file.patient_id,
            "case": case.file.case_id,
            "image_sha256": case.image_sha256,
        }


@dataclass(frozen=True, eq=False)
class ShownCase:
    """An image as it was shown.

    Attributes:
        file: Where it lies.
        image_sha256: Its hash.
        shape: Its size `(*S)`.
        geometry: Its grid.
        mask: The mask that was shown; None where none was.
    """

    file: CaseFile
    image_sha256: str
    shape: tuple[int, ...]
    geometry: Geometry
    mask: Mask | None

    def read_mask(self, path: Path, schema: LabelSchema, in_file: LabelSchema | None) -> Mask:
        """Reads another mask of the image, as `data.labels.read_labels` does.

        Raises:
            DataError: It cannot be read, lies on another grid, or has other labels.
        """
        frames = None if self.file.clip is None else self.file.clip.count
        labels = read_labels(path, schema, self.shape, self.geometry, in_file, self.file.frame, frames=frames)
        return Mask.of(labels, schema.class_names, self.geometry)


@final
class ShownCases:
    """Images and masks that a reviewer was shown; each is read once, when something is said of it.

    Args:
        files: The images.
        masks: The masks, by case.
        schema: Structures of the masks; None where only measurements came, which speak of none.
        in_files: The meaning of the integers in the masks, where it is not what `schema` says.
    """

    def __init__(
        self,
        files: Sequence[CaseFile],
        masks: Mapping[str, Path],
        schema: LabelSchema | None,
        in_files: LabelSchema | None = None,
    ) -> None:
        self.files = {file.case_id: file for file in files}
        self._masks = masks
        self._schema = schema
        self._in_files = in_files
        self._seen: dict[str, ShownCase] = {}

    @property
    def schema(self) -> LabelSchema:
        """Structures of the masks; asked for by what speaks of masks alone."""
        assert self._schema is not None
        return self._schema

    @property
    def seen(self) -> list[CaseFile]:
        """The cases of which something was said so far."""
        return [case.file for case in self._seen.values()]

    def look(self, name: str, where: str) -> ShownCase:
        """A case by its name.

        Args:
            name: As the reviewer writes it.
            where: Who names it, for the message.

        Raises:
            FeedbackError: No image has that name.
            DataError: The image, or the mask that was shown, cannot be read.
        """
        wanted = case_name(name)
        if wanted not in self.files:
            near = get_close_matches(wanted, self.files, n=1)
            hint = f"is {near[0]} meant?" if near else "give the images that were"
            raise FeedbackError(f"{where}: case {name} was not shown, there is no image of that name; {hint}")
        if wanted not in self._seen:
            self._seen[wanted] = self._read(self.files[wanted])
        return self._seen[wanted]

    def look_at_mask(self, name: str, where: str) -> tuple[ShownCase, Mask]:
        """A case by its name, and the mask that was shown of it.

        Raises:
            FeedbackError: No image has that name, or there is no mask of it.
            DataError: As in `look`.
        """
        case = self.look(name, where)
        if case.mask is None:
            raise FeedbackError(
                f"{where}: there is no mask of case {name} among those that were shown; give their folder (--masks)"
            )
        return case, case.mask

    def _read(self, file: CaseFile) -> ShownCase:
        case = file.read()
        bare = ShownCase(file, file.hash_images(), case.shape, case.geometry, None)
        path = self._masks.get(file.case_id)
        if path is None:
            return bare
        shown = bare.read_mask(path, self.schema, self._in_files)
        return ShownCase(file, bare.image_sha256, bare.shape, bare.geometry, shown)


def require_no_problems(problems: Mapping[str, str], total: int, what: str) -> None:
    """Refuses a call of which a part cannot be used, and says what is wrong with each of it.

    Args:
        problems: By case or row.
        total: How many there are.
        what: What they are, such as `corrected masks`.

    Raises:
        FeedbackError: There are problems.
    """
    if not problems:
        return
    found = list(problems.values())
    most = found[:_MOST_NAMED]
    more = [f"and {len(found) - len(most)} more"] if len(found) > len(most) else []
    listed = "\n  ".join([*most, *more])
    raise FeedbackError(f"{len(found)} of {total} {what} cannot be used, and nothing was added:\n  {listed}")


_MOST_NAMED = 20
