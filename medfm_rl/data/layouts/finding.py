"""Finds the cases of a data set, whatever its layout, and says what it left out."""

from __future__ import annotations

import tarfile
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medfm_rl.data.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from medfm_rl.data.layouts.camus import find_camus, looks_like_camus
from medfm_rl.data.layouts.cases import CaseFile, Found, describe_patients
from medfm_rl.data.layouts.clips import expand_clips, find_clips, find_images_and_clips
from medfm_rl.data.layouts.description import DESCRIPTION, Description
from medfm_rl.data.layouts.echonet import find_echonet, looks_like_echonet
from medfm_rl.data.layouts.nnunet import find_images, find_raw, has_raw_folders, looks_like_nnunet
from medfm_rl.data.layouts.patients import doubt_patients, patients_by
from medfm_rl.data.notices import warn_once
from medfm_rl.errors import DataError
from medfm_rl.settings import DataSettings

_SHOWN = 3


@dataclass(frozen=True)
class DataSet:
    """What was found of a data set, before any image is read.

    Attributes:
        root: Its folder.
        layout: The layout that it was read in.
        patients_by: The rule by which images were put together to patients, in words.
        cases: Its cases, sorted by case id; one that cannot be used says so when it is read.
        skipped: What was not read, by the reason.
        notes: What was decided that the names leave open, in sentences.
        doubt: Why the patients are hardly those of the names; None where nothing speaks against them.
    """

    root: Path
    layout: str
    patients_by: str
    cases: Sequence[CaseFile]
    skipped: Mapping[str, Sequence[Path]]
    notes: Sequence[str]
    doubt: str | None

    @property
    def warnings(self) -> list[str]:
        """What a person should know of it, in sentences."""
        skipped = list_skipped(self.skipped, self.root)
        doubt = [] if self.doubt is None else [f"{self.doubt}; {self.patients}"]
        return [*self.notes, *([skipped] if skipped else []), *doubt]

    @property
    def patients(self) -> str:
        """Which patients were found, the first with their images, as the end of a message."""
        return describe_patients([case for case in self.cases if case.problem is None])


def find_cases(settings: DataSettings) -> list[CaseFile]:
    """Finds the cases of a data set, sorted by case id.

    A case that cannot be used, such as one of two images of a name, is among them, and says so when it is read. A
    warning counts and names what was skipped, and another says where the patients are hardly those of the names.

    Raises:
        DataError: As in `find_data_set`.
    """
    found = find_data_set(settings)
    for warning in found.warnings:
        # Several steps of a run look for the same cases.
        warn_once(f"{found.root}: {warning}")
    return list(found.cases)


def find_data_set(settings: DataSettings) -> DataSet:
    """The same, and what else was found; nothing is logged.

    Raises:
        DataError: The folder is missing, holds no image, is not laid out as said or has no parts to `split`, not one
            case can be used, the pattern finds no patient in any name, or `where` leaves nothing.
    """
    root = settings.path
    if not root.is_dir():
        raise DataError(f"{root}: {_no_folder(root)}")
    layout, found = _find(root, settings)
    listed = list_skipped(found.skipped, root)
    if not found.cases:
        raise DataError(
            f"{root}: no image found (layout {layout}){f': {listed}' if listed else ''}; names of images end in "
            f"{', '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))}, and DICOM is known by its content; check the path and "
            "`layout`"
        )
    cases = list(found.cases)
    patients_by = found.patients_by
    if settings.patient_pattern is not None:
        cases = _with_patients(cases, settings.patient_pattern, root)
        patients_by = f"patient_pattern {settings.patient_pattern}"
    kept = _keep(cases, settings.where, root)
    sound = [case for case in kept if case.problem is None]
    if not sound:
        more = f" (and {len(kept) - 1} more like it)" if len(kept) > 1 else ""
        raise DataError(f"{kept[0].problem}{more}")
    doubt = _doubt(sound, settings.patient_pattern)
    kept = expand_clips(sorted(kept, key=lambda case: case.case_id))
    return DataSet(root, layout, patients_by, kept, found.skipped, found.notes, doubt)


