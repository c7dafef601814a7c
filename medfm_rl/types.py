"""The words of the project as frozen data: no network code, no file access. Long, to have all of them in one place.

Arrays are in NumPy axis order: images `(C, *S)`, label maps `(*S)`, with `S = (H, W)` in 2-D and `(D, H, W)` in 3-D.
Label maps hold *class indices* `0 .. K-1` everywhere in the package; the integers of a tool's files are met only where
files are read and written (`LabelSchema.to_indices`, `LabelSchema.to_ids`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medfm_rl.errors import DataError
from medfm_rl.structures import JOINS, MOST_REGIONS, Structures, exclusive, overlapping, subset_names

LabelMap = npt.NDArray[np.uint8]
"""Class index of each pixel, shape `(*S)`."""
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.integer]

BACKGROUND = "background"
IGNORED: Final = 255
"""Class index of the pixels of a known mask of which nothing is said: nnU-Net's label `ignore`. They teach nothing, and
count in no score."""
_SAME_DIRECTION = 1e-6
"""Difference of two direction cosines that is rounding."""
NOTICEABLE_SHIFT = 0.01
"""Shift of a pixel, as a share of its shortest side, from which on grids are no longer called the same in silence."""
_SAME_GRID = 0.25
"""The same for a mask and its image, or two channels: headers round, and a shift by half a pixel is a real mistake."""
_USUAL_SIDE = 512
"""Pixels along an axis of a grid whose size is not told."""
_MOST_STRANGERS = 5
"""Unknown labels of a file that are named; more are hardly labels."""


@dataclass(frozen=True)
class Geometry:
    """Where the pixel grid of an image lies in space, in the order that ITK and the file formats use: (x, y[, z]).

    Attributes:
        spacing: Distance of neighbouring pixel centres in mm, or None where the file does not say (PNG, for one).
        origin: Centre of the first pixel in mm.
        direction: Row-major direction cosines, `len(spacing) ** 2` values.
        volume: For a 2-D image that is the only slice of a volume, the grid of that volume (`slice_of`); its masks are
            written there.
        header: What the image's own file says of its grid, in the words of its format, for masks to say the same. Only
            the module that reads and writes that format looks into it.
        alternative: The grid by another statement of the same file, where it has two that differ (the sform and the
            qform of NIfTI). A mask may lie on either.
    """

    spacing: tuple[float, ...] | None
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    volume: Geometry | None = None
    header: bytes | None = field(default=None, compare=False, repr=False)
    alternative: Geometry | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        ndim = len(self.origin)
        if len(self.direction) != ndim * ndim:
            raise ValueError(f"direction has {len(self.direction)} values, {ndim * ndim} are needed in {ndim}-D")
        if self.spacing is not None:
            if len(self.spacing) != ndim:
                raise ValueError(f"spacing has {len(self.spacing)} values, {ndim} are needed")
            if not all(math.isfinite(value) and value > 0 for value in self.spacing):
                raise ValueError(f"spacing must be finite and positive, got {self.spacing}")
        if not all(map(math.isfinite, (*self.origin, *self.direction))):
            raise ValueError(f"origin and direction must be finite, got {self.origin} and {self.direction}")
        if self.volume is not None and (ndim, self.volume.ndim) != (2, 3):
            raise ValueError(f"a 2-D slice of a 3-D volume is meant, not {ndim}-D of {self.volume.ndim}-D")

    @classmethod
    def slice_of(cls, volume: Geometry) -> Geometry:
        """The geometry of the image that is the only slice of a volume: its plane, and the volume that it came from.

        A plane across the z axis keeps its x and y. Any other has axes of its own: those of its rows and columns.
        """
        axes = np.reshape(volume.direction, (3, 3))
        spacing = None if volume.spacing is None else volume.spacing[:2]
        if np.isclose(abs(axes[2, 2]), 1, atol=_SAME_DIRECTION):
            return cls(spacing, volume.origin[:2], tuple(axes[:2, :2].ravel().tolist()), volume)
        own = np.asarray(volume.origin) @ axes
        return cls(spacing, tuple(own[:2].tolist()), (1.0, 0.0, 0.0, 1.0), volume)

    @classmethod
    def from_affine(cls, affine: npt.NDArray[np.float64]) -> Geometry:
        """The grid of a homogeneous matrix that takes indices (x, y[, z]) to mm.

        Raises:
            ValueError: A step along an axis has no length.
        """
        steps = affine[:-1, :-1]
        spacing = np.linalg.norm(steps, axis=0)
        direction = np.divide(steps, spacing, out=np.zeros_like(steps), where=spacing > 0)
        return cls(tuple(spacing.tolist()), tuple(affine[:-1, -1].tolist()), tuple(direction.ravel().tolist()))

    @classmethod
    def unknown(cls, ndim: int) -> Geometry:
        """The geometry of an image that has none: unknown spacing, origin 0, axes along the pixel grid."""
        return cls(None, (0.0,) * ndim, tuple(np.eye(ndim).ravel().tolist()))

    @property
    def plane(self) -> Geometry:
        """The grid alone, without volume and header: what is written where a tool wants two axes."""
        return Geometry(self.spacing, self.origin, self.direction)

    @property
    def upright(self) -> Geometry:
        """The nearest grid with axes at right angles."""
        left, _, right = np.linalg.svd(np.reshape(self.direction, (self.ndim, self.ndim)))
        return replace(self, direction=tuple((left @ right).ravel().tolist()))

    @property
    def ndim(self) -> int:
        return len(self.origin)

    @property
    def array_spacing(self) -> tuple[float, ...] | None:
        """Spacing in mm in NumPy axis order (y, x) or (z, y, x); None where unknown."""
        return None if self.spacing is None else tuple(reversed(self.spacing))

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """Homogeneous matrix that takes indices (x, y[, z]) to mm, or to pixels where the spacing is unknown."""
        matrix = np.eye(self.ndim + 1)
        matrix[:-1, :-1] = np.reshape(self.direction, (self.ndim, self.ndim)) * (self.spacing or (1.0,) * self.ndim)
        matrix[:-1, -1] = self.origin
        return matrix

    def shift(self, other: Geometry, shape: tuple[int, ...] | None = None) -> float:
        """How far a pixel lies apart on two grids, at most, as a share of the shortest side of the pixels of this one.

        Two slices of volumes are compared in space, a slice and an image without a volume in their plane. Where either
        spacing is unknown there is nothing to compare, and the shift is 0. Of the statements that a file makes, those
        that lie closest count.

        Args:
            other: A grid of the same number of axes.
            shape: Size of the grid `(*S)`; where it is not told, a size is assumed that is usual.

        Raises:
            ValueError: The grids have different numbers of axes.
        """
        if self.ndim != other.ndim:
            raise ValueError(f"a grid of {self.ndim} axes and one of {other.ndim} cannot be compared")
        if self.volume is not None and other.volume is not None:
            return self.volume.shift(other.volume, (1, *(shape or (_USUAL_SIDE,) * self.ndim)))
        if self.spacing is None or other.spacing is None:
            return 0.0
        sides = [(0, size - 1) for size in reversed(shape or (_USUAL_SIDE,) * self.ndim)]
        # Displacements grow in straight lines, so the largest is that of a corner.
        corners = np.array([(*corner, 1) for corner in itertools.product(*sides)]).T
        apart = [
            abs((theirs.affine - ours.affine)[:-1] @ corners).max()
            for ours in (self, self.alternative)
            for theirs in (other, other.alternative)
            if ours is not None and theirs is not None
        ]
        return float(min(apart) / min(self.spacing))

    def matches(self, other: Geometry, shape: tuple[int, ...] | None = None) -> bool:
        """Whether both describe the same grid, but for what headers round: a quarter of a pixel at most (`shift`)."""
        return self.ndim == other.ndim and self.shift(other, shape) <= _SAME_GRID


@dataclass(frozen=True)
class GridAxes:
    """How the axes of one grid run along those of another, turned by right angles or mirrored: a network's in an image.

    Attributes:
        order: For each axis of the grid, in array order, the axis of the image along which it runs.
        flipped: For each axis of the grid whether it runs the other way.
    """

    order: tuple[int, ...]
    flipped: tuple[bool, ...]

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.flipped))):
            raise ValueError(f"axes {self.order}, {self.flipped}: each axis of the image is needed once")

    @classmethod
    def same(cls, ndim: int) -> GridAxes:
        """Those of a grid that is turned in no way."""
        return cls(tuple(range(ndim)), (False,) * ndim)

    def in_image(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values on the grid, or on a plane or part of it, with the axes in the order and direction of the image.

        Args:
            values: `(*S')`; where it has fewer axes than the grid, it is a plane along the last ones.
        """
        order, flipped = self.order[-values.ndim :], self.flipped[-values.ndim :]
        turned = np.flip(values, tuple(axis for axis, flip in enumerate(flipped) if flip))
        return turned.transpose(np.argsort(order))


