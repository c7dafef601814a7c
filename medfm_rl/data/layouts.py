"""How data sets are laid out in folders, and who each image shows."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from medfm_rl.data.images import IMAGE_SUFFIXES, image_stem, image_suffix, read_image
from medfm_rl.data.labels import read_labels
from medfm_rl.errors import DataError
from medfm_rl.settings import DataSettings
from medfm_rl.types import Case, LabelledCase, LabelSchema

SIMULATION_RECORD = "simulation.json"
"""The file in a data set's folder that says that its images are simulated."""
_LOG = logging.getLogger(__name__)
_DESCRIPTION = "dataset.json"
_RAW_FOLDERS = ("imagesTr", "imagesTs")
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_CAMUS_NAME = re.compile(r"^(?P<patient>patient\d+)_(?P<view>2CH|4CH)_(?P<phase>ED|ES)(?P<mask>_gt)?$")
_CAMUS_QUALITY = re.compile(r"^ImageQuality:\s*(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class CaseFile:
    """Where one case lies.

    Attributes:
        case_id: Unique within the data set.
        patient_id: Every split is made by it.
        image_paths: One file per channel, or one DICOM folder.
        label_path: The mask, where there is one.
        tags: What the layout knows besides, for example `{"view": "4CH", "phase": "ED"}`.
    """

    case_id: str
    patient_id: str
    image_paths: tuple[Path, ...]
    label_path: Path | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> Case:
        """Reads the image, and only the image.

        Raises:
            DataError: It cannot be read or used.
        """
        image, geometry = read_image(self.image_paths)
        return Case(self.case_id, self.patient_id, image, geometry, self.tags)

    def read_labelled(self, schema: LabelSchema) -> LabelledCase:
        """Reads the image and its mask.

        Raises:
            DataError: There is no mask, or one of them cannot be read, or they do not belong together.
        """
        if self.label_path is None:
            raise DataError(f"case {self.case_id}: {_without_mask(self)}")
        case = self.read()
        return LabelledCase(case, read_labels(self.label_path, schema, case.shape, case.geometry))


def find_cases(settings: DataSettings) -> list[CaseFile]:
    """Finds the cases of a data set, sorted by case id; a warning says where all are of one patient.

    Raises:
        DataError: The folder is missing, holds no image, is not laid out as said or has no parts to `split`, the
            pattern finds no patient, or `where` leaves nothing.
    """
    root = settings.path
    if not root.is_dir():
        problem = "this is a file; give the folder that it lies in" if root.exists() else "there is no such folder"
        raise DataError(f"{root}: {problem}")
    layout = _detect(root) if settings.layout == "auto" else settings.layout
    if settings.split != "all" and not (layout == "nnunet" and (root / _DESCRIPTION).exists()):
        raise DataError(f"{root}: split {settings.split} is for nnU-Net data sets with a {_DESCRIPTION}; use all")
    match layout:
        case "nnunet":
            cases = _find_nnunet(root, settings.split)
        case "camus":
            cases = _find_camus(root)
        case _:
            cases = _find_folder(root)
    if not cases:
        raise DataError(f"{root}: no image found (layout {layout}){_what_is_there(root)}; check the path and `layout`")
    if settings.patient_pattern is not None:
        cases = [_with_patient(case, settings.patient_pattern, root) for case in cases]
    kept = [case for case in cases if all(case.tags.get(tag) == value for tag, value in settings.where.items())]
    if not kept:
        known = {tag: sorted({case.tags.get(tag, "") for case in cases}) for case in cases for tag in case.tags}
        raise DataError(f"{root}: no case has {settings.where}; tags in this data set: {known or 'none'}")
    patients = {case.patient_id for case in kept}
    if len(kept) > 1 and len(patients) == 1:
        _LOG.warning(
            "%s: all %d cases are taken for those of one patient; %s", root, len(kept), name_patients(patients)
        )
    return sorted(kept, key=lambda case: case.case_id)


def require_masks(files: Sequence[CaseFile], where: str) -> None:
    """Raises DataError where a case has no mask; `where` is the beginning of the message."""
    without = [file for file in files if file.label_path is None]
    if without:
        count = f" ({len(without)} of {len(files)} images have none)"
        raise DataError(f"{where}: {_without_mask(without[0], count)}")


def name_patients(patients: Collection[str]) -> str:
    """How many patients were found, the first of them, and the setting that says who is who: the end of a message."""
    names = sorted(patients)
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"patients found: {len(names)}{f' ({shown})' if names else ''}; if there are others, set patient_pattern "
        "(--patient-pattern) to what finds them in the names of the cases"
    )


def _without_mask(file: CaseFile, count: str = "") -> str:
    remedy = "labelled data is needed here"
    if file.tags.get("split") == "test":
        remedy += ", and the images for testing have none: leave them out by split: train (--split train)"
    return f"there is no mask for {file.image_paths[0]}{count}; {remedy}"