def _no_folder(root: Path) -> str:
    if not root.exists():
        return "there is no such folder"
    if zipfile.is_zipfile(root) or tarfile.is_tarfile(root):
        return "this is an archive; unpack it, and give the folder"
    return "this is a file; give the folder that it lies in"


def _keep(cases: Sequence[CaseFile], where: Mapping[str, str], root: Path) -> list[CaseFile]:
    """The cases with these tags.

    Raises:
        DataError: None has.
    """
    kept = [case for case in cases if all(case.tags.get(tag) == value for tag, value in where.items())]
    if not kept:
        known = {tag: sorted({case.tags.get(tag, "") for case in cases}) for case in cases for tag in case.tags}
        raise DataError(f"{root}: no case has {where}; tags in this data set: {known or 'none'}")
    return kept


def _doubt(cases: Sequence[CaseFile], pattern: str | None) -> str | None:
    """Why the patients of cases are hardly those of the names."""
    if pattern is None:
        return doubt_patients([(case.case_id, case.patient_id) for case in cases])
    alone = len(cases) > 1 and len({case.patient_id for case in cases}) == 1
    return f"all {len(cases)} cases are taken for those of one patient" if alone else None


def _find(root: Path, settings: DataSettings) -> tuple[str, Found]:
    """The layout of a folder, and what lies there."""
    description = None if settings.layout == "camus" else Description.read(root)
    raw = description is not None and (has_raw_folders(root) or bool(description.listed()))
    if settings.split != "all" and not (raw and settings.layout in ("auto", "nnunet")):
        raise DataError(f"{root}: split {settings.split} is for nnU-Net data sets with a {DESCRIPTION}; use all")
    layout = settings.layout
    if layout == "clips":
        return layout, find_clips(root)
    if layout == "echonet" or (layout == "auto" and looks_like_echonet(root)):
        return "echonet", find_echonet(root)
    if layout == "auto":
        layout = "folder"
        if raw or looks_like_nnunet(root):
            layout = "nnunet"
        if not raw and looks_like_camus(root):
            layout = "camus"
    if layout == "camus":
        return layout, find_camus(root)
    if layout == "nnunet" and raw:
        assert description is not None
        return layout, find_raw(root, description, settings.split)
    found = find_images(root) if layout == "nnunet" else find_images_and_clips(root)
    if description is None or description.labels is None:
        return layout, found
    return layout, replace(found, cases=[replace(case, described=description.labels) for case in found.cases])


def list_skipped(skipped: Mapping[str, Sequence[Path]], root: Path) -> str:
    """How many files and folders are not read, why not, and the first of them; nothing where there are none."""
    total = sum(map(len, skipped.values()))
    if not total:
        return ""
    reasons = []
    for reason, paths in skipped.items():
        more = ", ..." if len(paths) > _SHOWN else ""
        reasons.append(f"{len(paths)} {reason} ({', '.join(_named(path, root) for path in paths[:_SHOWN])}{more})")
    return f"{total} {'entry is' if total == 1 else 'entries are'} skipped: {'; '.join(reasons)}"


def _named(path: Path, root: Path) -> str:
    name = str(path.relative_to(root)) if root in path.parents else str(path)
    return f"{name}/" if path.is_dir() else name


def _with_patients(cases: Sequence[CaseFile], pattern: str, root: Path) -> list[CaseFile]:
    """The cases with the patients that a pattern finds; one in whose name it finds none has a problem.

    Raises:
        DataError: It finds none in any name: it is the pattern that is wrong.
    """
    found = patients_by(unicodedata.normalize("NFC", pattern), [case.case_id for case in cases])
    problems = {
        name: f"{root}: patient_pattern {pattern!r} finds no patient in the case name {name!r}"
        for name, patient in found.items()
        if patient is None
    }
    if len(problems) == len(found):
        raise DataError(next(iter(problems.values())))
    return [
        replace(
            case, patient_id=found[case.case_id] or case.case_id, problem=case.problem or problems.get(case.case_id)
        )
        for case in cases
    ]
