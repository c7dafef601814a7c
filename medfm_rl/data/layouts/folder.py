"""A plain folder: `images/` and `labels/` with the same names, or images alone, in folders of whatever depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medfm_rl.data.clips.reading import ClipFile
from medfm_rl.data.dicom import holds_image
from medfm_rl.data.layouts.cases import CaseFile, Found
from medfm_rl.data.layouts.patients import BY_NAME, patient_of
from medfm_rl.data.layouts.tree import UNKNOWN, Entry, is_of_dicom, look_below
from medfm_rl.data.names import case_name
from medfm_rl.errors import DataError
from medfm_rl.types import frame_id

_MASK_ENDINGS = ("_gt", "_mask", "_seg", "_segmentation", "_label", "-mask", "-seg", "-label")
"""What is added to the name of an image to name its mask beside it."""
_BY_FOLDER = f"the outermost folder; {BY_NAME} where an image lies in none"


@dataclass(frozen=True)
class FoundImage:
    """An image, volume or clip that has no mask yet.

    Attributes:
        path: Its file, or the folder of its slices or pictures.
        name: What its case is called where no other is called so.
        full_name: What it is called else: all folders that it lies in and its own name.
        patient_id: Its patient.
        clip: The clip that it is.
        problem: Why it cannot be used.
        pictures: Where it is a folder of pictures, the place in the clip of each, by its `Entry.parts`.
    """

    path: Path
    name: str
    full_name: str
    patient_id: str
    clip: ClipFile | None = None
    problem: str | None = None
    pictures: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: Entry) -> FoundImage:
        """An image or volume of its own."""
        return cls(entry.path, entry.name, entry.name, patient_of_entry(entry))


def find_folder(root: Path, recognise: Callable[[Sequence[Entry]], Sequence[FoundImage]]) -> Found:
    """Finds images and masks of the same names; a folder of DICOM slices below the root is one image.

    Where folders lie in folders, as archives write them, the outermost is the patient.

    Args:
        root: The folder.
        recognise: Says which images and clips the entries are.

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
    shown = []
    for entry in images:
        if is_of_dicom(entry.path) and not holds_image(entry.path):
            tree.skip(UNKNOWN, entry.path)
        else:
            shown.append(entry)
    cases = pair(recognise(shown), masks, root)
    for entry, error in tree.closed:
        cases.append(CaseFile(entry.name, patient_of_entry(entry), (), problem=str(error)))
    by_folder = any(len(entry.parts) > 1 for entry in images)
    return Found(cases, tree.skipped, _BY_FOLDER if by_folder else BY_NAME, notes)


def pair(images: Sequence[FoundImage], masks: Sequence[Entry], root: Path) -> list[CaseFile]:
    """Cases of images and the masks of their names; one of either that is alone or has a double has a problem.

    The mask of a clip has its name, that of one of its frames the name of the frame, or lies where its picture does.

    Raises:
        DataError: There are masks and images, and not one mask is of an image.
    """
    of_name: dict[str, list[FoundImage]] = {}
    for image, name in zip(images, _names(images), strict=True):
        of_name.setdefault(name, []).append(image)
    masks_of, alone = _masks_by_name(of_name, masks)
    # What is wrong with an image says more than that a mask has none.
    if masks and images and not masks_of and not any(image.problem for image in images):
        refuse_other_names({name: entries[0].path for name, entries in alone.items()}, of_name, root)
    cases = []
    for name, own in of_name.items():
        first, labels = own[0], masks_of.get((name, None), [])
        frames = range(0 if first.clip is None else first.clip.count)
        of_frames = {index: masks_of[name, index] for index in frames if (name, index) in masks_of}
        problem = first.problem or _name_of_frame(name, frames, of_name)
        for kind, found in (
            ("images", [image.path for image in own]),
            *(("masks", [entry.path for entry in entries]) for entries in (labels, *of_frames.values())),
            ("masks", [entries[0].path for entries in (labels, *of_frames.values()) if labels and of_frames][:2]),
        ):
            if len(found) > 1:
                problem = two_of_a_name(kind, name, found)
        cases.append(
            CaseFile(
                name,
                first.patient_id,
                (first.path,),
                labels[0].path if labels else None,
                problem=problem,
                clip=first.clip,
                clip_id=None if first.clip is None else name,
                frame_masks={index: entries[0].path for index, entries in of_frames.items()},
            )
        )
    for name, entries in alone.items():
        path = entries[0].path
        cases.append(CaseFile(name, patient_of_entry(entries[0]), (), path, problem=mask_alone(path, root)))
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


def patient_of_entry(entry: Entry) -> str:
    """The outermost folder that it lies in, or what its own name begins with."""
    return entry.parts[0] if len(entry.parts) > 1 else patient_of(entry.name)


def _names(images: Sequence[FoundImage]) -> list[str]:
    """The name of each case: its full one where others would have the same."""
    names = [image.name for image in images]
    while True:
        counts = Counter(names)
        told = [image.full_name if counts[name] > 1 else name for image, name in zip(images, names, strict=True)]
        if told == names:
            return names
        names = told


def _name_of_frame(name: str, frames: range, names: Collection[str]) -> str | None:
    """The problem of a clip of which a frame has the name of another image; None where there is none."""
    taken = next((frame for index in frames if (frame := case_name(frame_id(name, index))) in names), None)
    return (
        None if taken is None else f"clip {name}: another image has the name of its frame {taken}; rename one of them"
    )


def _masks_by_name(
    images: Mapping[str, Sequence[FoundImage]], masks: Sequence[Entry]
) -> tuple[dict[tuple[str, int | None], list[Entry]], dict[str, list[Entry]]]:
    """Masks by the name of their image and the frame that they are of, None for all of it; and those of no image."""
    places: dict[tuple[str, ...] | str, tuple[str, int | None]] = {}
    # Of names that are said in several ways, the one of the case itself counts.
    for full in (True, False):
        for name, (image, *_) in images.items():
            called = image.full_name if full else name
            places.update(_frames_of(image, name, called))
            places[called] = name, None
    for name, (image, *_) in images.items():
        places.update({parts: (name, index) for parts, index in image.pictures.items()})
        places[name] = name, None
    found: dict[tuple[str, int | None], list[Entry]] = {}
    alone: dict[str, list[Entry]] = {}
    for entry in masks:
        place = places.get(entry.parts) or places.get(entry.name)
        if place is None:
            alone.setdefault(entry.name, []).append(entry)
        else:
            found.setdefault(place, []).append(entry)
    return found, alone


def _frames_of(image: FoundImage, name: str, called: str) -> Iterator[tuple[str, tuple[str, int | None]]]:
    """The names of the frames of a clip that is called so, and what they stand for."""
    for index in range(0 if image.clip is None else image.clip.count):
        yield case_name(frame_id(called, index)), (name, index)
