"""What lies below a folder: images in folders of whatever depth, DICOM by its content, and what is left over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medfm_rl.data.dicom import DICOM_SUFFIX
from medfm_rl.data.files import cannot_be_read
from medfm_rl.data.images import image_stem, image_suffix, is_analyze, is_dicom, is_video
from medfm_rl.data.layouts.description import DESCRIPTION, SIMULATION_RECORD
from medfm_rl.data.names import case_name, text_of
from medfm_rl.data.text_headers import pixel_files
from medfm_rl.errors import DataError

IMAGES, LABELS, MASKS = "images", "labels", "masks"
HIDDEN, UNKNOWN, ANALYZE, OUTPUT, BESIDE, TWO_FOLDERS = (
    "hidden",
    "no image by its name and content",
    "of Analyze, or NIfTI in two files, to be written as .nii.gz",
    "an output of medfm-rl",
    "not in images/, labels/ or masks/",
    "masks/ beside labels/",
)
"""Why something is skipped."""
_OUR_LOG = "audit.jsonl"
"""Lies in every output of predict, score, correct and choose: masks and reward maps in there are no images."""
_DIRECTORY = "DICOMDIR"


@dataclass(frozen=True)
class Entry:
    """An image or mask that was found: a file, or a folder of DICOM slices.

    Attributes:
        path: Where it lies.
        parts: The folders that it lies in and its own name without the ending, as text; not the folders that say
            that they hold images or masks.
    """

    path: Path
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the case that it belongs to: all parts joined."""
        return case_name("_".join(self.parts))


@dataclass
class Tree:
    """What lies below a folder.

    Attributes:
        images: Images by their order in the folders.
        masks: Masks, those in folders `labels` or `masks`.
        skipped: What was not taken, by the reason.
        closed: Folders that may not be looked into, and why not.
    """

    images: list[Entry] = field(default_factory=list)
    masks: list[Entry] = field(default_factory=list)
    skipped: dict[str, list[Path]] = field(default_factory=dict)
    closed: list[tuple[Entry, DataError]] = field(default_factory=list)

    def skip(self, reason: str, path: Path) -> None:
        self.skipped.setdefault(reason, []).append(path)


def look_below(root: Path) -> Tree:
    """Looks into a folder and all below it.

    Where the root has a folder `images`, images are those in there.

    Raises:
        DataError: The root may not be looked into.
    """
    tree = Tree()
    try:
        alone = not (root / IMAGES).is_dir()
        entries = sorted(root.iterdir())
    except OSError as error:
        raise cannot_be_read(root, error) from error
    if alone:
        _walk(tree, root, (), False, ())
        return tree
    has_labels = (root / LABELS).is_dir()
    for path in entries:
        if path.name in (IMAGES, LABELS) or (path.name == MASKS and not has_labels):
            _walk(tree, path, (), path.name != IMAGES, ())
        elif path.name not in (DESCRIPTION, SIMULATION_RECORD):
            reason = HIDDEN if path.name.startswith(".") else TWO_FOLDERS if path.name == MASKS else BESIDE
            tree.skip(reason, path)
    return tree


def _walk(tree: Tree, folder: Path, parts: tuple[str, ...], in_masks: bool, above: Sequence[Path]) -> None:
    """Adds what lies in a folder; `above` are those that it lies in, links resolved, since links may lead back."""
    place = folder.resolve()
    if place in above:
        return
    try:
        entries = sorted(folder.iterdir())
        folders = {path for path in entries if path.is_dir()}
        # Whoever opens a pipe waits for its other end.
        pipes = {path for path in entries if path not in folders and path.exists() and not path.is_file()}
    except OSError as error:
        tree.closed.append((Entry(folder, parts or (text_of(folder.name),)), cannot_be_read(folder, error)))
        return
    names = {path.name for path in entries}
    if _OUR_LOG in names and parts:
        tree.skip(OUTPUT, folder)
        return
    found = tree.masks if in_masks else tree.images
    pixels = {file for path in entries if image_suffix(path) == ".mhd" for file in _pixels_of(path)}
    slices = False
    for path in entries:
        if path.name.startswith("."):
            tree.skip(HIDDEN, path)
        elif path in pipes:
            tree.skip(UNKNOWN, path)
        elif path in folders:
            if path.name == MASKS and LABELS in names:
                tree.skip(TWO_FOLDERS, path)
                continue
            named = path.name in (IMAGES, LABELS, MASKS)
            below = parts if named else (*parts, text_of(path.name))
            _walk(tree, path, below, in_masks or path.name in (LABELS, MASKS), (*above, place))
        elif is_of_dicom(path):
            # Those that lie in the folder that was given are images of their own, those below are of one series.
            if parts:
                slices = True
            else:
                found.append(_entry(path, parts))
        elif image_suffix(path) is not None or is_video(path):
            found.append(_entry(path, parts))
        elif path not in pixels and path.name not in (DESCRIPTION, SIMULATION_RECORD):
            tree.skip(ANALYZE if is_analyze(path) else UNKNOWN, path)
    if slices:
        found.append(Entry(folder, parts))


def _entry(path: Path, parts: tuple[str, ...]) -> Entry:
    return Entry(path, (*parts, text_of(image_stem(path))))


def is_of_dicom(path: Path) -> bool:
    """Whether an entry is DICOM: a folder of slices, or a file by its ending or content."""
    if path.is_dir() or image_suffix(path) is not None:
        return path.is_dir() or image_suffix(path) == DICOM_SUFFIX
    return path.name.upper() != _DIRECTORY and is_dicom(path)


def _pixels_of(path: Path) -> Iterator[Path]:
    try:
        yield from pixel_files(path)
    except DataError:
        return  # Reading the image says why.