@dataclass(frozen=True)
class LabelSchema:
    """The structures of a segmenter, the classes that they are made of, and the integer of each class in files.

    Structures exclude each other, and structure i is class i; or they overlap, and the classes are the sets of regions
    that a pixel can lie in (`medfm_rl.structures`). Overlapping ones may have fewer integers than classes: then some
    classes are written with the integer of another (`as_written`).

    Attributes:
        names: "background", then the structures.
        ids: Integer of each class in label files, 0 to 255, the background's first. Those of exclusive structures are
            distinct; a class of overlapping ones that no file can hold has -1.
        region_ids: For each of structures that overlap, the integers that it takes in; empty where they do not.
        ignored: Integer of the pixels in files of which nothing is said; None where there is none. It is no class.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    region_ids: Structures = ()
    ignored: int | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.names) < 2 or self.names[0] != BACKGROUND:
            raise ValueError(f"names must start with {BACKGROUND!r} and hold at least one structure, got {self.names}")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"names must be distinct, got {self.names}")
        if self.overlaps:
            self._check_regions()
        elif len(self.names) != len(self.ids):
            raise ValueError(f"{len(self.names)} names but {len(self.ids)} ids")
        elif len(set(self.ids)) != len(self.ids):
            raise ValueError(f"ids must be distinct, got {self.ids}")
        least = -1 if self.overlaps else 0
        if not all(least <= label <= 255 for label in self.ids):
            raise ValueError(f"ids must lie in 0 .. 255, got {self.ids}")

    def _check_regions(self) -> None:
        count = len(self.structures)
        if count > MOST_REGIONS:
            raise ValueError(
                f"{count} structures overlap, which are 2 ** {count} classes, and at most {MOST_REGIONS} can; adapt a "
                "segmenter of fewer, or one whose structures exclude each other (softmax)"
            )
        joined = next((name for name in self.names if JOINS in name), None)
        if joined is not None:
            raise ValueError(f"{joined!r}: the name of a structure that overlaps others must not hold {JOINS!r}")
        if len(self.region_ids) != count or len(self.ids) != 2**count:
            raise ValueError(f"{count} structures overlap, and {len(self.region_ids)} of them have integers")
        strangers = set(self.ids) - {-1} - self._known.keys()
        if strangers or self.ids[0] in {label for labels in self.region_ids for label in labels}:
            raise ValueError(f"the integers {self.ids} and those of the structures, {self.region_ids}, do not agree")

    @classmethod
    def from_structures(cls, structures: Mapping[str, int], background: int = 0) -> LabelSchema:
        """Builds a schema from structure names and their file integers, in the order given."""
        return cls((BACKGROUND, *structures), (background, *structures.values()))

    @classmethod
    def from_integers(cls, integers: Mapping[str, int]) -> LabelSchema:
        """Exclusive structures by what `integers` gives of them; a background that is not named is 0."""
        structures = {name: int(label) for name, label in integers.items() if name != BACKGROUND}
        return cls.from_structures(structures, int(integers.get(BACKGROUND, 0)))

    @classmethod
    def of_regions(cls, regions: Sequence[str]) -> LabelSchema:
        """Overlapping structures whose classes have their bit mask as integer, which loses nothing.

        Raises:
            ValueError: There are too many, or their names cannot be used.
        """
        of_regions = overlapping(min(len(regions), MOST_REGIONS + 1))
        return cls((BACKGROUND, *regions), tuple(range(2 ** len(of_regions))), of_regions)

    @classmethod
    def from_regions(
        cls, regions: Mapping[str, Sequence[int]], background: int = 0, order: Sequence[int] | None = None
    ) -> LabelSchema:
        """Overlapping structures in files of other integers than bit masks.

        Args:
            regions: By structure, the integers that it takes in.
            background: Integer of what lies in none.
            order: The integer of each structure that is written, over those of the structures before it (nnU-Net's
                `regions_class_order`); None where a class is written only if an integer stands for just its regions.

        Raises:
            ValueError: There are too many, their names cannot be used, or the integers contradict each other.
        """
        taken_in = tuple(tuple(labels) for labels in regions.values())
        count = min(len(regions), MOST_REGIONS + 1)
        if order is None:
            index_of = {background: 0} | _classes_of_labels(taken_in)
            of_class = {index: label for label, index in reversed(index_of.items())}
            ids = [background, *(of_class.get(index, -1) for index in range(1, 2**count))]
        else:
            _refuse_repeated(order, tuple(regions))
            # The highest bit of a class is the last of its regions.
            ids = [background, *(order[index.bit_length() - 1] for index in range(1, 2**count))]
        return cls((BACKGROUND, *regions), tuple(ids), taken_in)

    @property
    def overlaps(self) -> bool:
        """Whether a pixel can lie in several structures."""
        return bool(self.region_ids)

    @property
    def num_classes(self) -> int:
        """K: the classes of all structures, and the background."""
        return len(self.ids)

    @property
    def structures(self) -> tuple[str, ...]:
        """Names without the background."""
        return self.names[1:]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index: those of exclusive structures, and such as `WT+TC` of overlapping ones."""
        return subset_names(self.structures, BACKGROUND) if self.overlaps else self.names

    @property
    def classes(self) -> Structures:
        """Class indices of each structure."""
        return overlapping(len(self.structures)) if self.overlaps else exclusive(self.num_classes)

    @property
    def integers(self) -> dict[str, int]:
        """The integer in files by name of the class, the background's first; without classes that have none."""
        if not self.overlaps:
            return dict(zip(self.names, self.ids, strict=True))
        # Of several integers that stand for one class, the one that is written.
        ordered = sorted(self._known.items(), key=lambda item: (item[1], item[0] == self.ids[item[1]]))
        return {self.class_names[index]: label for label, index in ordered}

    @property
    def labels(self) -> tuple[int, ...]:
        """The integers that files may hold."""
        return tuple(self._known)

    def classes_of(self, structure: str) -> tuple[int, ...]:
        """Class indices of a structure, of the background, or of a union such as `LV+MYO`.

        Raises:
            ValueError: The schema has no such structure.
        """
        found: list[int] = []
        for name in (structure,) if structure in self.names else structure.split(JOINS):
            if name not in self.names:
                raise ValueError(f"no structure {name!r}; the schema has {', '.join(self.names)}")
            found += ((0,), *self.classes)[self.names.index(name)]
        return tuple(found)

    def index_of(self, name: str) -> int:
        """Index of the class of a name.

        Raises:
            ValueError: The schema has no such class.
        """
        names = self.class_names
        if name not in names:
            raise ValueError(f"no structure {name!r}; the schema has {', '.join(names)}")
        return names.index(name)

    def to_indices(self, labels: IntArray, where: str = "label map") -> LabelMap:
        """Turns file integers into class indices.

        Args:
            labels: Integers as they stand in a file, any shape.
            where: What the labels came from, for the error message.

        Raises:
            DataError: An integer is not in the schema.
        """
        found, index_of = np.unique(labels), self._known
        strangers = sorted(set(found.tolist()) - index_of.keys())
        if strangers:
            known = ", ".join(f"{label} {name}" for name, label in self.integers.items())
            first = ", ".join(map(str, strangers[:_MOST_STRANGERS]))
            if len(strangers) > _MOST_STRANGERS:
                raise DataError(
                    f"{where}: labels {first} and {len(strangers) - _MOST_STRANGERS} more are not those of the "
                    f"segmenter ({known}); is this an image, and not a mask?"
                )
            raise DataError(
                f"{where}: label {first} is not one of those that are expected ({known}). "
                "Correct the mask or the list of structures, or say what its integers mean: by --labels, and of masks "
                "that came back from a reviewer by --corrected-labels."
            )
        table = np.zeros(256, dtype=np.uint8)
        table[list(index_of)] = list(index_of.values())
        return table[labels]

    def to_known_indices(self, labels: IntArray, where: str = "label map") -> LabelMap:
        """The same, with `IGNORED` where nothing is said of a pixel.

        Raises:
            DataError: As in `to_indices`.
        """
        if self.ignored is None:
            return self.to_indices(labels, where)
        unsaid = labels == self.ignored
        indices = self.to_indices(np.where(unsaid, self.ids[0], labels), where)
        indices[unsaid] = IGNORED
        return indices

    def to_ids(self, indices: IntArray) -> LabelMap:
        """Turns class indices into the integers that stand in files.

        Raises:
            ValueError: A class has no integer.
        """
        table = np.asarray(self.ids)
        without = np.unique(indices[table[indices] < 0]) if (table < 0).any() else ()
        if len(without):
            raise ValueError(f"no integer stands for {', '.join(self.class_names[index] for index in without)}")
        return table.astype(np.uint8)[indices]

    def as_written(self, indices: LabelMap) -> LabelMap:
        """Class indices as they come back from a file: where several classes share an integer, that of one of them."""
        return self.to_indices(self.to_ids(indices)) if self.overlaps else indices

    @property
    def _known(self) -> dict[int, int]:
        """Class index of every integer that files may hold."""
        if not self.overlaps:
            return {label: index for index, label in enumerate(self.ids)}
        return {self.ids[0]: 0} | _classes_of_labels(self.region_ids)

    def indices_in(self, other: LabelSchema) -> LabelMap:
        """The class index in another schema of each class of this one, `(K,)`, by the names of the structures.

        What the other lacks is background there.

        Raises:
            ValueError: The structures of this one overlap, and those of the other do not.
        """
        if self.overlaps and not other.overlaps:
            raise ValueError("structures that overlap cannot be put into classes of structures that exclude each other")
        bits = {name: 1 << bit for bit, name in enumerate(other.structures)}
        found = np.zeros(self.num_classes, dtype=np.uint8)
        for name, classes in zip(self.structures, self.classes, strict=True):
            if name in other.structures:
                found[list(classes)] += np.uint8(bits[name] if other.overlaps else other.index_of(name))
        return found


