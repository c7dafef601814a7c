"""One case of a data set, and what was found of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medfm_rl.data.images import hash_image, read_image
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts.description import DescribedLabels
from medfm_rl.data.layouts.patients import name_patients
from medfm_rl.errors import DataError
from medfm_rl.types import Case, LabelledCase, LabelSchema


@dataclass(frozen=True)
class CaseFile:
    """Where one case lies.

    Attributes:
        case_id: Unique within the data set; `data.names.case_name` made it.
        patient_id: Every split is made by it.
        image_paths: One file per channel, one file with all of them, or one DICOM folder; none where only a mask is
            there.
        label_path: The mask, where there is one.
        tags: What the layout knows besides, for example `{"view": "4CH", "phase": "ED"}`.
        problem: Why the case cannot be used, where finding it showed that: whoever wants to read it is told so, and
            the other cases are not held up.
        described: What the integers in the mask mean, where a file beside the data says so.
    """

    case_id: str
    patient_id: str
    image_paths: tuple[Path, ...]
    label_path: Path | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    described: DescribedLabels | None = None

    def require_sound(self) -> None:
        """Raises DataError where finding the case has shown that it cannot be used."""
        if self.problem is not None:
            raise DataError(self.problem)

    def hash_images(self) -> str:
        """SHA-256 of the image: that of its one file or folder, or over those of its channels in their order.

        Raises:
            DataError: It cannot be read or used.
        """
        self.require_sound()
        hashes = [hash_image(path) for path in self.image_paths]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(":".join(hashes).encode()).hexdigest()

    def name_in(self, message: str) -> str:
        """A message with the name of a file of the case in front, where it names none: adapters know cases alone."""
        named = self.problem is not None or any(str(path) in message for path in (*self.image_paths, self.label_path))
        return message if named or not self.image_paths else f"{self.image_paths[0]}: {message}"

    def read(self) -> Case:
        """Reads the image, and only the image.

        Raises:
            DataError: It cannot be read or used.
        """
        self.require_sound()
        image, geometry = read_image(self.image_paths)
        return Case(self.case_id, self.patient_id, image, geometry, self.tags)

    def read_labelled(self, schema: LabelSchema) -> LabelledCase:
        """Reads the image and its mask, whose integers mean what the description of the data says, or the schema.

        Raises:
            DataError: There is no mask, one of them cannot be read, they do not belong together, or the description
                lacks a structure of the schema.
        """
        self.require_sound()
        if self.label_path is None:
            raise DataError(f"case {self.case_id}: {_without_mask(self)}")
        in_file = None if self.described is None else self.described.schema_for(schema)
        case = self.read()
        return LabelledCase(case, read_labels(self.label_path, schema, case.shape, case.geometry, in_file))


@dataclass(frozen=True)
class Found:
    """What lies in a data set.

    Attributes:
        cases: The cases.
        skipped: What was not read, by the reason: files, and folders with all that is in them.
        patients_by: The rule by which images were put together to patients, in words.
        notes: What was decided that the names leave open, for a person to look at.
    """

    cases: Sequence[CaseFile]
    skipped: Mapping[str, Sequence[Path]]
    patients_by: str
    notes: Sequence[str] = ()


def require_masks(files: Sequence[CaseFile], where: str) -> None:
    """Raises DataError where a case has no mask; `where` is the beginning of the message."""
    without = [file for file in files if file.label_path is None and file.problem is None]
    if without:
        count = f" ({len(without)} of {len(files)} images have none)"
        raise DataError(f"{where}: {_without_mask(without[0], count)}")


def describe_patients(files: Sequence[CaseFile]) -> str:
    """As `name_patients`, of cases."""
    return name_patients([file.patient_id for file in files], [file.case_id for file in files])


def _without_mask(file: CaseFile, count: str = "") -> str:
    remedy = "labelled data is needed here"
    if file.tags.get("split") == "test":
        remedy += ", and the images for testing have none: leave them out by split: train (--split train)"
    return f"there is no mask for {file.image_paths[0]}{count}; {remedy}"
