"""nnU-Net's naming, `CASE_0000.ext`, one file per channel: with a `dataset.json`, or images alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from medfm_rl.data.files import cannot_be_read
from medfm_rl.data.images import holds_spacing, image_stem, image_suffix
from medfm_rl.data.layouts.cases import CaseFile, Found
from medfm_rl.data.layouts.description import Description, ListedCase
from medfm_rl.data.layouts.folder import mask_alone, refuse_other_names, two_of_a_name
from medfm_rl.data.layouts.patients import BY_NAME, patient_of
from medfm_rl.data.layouts.tree import HIDDEN, IMAGES, Entry, look_below
from medfm_rl.data.names import case_name, file_of_case, text_of
from medfm_rl.errors import DataError

TRAIN, TEST = "imagesTr", "imagesTs"
_LABELS = {TRAIN: "labelsTr", TEST: "labelsTs"}
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_NOT_NAMED = "of another name than CASE_0000 and the ending in dataset.json"
_NOT_LISTED = "in no list of dataset.json"


def looks_like_nnunet(root: Path) -> bool:
    """Whether a folder without a description is one of nnU-Net, by its name or that of every image in it.

    Numbers that go on could be channels or frames: `layout` has to say it. Where a mask has the number too, it is part
    of the name.
    """
    if root.name in _LABELS:
        return True
    tree = look_below(root)
    images, masks = ({entry.parts[-1] for entry in entries} for entries in (tree.images, tree.masks))
    single = all(name.endswith("_0000") for name in images)
    return bool(images) and single and not images & masks


def has_raw_folders(root: Path) -> bool:
    """Whether a folder with a description is laid out as nnU-Net's raw data."""
    return any((root / name).is_dir() for name in _LABELS)


def find_raw(root: Path, description: Description, split: str) -> Found:
    """A data set: `imagesTr`, `labelsTr`, `imagesTs`, `dataset.json`; the case name is the patient unless told.

    Raises:
        DataError: The description says too little, or no mask has the name of an image.
    """
    listed = description.listed()
    parts = [part for part in ("train", "test") if split in ("all", part)]
    skipped: dict[str, list[Path]] = {}
    cases: dict[str, CaseFile] = {}
    if listed:
        cases = _joined(_listed_case(item, description) for item in listed if item.part in parts)
        taken = {path for case in cases.values() for path in (*case.image_paths, case.label_path)}
        for folder in (root / TRAIN, root / TEST):
            for path in _entries(folder):
                if path not in taken:
                    skipped.setdefault(HIDDEN if path.name.startswith(".") else _NOT_LISTED, []).append(path)
    if not listed or (description.is_of_nnunet and not any(item.part == "test" for item in listed)):
        folders = [TRAIN] if "train" in parts and not listed else []
        folders += [TEST] if "test" in parts else []
        # The lists of nnU-Net leave out what is for testing.
        found = [case for folder in folders for case in _find_in(root, folder, description, skipped)]
        cases = _joined((*cases.values(), *found))
    described = [replace(case, described=description.labels) for case in cases.values()]
    return Found(described, skipped, "the name of the case")


def find_images(root: Path) -> Found:
    """What `nnUNetv2_predict` takes: a folder of images alone, or `images/` and `labels/CASE.ext` beside it.

    Raises:
        DataError: There is no image of nnU-Net's naming, or no mask has the name of an image.
    """
    tree = look_below(root)
    folder = root / IMAGES if (root / IMAGES).is_dir() else root
    cases: list[CaseFile] = []
    channels: dict[str, dict[int, list[Entry]]] = {}
    for entry in tree.images:
        match = _CHANNEL.fullmatch("_".join(entry.parts))
        if match is None:
            misnamed = (
                f"{entry.path}: nnU-Net names images CASE_0000, CASE_0001, a file per channel; rename it or set "
                "`layout`"
            )
            cases.append(CaseFile(entry.name, patient_of(entry.name), (entry.path,), problem=misnamed))
        else:
            of_case = channels.setdefault(case_name(match["case"]), {})
            of_case.setdefault(int(match["channel"]), []).append(entry)
    if not channels:
        raise DataError(f"{root}: there is neither dataset.json nor an image CASE_0000 (layout nnunet); check the path")
    count = max(max(of_case) for of_case in channels.values()) + 1
    masks: dict[str, list[Path]] = {}
    for entry in tree.masks:
        masks.setdefault(entry.name, []).append(entry.path)
    refuse_other_names({name: paths[0] for name, paths in masks.items()}, channels, folder)
    for name, of_case in channels.items():
        first = next(iter(of_case.values()))[0].path
        ending = image_suffix(first) or ""
        # A channel that is not there is met when the case is read, where an error names the file.
        paths = tuple(
            of_case[index][0].path if index in of_case else file_of_case(first.parent, f"{name}_{index:04d}", ending)
            for index in range(count)
        )
        twice = next((entries[1].path for entries in of_case.values() if len(entries) > 1), None)
        problem = None if twice is None else f"{twice}: there are two files of this channel; remove one of them"
        labels = masks.pop(name, [])
        if len(labels) > 1:
            problem = two_of_a_name("masks", name, labels)
        cases.append(CaseFile(name, patient_of(name), paths, labels[0] if labels else None, problem=problem))
    for name, labels in masks.items():
        cases.append(CaseFile(name, patient_of(name), (), labels[0], problem=mask_alone(labels[0], folder)))
    for entry, error in tree.closed:
        cases.append(CaseFile(entry.name, patient_of(entry.name), (), problem=str(error)))
    return Found(cases, tree.skipped, BY_NAME)