def _what_is_there(root: Path) -> str:
    """Of a folder without images: which files were not taken for some, and what would have been."""
    folder = _images_of(root)
    below = [
        path for place in (folder, *(path for path in _visible(folder) if path.is_dir())) for path in _visible(place)
    ]
    ignored = [path.relative_to(folder) for path in below if path.is_file() and image_suffix(path) is None]
    if not ignored:
        return ""
    return (
        f": {len(ignored)} files are ignored for their names, the first {ignored[0]}; names of images end in "
        f"{', '.join(IMAGE_SUFFIXES)} (DICOM files without an ending: add .dcm; those of one series in a folder of "
        "their own)"
    )


class _OfPatient(Protocol):
    @property
    def patient_id(self) -> str: ...


T = TypeVar("T", bound=_OfPatient)


def is_simulated(folder: Path) -> bool:
    """Whether a data set was made by a simulation, also where only its folder of images is given."""
    return any((place / SIMULATION_RECORD).exists() for place in (folder, folder.absolute().parent))


def split_by_patient(
    cases: Sequence[T], fraction: float, seed: int, where: str = "the data"
) -> tuple[list[T], list[T]]:
    """Splits cases so that no patient is on both sides.

    Args:
        cases: Anything that has a `patient_id`.
        fraction: Share of patients on the second side, in (0, 1); each side gets at least one patient.
        seed: The same seed and patients give the same split.
        where: Where the cases come from, for the error message.

    Returns:
        The cases of the first side, those of the second, each in the order given.

    Raises:
        DataError: There are fewer than two patients.
    """
    patients = sorted({case.patient_id for case in cases})
    if len(patients) < 2:
        raise DataError(f"{where}: a split by patient needs at least 2 patients; {name_patients(patients)}")
    count = min(max(1, round(fraction * len(patients))), len(patients) - 1)
    second = {patients[index] for index in np.random.default_rng(seed).permutation(len(patients))[:count]}
    return (
        [case for case in cases if case.patient_id not in second],
        [case for case in cases if case.patient_id in second],
    )


def _detect(root: Path) -> str:
    if (root / _DESCRIPTION).exists():
        return "nnunet"
    if any(_CAMUS_NAME.match(image_stem(path)) for path in root.glob("patient*/*")):
        return "camus"
    return "nnunet" if root.name in _RAW_FOLDERS or _has_single_channels(root) else "folder"


def _has_single_channels(root: Path) -> bool:
    """Whether every image is a channel 0 of nnU-Net's naming, and no mask is named so.

    Numbers that go on could be channels or frames: `layout` has to say it.
    """
    images = [image_stem(path) for path in _visible(_images_of(root)) if _is_case(path)]
    masks = [image_stem(path) for path in _visible(root / "labels")]
    single = all(name.endswith("_0000") for name in images)
    return bool(images) and single and not set(images) & set(masks)


def _find_nnunet(root: Path, split: str) -> list[CaseFile]:
    """nnU-Net's naming: `CASE_0000.ext`, one file per channel."""
    return _find_nnunet_raw(root, split) if (root / _DESCRIPTION).exists() else _find_nnunet_images(root)


def _find_nnunet_images(root: Path) -> list[CaseFile]:
    """What `nnUNetv2_predict` takes: a folder of images alone, or `images/` and `labels/CASE.ext` beside it."""
    folder = _images_of(root)
    channels: dict[str, dict[int, Path]] = {}
    for path in _visible(folder):
        if not _is_case(path):
            continue
        match = _CHANNEL.fullmatch(image_stem(path))
        if match is None:
            raise DataError(
                f"{path}: nnU-Net names images CASE_0000, CASE_0001, a file per channel; rename it or set `layout`"
            )
        of_case = channels.setdefault(match["case"], {})
        if int(match["channel"]) in of_case:
            raise DataError(f"{path}: there are two files of this channel; remove one of them")
        of_case[int(match["channel"])] = path
    if not channels:
        raise DataError(
            f"{root}: there is neither {_DESCRIPTION} nor an image CASE_0000 (layout nnunet); check the path"
        )
    count = max(max(of_case) for of_case in channels.values()) + 1
    masks = _masks_beside(root, channels)
    cases = []
    for name, of_case in channels.items():
        ending = image_suffix(next(iter(of_case.values())))
        # A channel that is not there is met when the case is read, where an error names the file.
        paths = tuple(of_case.get(index, folder / f"{name}_{index:04d}{ending}") for index in range(count))
        cases.append(CaseFile(name, _patient_of(name), paths, masks.get(name)))
    return cases


