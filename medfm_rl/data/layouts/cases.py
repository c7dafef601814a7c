"""One case of a data set, and what was found of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfm_rl.data.clips.reading import ClipFile
from medfm_rl.data.clips.tracings import TRACINGS, traced_mask, video_name
from medfm_rl.data.images import hash_image, read_image
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts.description import DescribedLabels, is_simulated
from medfm_rl.data.layouts.patients import name_patients
from medfm_rl.errors import DataError
from medfm_rl.types import Case, Clip, LabelledCase, LabelSchema

_VENTRICLES = ("lv", "lvendo", "lvcavity", "leftventricle", "lvendocardium", "leftventricularcavity")


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
        clip: The clip that the file holds, or that the case is a frame of; None for an image or volume.
        clip_id: Name of that clip: the case id of the clip itself.
        frame: Place in the clip, counted from 0; None for an image, a volume, or a clip as it was found.
        frame_masks: Masks of single frames of the clip, by their place in it.
    """

    case_id: str
    patient_id: str
    image_paths: tuple[Path, ...]
    label_path: Path | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    described: DescribedLabels | None = None
    clip: ClipFile | None = None
    clip_id: str | None = None
    frame: int | None = None
    frame_masks: Mapping[int, Path] = field(default_factory=dict)

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
        if self.clip is not None:
            return hashlib.sha256(f"{self.clip.hash()}:frame {self.frame}".encode()).hexdigest()
        hashes = [hash_image(path) for path in self.image_paths]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(":".join(hashes).encode()).hexdigest()

    def name_in(self, message: str) -> str:
        """A message with the name of a file of the case in front, where it names none: adapters know cases alone."""
        named = self.problem is not None or any(str(path) in message for path in (*self.image_paths, self.label_path))
        return message if named or not self.image_paths else f"{self.image_paths[0]}: {message}"

    def read_clip(self) -> Clip:
        """Reads all frames of the clip, and only the frames.

        Raises:
            DataError: It cannot be read or used.
            ValueError: The case is of no clip.
        """
        self.require_sound()
        if self.clip is None or self.clip_id is None:
            raise ValueError(f"case {self.case_id} is of no clip")
        return self.clip.read(self.clip_id, self.patient_id, self.tags)

    def read(self) -> Case:
        """Reads the image, and only the image; of a frame its clip is read, and kept for the next frame.

        Raises:
            DataError: It cannot be read or used.
        """
        self.require_sound()
        if self.frame is not None:
            return replace(self.read_clip().frame(self.frame), case_id=self.case_id)
        image, geometry = read_image(self.image_paths)
        return Case(self.case_id, self.patient_id, image, geometry, self.tags)

    def read_labelled(self, schema: LabelSchema, may_ignore: bool = False, may_lack: bool = False) -> LabelledCase:
        """Reads the image and its mask, whose integers mean what the description of the data says, or the schema.

        Args:
            schema: Structures that the class indices of the ground truth stand for.
            may_ignore: Whether the caller leaves out pixels of which nothing is said; they are `IGNORED` there.
            may_lack: Whether the caller leaves out structures of which nothing is said, as the tracings of EchoNet say
                nothing but of the left ventricle.

        Raises:
            DataError: There is no mask, one of them cannot be read, they do not belong together, the description
                lacks a structure of the schema, or nothing is said of some pixels or structures and something has to
                be.
        """
        self.require_sound()
        if self.label_path is None:
            raise DataError(f"case {self.case_id}: {_without_mask(self)}")
        in_file = None if self.described is None else self.described.schema_for(schema)
        case = self.read()
        traced = self.read_tracing(case)
        if traced is not None:
            ventricle = ventricle_of(schema, self.label_path)
            others = [name for name in schema.structures if name != ventricle]
            if others and not may_lack:
                raise DataError(
                    f"case {self.case_id}: {self.label_path} traces {ventricle} and says nothing of "
                    f"{', '.join(others)}; a segmenter of these can be compared with it (`evaluate`), and cannot learn "
                    "or be calibrated by it"
                )
            labels = traced * np.uint8(schema.index_of(ventricle))
            return LabelledCase(case, labels, (ventricle,) if others else None)
        frame, frames = case.frame, case.frames
        labels = read_labels(self.label_path, schema, case.shape, case.geometry, in_file, frame, may_ignore, frames)
        return LabelledCase(case, labels)

    def read_tracing(self, case: Case) -> npt.NDArray[np.bool_] | None:
        """The left ventricle `(H, W)` where the mask is a tracing in a table, as in EchoNet; None where it is a file.

        Raises:
            DataError: The tracing encloses nothing, or leaves the frame.
        """
        if self.label_path is None or self.frame is None or self.label_path.name != TRACINGS:
            return None
        return traced_mask(self.label_path, video_name(self.image_paths[0].name), self.frame, case.shape)


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


def with_masks(files: Sequence[CaseFile]) -> list[CaseFile]:
    """The cases without those frames that have no mask while another frame of their clip has one, as in EchoNet."""
    partly = {file.clip_id for file in files if file.frame is not None and file.label_path is not None}
    return [file for file in files if file.label_path is not None or file.frame is None or file.clip_id not in partly]


def whole_clips(files: Sequence[CaseFile]) -> list[CaseFile]:
    """The cases with each clip in the place of its frames, for what is made of a clip at once."""
    found: dict[tuple[str | None, str], CaseFile] = {}
    for file in files:
        whole = file if file.clip_id is None else replace(file, case_id=file.clip_id, frame=None)
        found.setdefault((file.clip_id, whole.case_id), whole)
    return list(found.values())


def find_ventricle(schema: LabelSchema) -> str | None:
    """The structure that is the left ventricle: by its name, or the only one there is; None where there is none."""
    for name in schema.structures:
        if "".join(filter(str.isalnum, name.casefold())) in _VENTRICLES:
            return name
    return schema.structures[0] if len(schema.structures) == 1 else None


def ventricle_of(schema: LabelSchema, where: Path | str) -> str:
    """The structure that is the left ventricle, as `find_ventricle` finds it.

    Args:
        schema: Structures.
        where: File, folder or option that names them, for the message.

    Raises:
        DataError: No structure has such a name.
    """
    found = find_ventricle(schema)
    if found is not None:
        return found
    raise DataError(
        f"{where}: one structure has to be the left ventricle, and none of {', '.join(schema.structures)} is called LV"
    )


def are_simulated(files: Sequence[CaseFile]) -> bool:
    """Whether the images of a call are simulated; its cases are of one data set."""
    return any(is_simulated(path.parent) for file in files[:1] for path in file.image_paths)


def describe_patients(files: Sequence[CaseFile]) -> str:
    """As `name_patients`, of cases."""
    return name_patients([file.patient_id for file in files], [file.case_id for file in files])


def _without_mask(file: CaseFile, count: str = "") -> str:
    remedy = "labelled data is needed here"
    if file.tags.get("split") == "test":
        remedy += ", and the images for testing have none: leave them out by split: train (--split train)"
    return f"there is no mask for {file.image_paths[0]}{count}; {remedy}"