def _find_in(root: Path, part: str, description: Description, skipped: dict[str, list[Path]]) -> list[CaseFile]:
    """The cases of one folder of images, and the masks beside it."""
    folder, ending, count = root / part, description.ending, description.channels
    files: dict[str, dict[int, list[Path]]] = {}
    for path in _entries(folder):
        stem = _stem(path, ending)
        match = None if stem is None else _CHANNEL.fullmatch(stem)
        if path.name.startswith(".") or match is None or not _is_file(path):
            skipped.setdefault(HIDDEN if path.name.startswith(".") else _NOT_NAMED, []).append(path)
        else:
            of_case = files.setdefault(case_name(match["case"]), {})
            of_case.setdefault(int(match["channel"]), []).append(path)
    masks: dict[str, list[Path]] = {}
    for path in _entries(root / _LABELS[part]):
        of_mask = _stem(path, ending)
        if of_mask is None or path.name.startswith("."):
            skipped.setdefault(HIDDEN if path.name.startswith(".") else _NOT_NAMED, []).append(path)
        else:
            masks.setdefault(case_name(of_mask), []).append(path)
    refuse_other_names({name: paths[0] for name, paths in masks.items()}, files, folder)
    # nnU-Net reads the colours of a picture as channels, of one file.
    colours = not holds_spacing(Path(f"image{ending}")) and all(of_case.keys() == {0} for of_case in files.values())
    tags = {"split": "train" if part == TRAIN else "test"}
    cases = []
    for name in dict.fromkeys((*files, *masks)):
        of_case, labels = files.get(name, {}), masks.get(name, [])
        problem = None
        if not of_case:
            problem = mask_alone(labels[0], folder)
        # Every channel counts: a case that lacks one is met when it is read, where an error names the file.
        paths = tuple(
            of_case[index][0] if index in of_case else file_of_case(folder, f"{name}_{index:04d}", ending)
            for index in range(1 if colours else count)
            if of_case
        )
        for kind, found in (("masks", labels), *(("images", several) for several in of_case.values())):
            if len(found) > 1:
                problem = two_of_a_name(kind, name, found)
        cases.append(CaseFile(name, name, paths, labels[0] if labels else None, tags, problem))
    return cases


def _listed_case(item: ListedCase, description: Description) -> CaseFile:
    """A case that is listed by its files; version 1 of nnU-Net leaves out the number of the channel there."""
    paths = item.images
    (first, *more) = paths
    if not more and not _is_there(first):
        stem, ending = image_stem(first), image_suffix(first) or ""
        channels = range(description.channels if description.is_of_nnunet else 1)
        numbered = tuple(first.with_name(f"{stem}_{channel:04d}{ending}") for channel in channels)
        paths = numbered if _is_there(numbered[0]) else paths
    stem = text_of(image_stem(first))
    match = _CHANNEL.fullmatch(stem) if more else None
    name = case_name(item.name if item.name is not None else stem if match is None else match["case"])
    return CaseFile(name, name, paths, item.label, {"split": item.part})


def _joined(cases: Iterable[CaseFile]) -> dict[str, CaseFile]:
    """Cases by their names; one that is there twice has a problem."""
    joined: dict[str, CaseFile] = {}
    for case in cases:
        before = joined.get(case.case_id)
        if before is not None:
            paths = [*before.image_paths[:1], *case.image_paths[:1]]
            case = replace(before, problem=two_of_a_name("images", case.case_id, paths))
        joined[case.case_id] = case
    return joined


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where there is none.

    Raises:
        DataError: It may not be looked into.
    """
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise cannot_be_read(folder, error) from error


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False  # Reading it says why.


def _is_file(path: Path) -> bool:
    # A link that leads nowhere is a file that cannot be read, and said to be so when it is.
    return path.is_symlink() or path.is_file()


def _stem(path: Path, ending: str) -> str | None:
    """The name without that ending, in whatever case it is written; None where it has another."""
    name = text_of(path.name)
    return name[: -len(ending)] if name.lower().endswith(ending) else None
