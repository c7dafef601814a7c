"""Files beside images that say what they are: `dataset.json` of nnU-Net, the Decathlon or MONAI; our own records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medfm_rl.data.files import cannot_be_read
from medfm_rl.data.json_text import parse_json
from medfm_rl.errors import DataError
from medfm_rl.structures import JOINS
from medfm_rl.types import BACKGROUND, LabelSchema

SIMULATION_RECORD = "simulation.json"
"""The file in a data set's folder that says that its images are simulated."""
DESCRIPTION = "dataset.json"
IGNORE = "ignore"
"""nnU-Net's name of the label of pixels of which nothing is said."""
_MOST_DIGITS = 20
"""Digits of a number in quotes that is looked at; Python refuses to read thousands."""
_PARTS = {"training": "train", "validation": "train", "test": "test", "testing": "test"}
"""Lists of files, and which part of the data each is."""


@dataclass(frozen=True)
class DescribedLabels:
    """What a description says of the integers in masks.

    Attributes:
        path: The description.
        labels: Its field `labels`, of whatever form.
    """

    path: Path
    labels: Any

    @property
    def has_regions(self) -> bool:
        """Whether structures overlap: some are a union of integers, as in nnU-Net, `{"whole tumour": [1, 2, 3]}`."""
        return isinstance(self.labels, dict) and any(isinstance(value, list) for value in self.labels.values())

    @property
    def ignored(self) -> int | None:
        """The integer of pixels of which nothing is said, nnU-Net's label `ignore`; None where there is none."""
        found = self.labels.items() if isinstance(self.labels, dict) else ()
        value = next((value for name, value in found if _same(str(name)) == IGNORE), None)
        if value is None or not _is_integer(value) or len(str(value)) > _MOST_DIGITS:
            return None
        return int(value)

    def regions(self) -> tuple[dict[str, tuple[int, ...]], int]:
        """The integers of each of structures that overlap, by its name as it is spelled there, and the background.

        Raises:
            DataError: It says something else, or contradicts itself.
        """
        found: dict[str, tuple[int, ...]] = {}
        for name, value in self.labels.items():
            labels = value if isinstance(value, list) else [value]
            if not labels or not all(_is_integer(label) and 0 <= int(label) <= 255 for label in labels):
                raise DataError(
                    f"{self.path}: labels: {name} has {repr(value)[:40]}, and must have an integer from 0 to 255, or a "
                    "list of them where structures overlap"
                )
            found[str(name)] = tuple(map(int, labels))
        background = next((labels for name, labels in found.items() if _same(name) == BACKGROUND), (0,))
        kept = {name: labels for name, labels in found.items() if _same(name) not in (BACKGROUND, IGNORE)}
        inner = next((name for name, labels in kept.items() if set(labels) & set(background)), None)
        if len(background) > 1 or inner is not None or len(set(map(_same, kept))) < len(kept):
            wrong = "a name is there twice" if inner is None else f"{inner} takes in the integer of the background"
            raise DataError(f"{self.path}: labels: {wrong}; the background has one integer, which is in no structure")
        return kept, background[0]

    def integers(self) -> dict[str, int]:
        """The integer of each name, as it is spelled there; that of the background is among them.

        Version 1 of nnU-Net and the Decathlon have it the other way round, `{"0": "background"}`.

        Raises:
            DataError: It says something else, or contradicts itself.
        """
        if not isinstance(self.labels, dict) or not self.labels:
            raise DataError(f'{self.path}: labels must be names and integers, such as {{"background": 0, "LV": 1}}')
        turned = all(_is_integer(key) and isinstance(value, str) for key, value in self.labels.items())
        turned = turned and not all(_is_integer(value) for value in self.labels.values())
        pairs = [(value, key) if turned else (key, value) for key, value in self.labels.items()]
        found: dict[str, int] = {}
        for name, value in pairs:
            if isinstance(value, list):
                raise DataError(
                    f"{self.path}: labels: {name} is a region, a union of {value}, which overlaps others, and the "
                    "structures of the segmenter exclude each other; give masks of these by a description of theirs"
                )
            if not _is_integer(value) or len(str(value)) > _MOST_DIGITS or not 0 <= int(value) <= 255:
                raise DataError(
                    f"{self.path}: labels: {name} has {repr(value)[:40]}, and must have an integer from 0 to 255"
                )
            found[str(name)] = int(value)
        for what, values in (("a name", map(_same, found)), ("an integer", found.values())):
            listed = list(values)
            twice = next((value for value in listed if listed.count(value) > 1), None)
            if twice is not None or len(found) < len(pairs):
                raise DataError(f"{self.path}: labels: {what} is there twice; one integer stands for one structure")
        return found

    def own_schema(self) -> LabelSchema:
        """The structures and integers that the description names, where no segmenter says which are wanted.

        Raises:
            DataError: It contradicts itself, or names no structure.
        """
        if self.has_regions:
            return self._schema_of_regions(*self.regions())
        integers = self.integers()
        structures = {name: value for name, value in integers.items() if _same(name) not in (BACKGROUND, IGNORE)}
        background = next((value for name, value in integers.items() if _same(name) == BACKGROUND), 0)
        taken = next((name for name, value in structures.items() if value == background), None)
        if taken is not None or not structures:
            wrong = "names no structure" if taken is None else f"gives {taken} the integer of the background"
            raise DataError(f"{self.path}: labels {wrong}; one integer stands for one structure")
        return self._leaving_out(LabelSchema.from_structures(structures, background))

    def schema_for(self, schema: LabelSchema) -> LabelSchema:
        """The integers that stand in these masks for the structures of a segmenter, found by their names.

        Case does not matter, nor whether words are joined by a blank, a hyphen or an underscore.

        Raises:
            DataError: A structure is not there by its name, or the description contradicts itself.
        """
        if schema.overlaps and self.has_regions:
            return self._regions_for(schema)
        integers = self.integers()
        named = {_same(name): value for name, value in integers.items()}
        if schema.overlaps:
            return self._subsets_for(schema, named)
        missing = [name for name in schema.structures if _same(name) not in named]
        background = named.get(_same(BACKGROUND), 0)
        taken = next(
            (name for name, value in integers.items() if value == background and _same(name) != BACKGROUND), ""
        )
        if missing or taken:
            said = ", ".join(f"{name} {value}" for name, value in integers.items())
            wrong = f"has no {' and no '.join(missing)}" if missing else f"gives {taken} the integer of the background"
            raise DataError(
                f"{self.path}: labels ({said}) {wrong}, and the segmenter segments "
                f"{', '.join(f'{name} {value}' for name, value in schema.integers.items())}; masks are read by the "
                "names, so name the structures there as the segmenter does"
            )
        return self._leaving_out(
            LabelSchema.from_structures({name: named[_same(name)] for name in schema.structures}, background)
        )

    def _leaving_out(self, schema: LabelSchema) -> LabelSchema:
        """A schema that knows the integer of pixels of which nothing is said, where that is no structure of it."""
        own = self.ignored
        return schema if own is None or own in schema.labels else replace(schema, ignored=own)

    def _regions_for(self, schema: LabelSchema) -> LabelSchema:
        """The integers of overlapping structures by their names."""
        regions, background = self.regions()
        named = {_same(name): labels for name, labels in regions.items()}
        missing = [name for name in schema.structures if _same(name) not in named]
        if missing:
            raise DataError(
                f"{self.path}: labels ({', '.join(regions)}) has no {' and no '.join(missing)}, and the segmenter "
                f"segments {', '.join(schema.structures)}; masks are read by the names, so name the structures there "
                "as the segmenter does"
            )
        return self._schema_of_regions({name: named[_same(name)] for name in schema.structures}, background)

    def _subsets_for(self, schema: LabelSchema, named: Mapping[str, int]) -> LabelSchema:
        """The integers of overlapping structures where each stands for a set of them, such as `WT+TC`.

        Raises:
            DataError: An integer has another name, or a structure is in none.
        """
        background = named.get(_same(BACKGROUND), 0)
        said = [name for name in named if name not in (_same(BACKGROUND), IGNORE)]
        sets = {name: tuple(_same(part) for part in name.split(JOINS)) for name in said}
        taken_in = {
            name: tuple(label for whole, label in named.items() if _same(name) in sets.get(whole, ()))
            for name in schema.structures
        }
        missing = [name for name, labels in taken_in.items() if not labels]
        strangers = [whole for whole, parts in sets.items() if set(parts) - set(map(_same, schema.structures))]
        if missing or strangers:
            wrong = f"has no {' and no '.join(missing)}" if missing else f"names {', '.join(strangers)}"
            raise DataError(
                f"{self.path}: labels {wrong}, and the segmenter segments {', '.join(schema.structures)}, which "
                f"overlap; name each integer by all structures that it lies in, such as {schema.class_names[-1]}, or "
                "each structure with the list of its integers"
            )
        return self._schema_of_regions(taken_in, background)

    def _schema_of_regions(self, regions: Mapping[str, tuple[int, ...]], background: int) -> LabelSchema:
        try:
            return self._leaving_out(LabelSchema.from_regions(regions, background))
        except ValueError as error:
            raise DataError(f"{self.path}: labels: {error}") from error