def where_said(labels: LabelMap) -> LabelMap:
    """A known mask with background in the place of what is `IGNORED`, to be looked at or counted."""
    return np.where(labels == IGNORED, np.uint8(0), labels)


def _refuse_repeated(order: Sequence[int], regions: Sequence[str]) -> None:
    """Raises ValueError where two structures are written with one integer: the masks would not tell them apart."""
    for place, label in enumerate(order):
        first = order.index(label)
        if first < place:
            raise ValueError(
                f"{regions[first]!r} and {regions[place]!r} are both written as {label}, so that {regions[place]!r} is "
                "lost in the masks; each structure needs an integer of its own, as the model was trained with"
            )


def _classes_of_labels(region_ids: Structures) -> dict[int, int]:
    """By integer of overlapping structures, the bit mask of those that take it in."""
    labels = sorted({label for labels in region_ids for label in labels})
    return {label: sum(1 << bit for bit, own in enumerate(region_ids) if label in own) for label in labels}


@dataclass(frozen=True, eq=False)
class Prompts:
    """The requests to a promptable segmenter, one entry per structure (class index 1 .. K-1) of each image.

    Attributes:
        boxes: `(B, K-1, 2 * ndim)`: the low then the high corner of each box, in pixels of the preprocessed image.
        texts: One description per structure.
    """

    boxes: FloatArray | None = None
    texts: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """One image to segment. It never carries a label: what takes a `Case` cannot see ground truth.

    Attributes:
        case_id: Unique within its data set; names the output files.
        patient_id: Every split is made by it.
        image: `(C, *S)`, finite, in the units of the file.
        geometry: Pixel grid of the image in space.
        tags: What the layout knows besides, for example `{"view": "4CH", "phase": "ED"}`.
        frame: Place in its clip, counted from 0; None for an image of its own.
        frames: How many frames that clip has; None where it is not known.
    """

    case_id: str
    patient_id: str
    image: FloatArray
    geometry: Geometry
    tags: Mapping[str, str] = field(default_factory=dict)
    frame: int | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != self.geometry.ndim + 1:
            raise ValueError(
                f"case {self.case_id}: image of shape {self.image.shape} needs {self.geometry.ndim + 1} axes (C, *S)"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of the pixel grid, `(*S)`."""
        return self.image.shape[1:]


@dataclass(frozen=True, eq=False)
class Clip:
    """One plane over time. Its frames are cases of their own, which know their patient and their place in the clip.

    Attributes:
        clip_id: Unique within its data set.
        patient_id: Every split is made by it; all frames have it.
        frames: `(T, C, H, W)`, finite, in the units of the file.
        times: Seconds from the first frame on, one for each, growing; None where the file does not say.
        geometry: Pixel grid of every frame in its plane, `(x, y)`.
        tags: What the layout or the file knows besides.
    """

    clip_id: str
    patient_id: str
    frames: FloatArray
    times: tuple[float, ...] | None
    geometry: Geometry
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.geometry.ndim != 2:
            raise ValueError(
                f"clip {self.clip_id}: frames (T, C, H, W) and a grid of a plane are needed, not "
                f"{self.frames.shape} and {self.geometry.ndim} axes"
            )
        if self.times is not None:
            steps = np.diff(self.times)
            if len(self.times) != len(self.frames) or not np.isfinite(self.times).all() or (steps <= 0).any():
                raise ValueError(f"clip {self.clip_id}: {len(self.frames)} growing times are needed, got {self.times}")

    @property
    def plane_spacing(self) -> tuple[float, float] | None:
        """Size of a pixel in mm, (y, x); None where unknown."""
        sides = self.geometry.array_spacing
        return None if sides is None else (sides[0], sides[1])

    def frame(self, index: int) -> Case:
        """One frame as a case; the first has the index 0."""
        name = frame_id(self.clip_id, index)
        return Case(name, self.patient_id, self.frames[index], self.geometry, self.tags, index, len(self.frames))


def frame_id(clip_id: str, index: int) -> str:
    """The case id of a frame; the first has the index 0."""
    return f"{clip_id}_frame{index:03d}"


def frame_ids(clip_id: str, count: int) -> list[str]:
    """The case ids of all frames of a clip."""
    return [frame_id(clip_id, index) for index in range(count)]


def clip_of_frame(case_id: str) -> tuple[str, int] | None:
    """The clip and the place in it that the case id of a frame says (`frame_id`); None for any other name."""
    clip_id, _, place = case_id.rpartition("_frame")
    named = clip_id and place.isascii() and place.isdigit()
    return (clip_id, int(place)) if named and frame_id(clip_id, int(place)) == case_id else None


@dataclass(frozen=True, eq=False)
class LabelledCase:
    """A case with its expert mask. Only source training and `evaluate` handle these.

    Attributes:
        case: The image.
        ground_truth: `(*S)`, class indices.
        structures: Those that it is of, where it says nothing of the others; None: of all.
    """

    case: Case
    ground_truth: LabelMap
    structures: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.ground_truth.shape != self.case.shape:
            raise DataError(
                f"case {self.case.case_id}: the image has size {self.case.shape}, its mask {self.ground_truth.shape}. "
                "They must lie on the same grid."
            )
