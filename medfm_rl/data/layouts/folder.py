"""A plain folder: `images/` and `labels/` with the same names, or images alone, in folders of whatever depth."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from medfm_rl.data.layouts.cases import CaseFile, Found
from medfm_rl.data.layouts.patients import BY_NAME, patient_of
from medfm_rl.data.layouts.tree import Entry, look_below
from medfm_rl.errors import DataError

_MASK_ENDINGS = ("_gt", "_mask", "_seg", "_segmentation", "_label", "-mask", "-seg", "-label")
"""What is added to the name of an image to name its mask beside it."""
_BY_FOLDER = f"the outermost folder; {BY_NAME} where an image lies in none"


def find_folder(root: Path) -> Found:
    """Finds images and masks of the same names; a folder of DICOM slices below the root is one image.

    Where folders lie in folders, as archives write them, the outermost is the patient.

    Raises:
        DataError: No mask has the name of an image, or the folder may not be looked into.
    """
    tree = look_below(root)
    images, masks = tree.images, tree.masks
    notes = []
    if not masks:
        images, masks = _masks_among(images)
        if masks:
            notes.append(
                f"{len(masks)} files are taken for masks of the images beside them, {masks[0].path.name} for that of "
                f"{masks[0].parts[-1]}"
            )
    cases = pair(images, masks, root)
    for entry, error in tree.closed:
        cases.append(CaseFile(entry.name, _patient(entry), (), problem=str(error)))
    by_folder = any(len(entry.parts) > 1 for entry in images)
    return Found(cases, tree.skipped, _BY_FOLDER if by_folder else BY_NAME, notes)


def pair(images: Sequence[Entry], masks: Sequence[Entry], root: Path) -> list[CaseFile]:
    """Cases of images and the masks of their names; one of either that is alone or has a double has a problem.

    Raises:
        DataError: There are masks and images, and not one mask has the name of an image.
    """
    of_name: dict[str, list[Entry]] = {}
    for entry in images:
        of_name.setdefault(entry.name, []).append(entry)
    masks_of: dict[str, list[Entry]] = {}
    for entry in masks:
        masks_of.setdefault(entry.name, []).append(entry)
    refuse_other_names({name: entries[0].path for name, entries in masks_of.items()}, of_name, root)
    cases = []
    for name in dict.fromkeys((*of_name, *masks_of)):
        own, labels = of_name.get(name, []), masks_of.get(name, [])
        first = (own or labels)[0]
        problem = None
        for kind, found in (("images", own), ("masks", labels)):
            if len(found) > 1:
                problem = two_of_a_name(kind, name, [entry.path for entry in found])
        if not own:
            problem = mask_alone(first.path, root)
        paths = (own[0].path,) if own else ()
        cases.append(CaseFile(name, _patient(first), paths, labels[0].path if labels else None, problem=problem))
    return cases


def two_of_a_name(kind: str, name: str, paths: Sequence[Path]) -> str:
    """The problem of a case that several files have the name of."""
    listed = ", ".join(path.name for path in paths)
    return f"{paths[-1].parent}: two {kind} have the name {name} ({listed}); rename or remove one of them"


def mask_alone(mask: Path, folder: Path) -> str:
    """The problem of a mask without an image."""
    return f"{mask}: there is no image of that name in {folder}; masks and images share names"


def refuse_other_names(masks: dict[str, Path], images: Collection[str], folder: Path) -> None:
    """Raises DataError where no mask at all has the name of an image: then it is the names that are wrong."""
    if masks and images and not masks.keys() & set(images):
        raise DataError(mask_alone(masks[min(masks)], folder))


def _masks_among(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Images, and those that are named after one beside them as its mask."""
    parts = {entry.parts for entry in entries}
    images, masks = [], []
    for entry in entries:
        *folders, name = entry.parts
        ending = next((end for end in _MASK_ENDINGS if name.lower().endswith(end)), "")
        of = (*folders, name[: len(name) - len(ending)])
        if ending and of in parts:
            masks.append(Entry(entry.path, of))
        else:
            images.append(entry)
    return images, masks


def _patient(entry: Entry) -> str:
    return entry.parts[0] if len(entry.parts) > 1 else patient_of(entry.name)