@dataclass(frozen=True)
class ListedCase:
    """A case that a description lists.

    Attributes:
        name: As it is called there, or None where only its files are listed.
        part: train or test.
        images: Its images, in the folder of the description where the paths are relative.
        label: Its mask, likewise.
    """

    name: str | None
    part: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class Description:
    """A `dataset.json`.

    Attributes:
        path: The file.
        content: What stands in it.
    """

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, root: Path) -> Description | None:
        """Reads the description in a folder, in any Unicode encoding; None where there is none.

        Raises:
            DataError: It cannot be read, or is no JSON object.
        """
        path = root / DESCRIPTION
        if not path.is_file():
            return None
        try:
            content = parse_json(path.read_bytes())
        except OSError as error:
            raise cannot_be_read(path, error) from error
        except ValueError as error:
            raise DataError(f"{path}: {_NEEDED} ({error})") from error
        if not isinstance(content, dict):
            raise DataError(f"{path}: {_NEEDED} (it is no JSON object)")
        return cls(path, content)

    @property
    def labels(self) -> DescribedLabels | None:
        """What its integers mean; None where it does not say."""
        labels = self.content.get("labels")
        return None if labels is None else DescribedLabels(self.path, labels)

    @property
    def is_of_nnunet(self) -> bool:
        """Whether it says which channels the images have, by the name of either version."""
        return "channel_names" in self.content or "modality" in self.content

    @property
    def channels(self) -> int:
        """How many channels an image has.

        Raises:
            DataError: It does not say.
        """
        named = self.content.get("channel_names", self.content.get("modality"))
        if not isinstance(named, dict | list) or not named:
            raise DataError(f"{self.path}: {_NEEDED} (channel_names is missing or empty)")
        return len(named)

    @property
    def ending(self) -> str:
        """How the names of files end, in lower case and with a dot; version 1 knows NIfTI alone and does not say it.

        Raises:
            DataError: It does not say.
        """
        ending = self.content.get("file_ending", ".nii.gz" if "modality" in self.content else None)
        if not isinstance(ending, str) or not ending.strip("."):
            raise DataError(f"{self.path}: {_NEEDED} (file_ending is missing or empty)")
        return f".{ending.lstrip('.').lower()}"

    def listed(self) -> list[ListedCase]:
        """The cases that it lists by their files; none where the folders say which there are.

        Raises:
            DataError: A list has another form.
        """
        try:
            return list(self._listed())
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise DataError(
                f'{self.path}: a list of files has {{"image": FILE, "label": FILE}} or FILE, and `dataset` has '
                f'{{NAME: {{"images": [FILE, ...], "label": FILE}}}} ({type(error).__name__}: {error})'
            ) from error

    def _listed(self) -> Iterator[ListedCase]:
        if "dataset" in self.content:
            for name, item in self.content["dataset"].items():
                label = item.get("label")
                yield ListedCase(name, "train", self._paths(item["images"]), None if label is None else self._of(label))
            return
        # Version 2 of nnU-Net goes by its folders, whatever else the file says.
        if "channel_names" in self.content:
            return
        for key, part in _PARTS.items():
            for item in self.content.get(key, ()):
                if isinstance(item, dict):
                    label = item.get("label")
                    yield ListedCase(None, part, self._paths(item["image"]), None if label is None else self._of(label))
                else:
                    yield ListedCase(None, part, self._paths(item), None)

    def _paths(self, files: Any) -> tuple[Path, ...]:
        return tuple(self._of(file) for file in ([files] if isinstance(files, str) else files))

    def _of(self, file: str) -> Path:
        return self.path.parent / os.path.expandvars(os.fsdecode(file.encode(errors="surrogateescape")))


_NEEDED = "an nnU-Net data set needs file_ending and channel_names here"


def described_labels(folder: Path) -> DescribedLabels | None:
    """What a description in a folder of masks, or beside it, says of their integers; None where there is none.

    Raises:
        DataError: It cannot be read.
    """
    places = (folder, folder.absolute().parent) if folder.name.startswith("labels") else (folder,)
    found = (Description.read(place) for place in places)
    return next((description.labels for description in found if description is not None), None)


def is_simulated(folder: Path) -> bool:
    """Whether a data set was made by a simulation, also where only its folder of images is given."""
    return any((place / SIMULATION_RECORD).exists() for place in (folder, folder.absolute().parent))


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdigit()
    return isinstance(value, int) and not isinstance(value, bool)


def _same(name: str) -> str:
    """A name without what does not make it another one."""
    return "_".join(name.casefold().replace("-", " ").replace("_", " ").split())