def _find_nnunet_raw(root: Path, split: str) -> list[CaseFile]:
    """A data set: `imagesTr`, `labelsTr`, `imagesTs`, `dataset.json`; the case name is the patient unless told."""
    description = root / _DESCRIPTION
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        ending, channels = content["file_ending"], len(content["channel_names"])
        if not channels:
            raise ValueError("channel_names is empty")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{description}: an nnU-Net data set needs file_ending and channel_names here ({error})"
        ) from error
    channel_file = re.compile(rf"(?P<case>.+)_\d{{4}}{re.escape(ending)}")
    cases: dict[str, CaseFile] = {}
    for part, images, labels in (("train", "imagesTr", "labelsTr"), ("test", "imagesTs", "labelsTs")):
        if split not in ("all", part):
            continue
        folder = root / images
        # Every channel counts: a case that lacks one is met when it is read, where an error names the file.
        names = {match["case"] for path in _visible(folder) if (match := channel_file.fullmatch(path.name))}
        masks = {path.name.removesuffix(ending): path for path in _visible(root / labels) if path.name.endswith(ending)}
        _refuse_masks_alone(masks, names, folder)
        for name in sorted(names):
            paths = tuple(folder / f"{name}_{channel:04d}{ending}" for channel in range(channels))
            if name in cases:
                raise DataError(f"{folder}: two images have the name {name}, here and in imagesTr; rename one of them")
            cases[name] = CaseFile(name, name, paths, masks.get(name), {"split": part})
    return list(cases.values())


def _find_camus(root: Path) -> list[CaseFile]:
    """CAMUS: `patient0001/patient0001_4CH_ED.mhd` or `.nii.gz`, masks `_gt`; sequences are left out."""
    files: dict[str, Path] = {}
    for path in sorted(root.glob("patient*/*")):
        if image_suffix(path) and _CAMUS_NAME.match(image_stem(path)):
            files[image_stem(path)] = path
    masks = {name.removesuffix("_gt"): path for name, path in files.items() if name.endswith("_gt")}
    _refuse_masks_alone(masks, files, root)
    cases = []
    for name, path in files.items():
        match = _CAMUS_NAME.match(name)
        if match is None or match["mask"]:
            continue
        tags = {"view": match["view"], "phase": match["phase"]}
        info = path.with_name(f"Info_{match['view']}.cfg")
        quality = _CAMUS_QUALITY.search(info.read_text(encoding="utf-8")) if info.exists() else None
        if quality:
            tags["quality"] = quality[1]
        cases.append(CaseFile(name, match["patient"], (path,), masks.get(name), tags))
    return cases


def _find_folder(root: Path) -> list[CaseFile]:
    """`images/` and `labels/` with the same names, or images alone; a sub-folder of DICOM slices is one case."""
    folder = _images_of(root)
    images = _by_name([path for path in _visible(folder) if _is_case(path)], "images")
    masks = _masks_beside(root, images)
    return [CaseFile(name, _patient_of(name), (path,), masks.get(name)) for name, path in images.items()]


def _images_of(root: Path) -> Path:
    return root / "images" if (root / "images").is_dir() else root


def _masks_beside(root: Path, names: Collection[str]) -> dict[str, Path]:
    """Masks in `labels/` by the name of their image."""
    masks = _by_name([path for path in _visible(root / "labels") if image_suffix(path)], "masks")
    _refuse_masks_alone(masks, names, _images_of(root))
    return masks


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, if there is one, without hidden files such as the `._NAME` of macOS."""
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")] if folder.is_dir() else []


def _by_name(paths: Sequence[Path], kind: str) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        name = path.name if path.is_dir() else image_stem(path)
        if name in named:
            raise DataError(
                f"{path.parent}: two {kind} have the name {name} ({named[name].name}, {path.name}); rename one of them"
            )
        named[name] = path
    return named


def _refuse_masks_alone(masks: Mapping[str, Path], images: Collection[str], folder: Path) -> None:
    orphans = sorted(set(masks) - set(images))
    if orphans:
        raise DataError(
            f"{masks[orphans[0]]}: there is no image of that name in {folder}; masks and images share names"
        )


def _is_case(path: Path) -> bool:
    if path.is_dir():
        return path.name not in ("images", "labels") and any(image_suffix(file) == ".dcm" for file in path.iterdir())
    return image_suffix(path) is not None


def _patient_of(name: str) -> str:
    return name.split("_")[0]


def _with_patient(case: CaseFile, pattern: str, root: Path) -> CaseFile:
    found = re.search(pattern, case.case_id)
    if found is None or not found.groups() or not found[1]:
        raise DataError(f"{root}: patient_pattern {pattern!r} finds no patient in the case name {case.case_id!r}")
    return CaseFile(case.case_id, found[1], case.image_paths, case.label_path, case.tags)
